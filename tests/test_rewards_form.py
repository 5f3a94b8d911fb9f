"""The rewards of form and length: golden values, TRL as oracle, properties over hostile text, attempts to fool them."""

from __future__ import annotations

import json
import math
import string
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_calls import PIECES, answered, made_rollout, score
from trl.rewards import get_cosine_scaled_reward, get_repetition_penalty_reward, get_soft_overlong_punishment

import mmreason.rewards.answer_rewards as answer_rewards
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, RewardFailure
from mmreason.rewards.format import has_structure
from mmreason.rewards.json_schema import parse_json, read_schema
from mmreason.rewards.language import script_of
from mmreason.rewards.length import cosine_length, cosine_of_length, soft_overlong
from mmreason.rewards.reasoning_pattern import OPEN_ENDED_PHRASES, PHRASES
from mmreason.rewards.repetition import loops, ngram_counts, pieces_of, repetition
from mmreason.scoring import REWARDS, RewardRunner

FORM = ["format", "json_schema", "language", "repetition", "reasoning_pattern", "soft_overlong"]

# format


@pytest.mark.parametrize(
    ("tags", "text", "value"),
    [
        (["think", "answer"], "<think>a</think>\n<answer>b</answer>", 1.0),
        (["info", "think", "answer"], "<info>a</info><think>b</think><answer>c</answer>", 1.0),
        (["info", "think", "answer"], "<info>a\nb</info>\n\n<think>b</think> <answer>c</answer>", 1.0),
        (["info", "think", "answer"], "<think>b</think><info>a</info><answer>c</answer>", 0.0),
        (["think", "class", "extension"], "<think>a</think><class>b</class><extension>c</extension>", 1.0),
        (["think", "class", "extension"], "<think>a</think><class>b</class>", 0.0),
        (["think", "tool", "think", "answer"], "<think>a</think><tool>b</tool><think>c</think><answer>d</answer>", 1.0),
        (["think", "boxed"], r"<think>a</think> It is \boxed{5}.", 1.0),
        (["think", "boxed"], "<think>a\\boxed{4}</think>\n\n\\boxed{\\frac{1}{2}}", 1.0),
        (["think", "boxed"], r"<think>a \boxed{5}</think> It is 5.", 0.0),
        (["think", "boxed"], r"<think>a</think> \boxed{4} or \boxed{5}", 0.0),
        (["think", "boxed"], r"<think>a</think> \boxed{ }", 0.0),
        (["think", "boxed"], r"<think>a</think> \boxed{5", 0.0),
        (["think", "boxed"], r"\boxed{5} <think>a</think>", 0.0),
        (["think", "boxed"], r"so <think>a</think> \boxed{5}", 0.0),
        (["think", "boxed"], r"<think>a</think><think>b</think>\boxed{5}", 0.0),
        (["think", "boxed"], r"<think>a</think> <think> \boxed{5}", 0.0),
        (["think", "boxed"], r"\boxed{5}", 0.0),
        (["think", "boxed"], "", 0.0),
        (["boxed"], r"It is \boxed{5}.", 1.0),
        (["boxed"], "It is 5.", 0.0),
        (["boxed"], r"\boxed{4} \boxed{5}", 0.0),
    ],
)
def test_format_is_one_definition_for_every_form(tags: list[str], text: str, value: float) -> None:
    assert score("format", text, tags=tags) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think> \n</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a <b></b></think><answer>b</answer>", 1.0),
    ],
)
def test_format_can_ask_for_content(text: str, value: float) -> None:
    assert score("format", text, allow_empty=False) == value


def test_format_refuses_a_box_that_is_not_last() -> None:
    with pytest.raises(ConfigError, match="comes last"):
        score("format", "x", tags=["boxed", "think"])


blocks = st.text(st.characters(exclude_characters="<>\\{}", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.sampled_from(["info", "think", "answer", "class"]), min_size=1, max_size=5), st.data())
def test_what_is_written_in_a_form_has_that_form_only(tags: list[str], data: st.DataObject) -> None:
    text = " \n".join(f"<{tag}>{data.draw(blocks)}</{tag}>" for tag in tags)
    asked = tuple(tags)
    assert has_structure(text, asked)
    assert has_structure(f"{text} x \\boxed{{1}}", (*asked, "boxed"))
    assert not has_structure(text, (*asked, "other"))
    assert not has_structure(f"{text}<{tags[0]}></{tags[0]}>", asked)
    assert not has_structure(f"{text} x", asked)
    assert not has_structure(f"x {text}", asked)


# json_schema


BOX_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": 2,
    "items": {
        "type": "object",
        "properties": {
            "label": {"type": "string", "maxLength": 10, "minLength": 1},
            "box": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1000}, "minItems": 4},
            "kind": {"enum": ["cat", "dog", 1, None]},
        },
        "required": ["label", "box"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('[{"label": "a", "box": [1, 2, 3, 4]}]', 1.0),
        ('```json\n[{"label": "a", "box": [1, 2.5, 3, 4], "kind": null}]\n```', 1.0),
        ('```\n[{"label": "a", "box": [1, 2, 3, 4.0], "kind": 1}]\n```', 1.0),
        ('[{"label": "a", "box": [1, 2, 3, 4], "kind": true}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3]}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, 1001]}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, true]}]', 0.0),
        ('[{"label": "", "box": [1, 2, 3, 4]}]', 0.0),
        ('[{"label": "a much longer label", "box": [1, 2, 3, 4]}]', 0.0),
        ('[{"label": "a"}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, 4], "x": 1}]', 0.0),
        ('[{"label": "a", "label": "b", "box": [1, 2, 3, 4]}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, NaN]}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, 1e999]}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, ' + "9" * 5000 + "]}]", 0.0),
        ("[{'label': 'a', 'box': [1, 2, 3, 4]}]", 0.0),
        ('[{"label": "a", "box": [1, 2, 3, 4],}]', 0.0),
        ('[{"label": "a", "box": [1, 2, 3, 4]}] and more', 0.0),
        ('{"label": "a", "box": [1, 2, 3, 4]}', 0.0),
        ("[]", 0.0),
        ("", 0.0),
    ],
)
def test_json_schema(answer: str, value: float) -> None:
    assert score("json_schema", answered(answer), {"schema": BOX_SCHEMA}) == value
    assert score("json_schema", answered(answer), shape=json.dumps(BOX_SCHEMA)) == value


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({}, ["1", "null", "{}"], []),
        ({"type": "integer"}, ["1", "1.0", "-3"], ["1.5", '"1"', "true", "null"]),
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "[]"]),
        ({"type": "boolean"}, ["true", "false"], ["0", "1"]),
        ({"const": None}, ["null"], ["0", '""']),
        ({"const": {"a": [1, True]}}, ['{"a": [1.0, true]}'], ['{"a": [1, 1]}', '{"a": [true, true]}', "{}"]),
        ({"additionalProperties": {"type": "number"}}, ['{"a": 1}', "{}"], ['{"a": "1"}']),
        ({"type": "string", "description": "a name", "title": "name"}, ['""'], ["0"]),
    ],
)
def test_json_schema_keywords(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    for answer in right:
        assert score("json_schema", answered(answer), {"schema": schema}) == 1.0, answer
    for answer in wrong:
        assert score("json_schema", answered(answer), {"schema": schema}) == 0.0, answer


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#"},
        {"type": "string", "pattern": "(a+)+$"},
        {"anyOf": [{"type": "string"}]},
        {"type": "text"},
        {"properties": {"a": {"$ref": "#"}}},
        {"minItems": -1},
        [],
        {"title": "x" * 30_000},
    ],
)
def test_a_schema_that_could_fetch_loop_or_backtrack_is_refused(schema: Any) -> None:
    with pytest.raises(RewardFailure, match="schema"):
        score("json_schema", answered("1"), {"schema": schema})


def test_json_schema_refuses_depth_and_applies_only_with_a_schema() -> None:
    assert parse_json("[" * 32 + "]" * 32)[0]
    assert not parse_json("[" * 33 + "]" * 33)[0]
    assert not parse_json("[" * 90_000)[0]
    assert parse_json('"' + "[" * 90_000 + '"')[0]
    assert not parse_json(" " + '"' + "a" * 100_000 + '"')[0]
    with pytest.raises(ValueError, match="32 levels"):
        read_schema('{"items": ' * 40 + "{}" + "}" * 40)
    assert score("json_schema", answered("1")) is None
    assert score("json_schema", "1", {"schema": {"type": "integer"}}) == 0.0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def canonical(value: Any) -> Any:
    """A form in which equal JSON values are equal in Python: there, true is 1."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    return value


small = st.recursive(
    st.sampled_from([0, 1, 0.0, 1.0, True, False, None, "", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)


@given(st.one_of(st.tuples(json_values, json_values), st.tuples(small, small)))
def test_const_accepts_its_own_value_and_no_other(pair: tuple[Any, Any]) -> None:
    value, other = pair
    schema = read_schema(json.dumps({"const": value}))
    assert schema.accepts(parse_json(json.dumps(value))[1])
    assert schema.accepts(other) is (canonical(value) == canonical(other))


# language


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("The cat is red.", {}, 1.0),
        ("Le café est à gauche", {}, 1.0),
        ("这是一只猫", {}, 0.0),
        ("这是一只猫", {"scripts": ["han"]}, 1.0),
        ("ab这是", {}, 0.5),
        ("これは猫です", {"scripts": ["han", "hiragana", "katakana"]}, 1.0),
        ("кот", {"scripts": ["cyrillic"]}, 1.0),
        ("a + π", {}, 0.5),
        ("a + π", {"scripts": ["latin", "greek"]}, 1.0),
        ("a 12 + 3!", {}, 1.0),
        ("𝐚𝐛 a", {}, 1.0),
        ("ａｂ", {}, 1.0),
        ("12 + 3 = 15", {}, 0.0),
        ("", {}, 0.0),
        ("<think>这是</think><answer>red</answer>", {}, 0.6),
        ("<think>这是</think><answer>red</answer>", {"part": "answer"}, 1.0),
        ("<think>这是</think><answer>red</answer>", {"part": "thinking"}, 0.0),
    ],
)
def test_language(text: str, options: dict[str, Any], value: float) -> None:
    assert score("language", text, **options) == pytest.approx(value)


@given(st.characters())
def test_every_ascii_letter_is_latin_and_no_sign_has_a_script(letter: str) -> None:
    script = script_of(letter)
    if letter in string.ascii_letters:
        assert script == "LATIN"
    if not letter.isalpha():
        assert script is None


# repetition


@pytest.mark.parametrize(
    ("text", "ngram", "value"),
    [
        ("", 6, 0.0),
        ("one two three", 6, 0.0),
        ("a b c a b c a b c", 3, -(1 - 3 / 7)),
        ("a a a a a", 2, -0.75),
        ("A a A a", 1, -0.75),
        ("the cat sat on the mat", 2, 0.0),
        ("猫猫猫猫", 2, -(1 - 1 / 3)),
        ("x" * 320, 2, -(1 - 1 / 9)),
    ],
)
def test_repetition(text: str, ngram: int, value: float) -> None:
    assert score("repetition", text, ngram=ngram) == pytest.approx(value)


@given(st.lists(st.sampled_from(["red", "blue", "a", "."]), max_size=30), st.integers(1, 5))
def test_repetition_is_trls_over_words(words: list[str], ngram: int) -> None:
    ids = [sorted(set(words)).index(word) for word in words]
    oracle = get_repetition_penalty_reward(ngram_size=ngram, max_penalty=-1.0)([ids])[0]
    assert repetition(" ".join(words), ngram=ngram) == pytest.approx(oracle)
    counts = ngram_counts(pieces_of(" ".join(words)), ngram)
    assert counts.total() == max(0, len(words) - ngram + 1)


@given(st.lists(st.sampled_from("abcdef"), min_size=6, max_size=12), st.integers(1, 20))
def test_saying_it_again_never_raises_repetition(words: list[str], times: int) -> None:
    values = [repetition(" ".join(words * count), ngram=3) for count in (times, times + 1)]
    assert -1.0 <= values[1] <= values[0] <= 0.0


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("no " * 10, {}, True),
        ("no " * 9, {}, False),
        ("let me see. " * 10, {}, True),
        ("a b " * 5 + "c " + "a b " * 5, {}, False),
        (" ".join(map(str, range(30))) + " ", {}, False),
        ((" ".join(map(str, range(30))) + " ") * 10, {}, True),
        ((" ".join(map(str, range(31))) + " ") * 10, {}, False),
        ("x" * 120, {}, True),
        ("x" * 119, {}, False),
        ("let me try that " * 3, {"min_words": 4, "times": 3}, True),
        ("no " * 11, {"min_words": 4, "times": 3}, False),
        ("no " * 12, {"min_words": 4, "times": 3}, True),
        ("", {}, False),
    ],
)
def test_loops(text: str, options: dict[str, int], value: bool) -> None:
    assert loops(text, **options) is value
    assert loops(f"First I look. {text} And so on.", **options) is value


# reasoning_pattern


def thinking(text: str) -> str:
    return f"<think>{text}</think><answer>x</answer>"


def test_reasoning_pattern_golden_values() -> None:
    assert len(PHRASES) == 40
    assert len(OPEN_ENDED_PHRASES) == 53
    assert score("reasoning_pattern", thinking("wait, wait, therefore")) == pytest.approx(0.05)
    assert score("reasoning_pattern", thinking("Wait. THEREFORE"), value_per_phrase=0.05) == pytest.approx(0.1)
    assert score("reasoning_pattern", thinking("It makes sense; it makes sence")) == pytest.approx(0.025)
    assert score("reasoning_pattern", thinking("Let’s try")) == pytest.approx(0.025)
    assert score("reasoning_pattern", thinking("first of all")) == 0.0  # the comma belongs to the phrase
    assert score("reasoning_pattern", thinking("step 1"), phrases="open_ended") == pytest.approx(0.025)
    assert score("reasoning_pattern", thinking("step 1")) == 0.0
    assert score("reasoning_pattern", "wait <think>a</think> therefore") == 0.0
    assert score("reasoning_pattern", "wait <think>a</think> therefore", part="completion") == pytest.approx(0.05)
    assert score("reasoning_pattern", "") == 0.0
    everything = " | ".join(spelling for entry in PHRASES for spelling in entry)
    assert score("reasoning_pattern", thinking(everything)) == pytest.approx(1.0)
    assert score("reasoning_pattern", thinking(everything), value_per_phrase=0.05) == 1.0


def test_reasoning_pattern_fines_repetition_and_imagined_turns() -> None:
    everything = " | ".join(spelling for entry in PHRASES for spelling in entry)
    assert 0.0 <= (score("reasoning_pattern", thinking(f"{everything} {everything}")) or 0.0) < 0.25
    assert score("reasoning_pattern", thinking(f"{everything} user: and now?")) == 0.0
    once, often = (score("reasoning_pattern", thinking("wait, therefore, hence " * n)) for n in (1, 50))
    assert (once, often) == (pytest.approx(0.075), 0.0)


# length


@pytest.mark.parametrize(
    ("num_tokens", "right", "wrong"), [(0, 1.0, -1.0), (500, 0.75, -0.75), (1000, 0.5, -0.5), (1500, 0.5, -0.5)]
)
def test_cosine_length_golden_values_of_trl(num_tokens: int, right: float, wrong: float) -> None:
    values = cosine_length([num_tokens] * 3, [True, False, None], max_tokens=1000)
    assert values == [pytest.approx(right), pytest.approx(wrong), None]


@pytest.mark.parametrize(
    ("num_tokens", "right", "wrong"),
    [(0, 1.0, -0.5), (256, 0.9268, -0.4268), (512, 0.75, -0.25), (1024, 0.5, 0.0), (2048, 0.5, 0.0)],
)
def test_cosine_length_golden_values_of_vlm_r1(num_tokens: int, right: float, wrong: float) -> None:
    values = cosine_length([num_tokens] * 2, [True, False], wrong_short=-0.5, wrong_long=0.0)
    assert values == [pytest.approx(right, abs=1e-4), pytest.approx(wrong, abs=1e-4)]


@pytest.mark.parametrize("phi_tokens", [25_600, 28_672, 31_744])
def test_cosine_of_length_makes_phi_4s_curve(phi_tokens: int) -> None:
    over = np.array([max(phi_tokens - 25_600, 0)])
    value = cosine_of_length(over, max_tokens=31_744 - 25_600, shortest=1.0, longest=0.5)
    assert value[0] == pytest.approx({25_600: 1.0, 28_672: 0.75, 31_744: 0.5}[phi_tokens])


def test_cosine_length_is_trls() -> None:
    lengths = list(range(0, 260, 13))
    completions = [[{"content": rf"\boxed{{{1 + index % 2}}}"}] for index in range(len(lengths))]
    oracle = get_cosine_scaled_reward(200)(completions, ["1"] * len(lengths), [[0] * length for length in lengths])
    values = cosine_length(lengths, [index % 2 == 0 for index in range(len(lengths))], max_tokens=200)
    assert values == pytest.approx(oracle)


@given(st.integers(0, 3000), st.integers(0, 3000), st.booleans())
def test_longer_right_ones_earn_less_and_longer_wrong_ones_more(length: int, extra: int, right: bool) -> None:
    short, long = cosine_length([length, length + extra], [right, right])
    assert short is not None
    assert long is not None
    assert -1.0 <= min(short, long) <= max(short, long) <= 1.0
    assert (short >= long) if right else (short <= long)


def test_cosine_length_takes_what_is_right_from_the_run() -> None:
    config = RewardConfig.model_validate(
        {"exact": {"weight": 0.0}, "cosine_length": {"max_tokens": 1000}, "correct": "exact > 0.5"}
    )
    rollouts = [
        made_rollout(answered("red"), {"answer": "red"}, num_tokens=500),
        made_rollout(answered("blue"), {"answer": "red"}, num_tokens=500),
        made_rollout(answered("blue"), {"boxes": []}, num_tokens=500),
    ]
    table = RewardRunner(config).score(rollouts)
    assert table.column("cosine_length")[:2] == pytest.approx([0.75, -0.75])
    assert math.isnan(table.column("cosine_length")[2])


@pytest.mark.parametrize(
    ("num_tokens", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (101, -1.0), (10**9, -1.0)]
)
def test_soft_overlong_golden_values(num_tokens: int, value: float) -> None:
    assert score("soft_overlong", "", num_tokens=num_tokens, max_tokens=100) == pytest.approx(value)


@given(st.integers(0, 500), st.integers(2, 300), st.data())
def test_soft_overlong_is_trls(num_tokens: int, max_tokens: int, data: st.DataObject) -> None:
    cache = data.draw(st.integers(1, max_tokens))
    oracle = get_soft_overlong_punishment(max_tokens, cache)([[0] * num_tokens])[0]
    assert soft_overlong(num_tokens, max_tokens=max_tokens, soft_share=cache / max_tokens) == pytest.approx(oracle)


# All of them


def test_every_form_reward_is_registered_with_its_source() -> None:
    for name in [*FORM, "cosine_length"]:
        spec = REWARDS.get(name)
        assert name == "format" or spec.function.__name__ in answer_rewards.__all__
        assert spec.summary
        assert spec.source


hostile = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join).map(answered),
    st.text(max_size=200),
)


@settings(max_examples=400, deadline=None)
@given(hostile)
def test_hostile_text_never_fails_or_leaves_the_range(text: str) -> None:
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in FORM}))
    rollout = made_rollout(text, {"schema": BOX_SCHEMA}, num_tokens=len(text))
    first, again = runner.score([rollout]), runner.score([rollout])
    assert not runner.failures
    for name in FORM:
        low, high = REWARDS.get(name).range
        assert low <= first.column(name)[0] <= high
    np.testing.assert_array_equal(first.values, again.values)
    assert has_structure(text, ("boxed",)) in (True, False)
    assert loops(text) in (True, False)


UNITS = [
    "<answer>",
    "</think>",
    "\\boxed{",
    "\\boxed  ",
    "<a>",
    "<think> ",
    "a",
    "a b ",
    "wait ",
    "[",
    '"',
    '\\"',
    "```json\n",
]


@pytest.mark.parametrize("unit", [*UNITS, " ", "é", "漢", "\u0301", "0 ", "user: ", "😀"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_megabyte_of_hostile_text_costs_little(unit: str, wrapped: bool) -> None:
    text = unit * (1_000_000 // len(unit))
    rollout = made_rollout(answered(text) if wrapped else text, {"schema": BOX_SCHEMA})
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in FORM}))
    started = time.process_time()
    table = runner.score([rollout])
    assert loops(text) in (True, False)
    assert has_structure(text[:400_000], ("think", "boxed"), allow_empty=False) is False
    assert time.process_time() - started < 2.0  # quadratic time would be minutes; the rest is slack for slow machines
    assert not table.failures
