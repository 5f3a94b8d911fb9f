"""The answer rewards: golden values, oracles, properties over random and hostile text, and attempts to fool them."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_calls import PIECES, answered, hacked, made_rollout, score

import mmreason.rewards.answer_rewards as answer_rewards
from mmreason.config.schema import RewardConfig
from mmreason.errors import RewardFailure
from mmreason.rewards.answer_text import MAX_ANSWER_CHARS, boxed_contents, short_answer
from mmreason.rewards.choice import options_named
from mmreason.rewards.iou_1d import parse_spans
from mmreason.rewards.json_schema import parse_json
from mmreason.rewards.maths import expression, is_too_costly
from mmreason.rewards.numeric import closeness, mean_relative_accuracy, parse_number, plain_number
from mmreason.rewards.yes_no import yes_or_no
from mmreason.scoring import REWARDS, RewardRunner

COLOURS = ["red", "blue", "a green cat", "B"]

# boxed


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{5}", ["5"]),
        (r"so \boxed{ \frac{1}{2} } it is", [r"\frac{1}{2}"]),
        (r"\boxed {5}", ["5"]),
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"\boxed{a \boxed{b} c}", [r"a \boxed{b} c"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{5", []),
        (r"\boxed5", []),
        ("boxed{5}", []),
        ("}}}", []),
        ("", []),
    ],
)
def test_boxed_contents(text: str, contents: list[str]) -> None:
    assert boxed_contents(text) == contents


def test_only_a_single_box_is_opened() -> None:
    assert short_answer(r"It is \boxed{B}.") == "B"
    assert short_answer(r"\boxed{A} \boxed{B}") == r"\boxed{A} \boxed{B}"
    assert short_answer(" B ") == "B"
    assert short_answer(None) is None
    assert short_answer("B" + " " * MAX_ANSWER_CHARS) is None


# choice


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("B", 1.0),
        ("b", 1.0),
        ("(B)", 1.0),
        ("[B]", 1.0),
        ("B.", 1.0),
        ("B)", 1.0),
        ("Option B", 1.0),
        ("The answer is: B", 1.0),
        ("The correct answer is option B.", 1.0),
        (r"\boxed{B}", 1.0),
        ("blue", 1.0),
        ("Blue.", 1.0),
        ("The answer is blue", 1.0),
        ("B. blue", 1.0),
        ("(B) Blue", 1.0),
        ("A", 0.0),
        ("red", 0.0),
        ("B. red", 0.0),
        ("a green cat", 0.0),
        ("E", 0.0),
        ("", 0.0),
    ],
)
def test_choice(answer: str, value: float) -> None:
    assert score("choice", answered(answer), {"answer": "B", "choices": COLOURS}) == value


@pytest.mark.parametrize("wanted", ["B", "(b)", "blue", "B. blue"])
def test_choice_takes_the_right_answer_in_any_form(wanted: str) -> None:
    target = {"answer": wanted, "choices": COLOURS}
    assert score("choice", answered("B"), target) == 1.0
    assert score("choice", answered("C"), target) == 0.0


def test_choice_labels_go_before_wordings() -> None:
    # Option D is worded "B": whoever writes B means the second one.
    assert score("choice", answered("B"), {"answer": "D", "choices": COLOURS}) == 0.0
    assert score("choice", answered("D"), {"answer": "D", "choices": COLOURS}) == 1.0


def test_choice_without_wordings_reads_labels_only() -> None:
    assert score("choice", answered("B"), {"answer": "B"}) == 1.0
    assert score("choice", answered("B. blue"), {"answer": "B"}) == 0.0
    assert score("choice", answered("A cat"), {"answer": "A"}) == 0.0


def test_choice_applies_to_multiple_choice_only() -> None:
    assert score("choice", answered("red"), {"answer": "red"}) is None
    assert score("choice", answered("A"), {"boxes": [[1, 2, 3, 4]]}) is None
    with pytest.raises(RewardFailure, match="none of the 4 choices"):
        score("choice", answered("A"), {"answer": "purple", "choices": COLOURS})
    with pytest.raises(RewardFailure, match="at most 26"):
        score("choice", answered("A"), {"answer": "A", "choices": ["x"] * 27})


@pytest.mark.parametrize(
    "answer",
    [
        *["A, B, C, D", "A B", "A or B", "A/B", "AB", "B, because A is wrong", "B B", "(A)(B)", r"\boxed{A}\boxed{B}"],
        *["red blue", "red or blue", "B. blue C. a green cat", "none", "all of the above", "A\nB"],
    ],
)
def test_listing_choices_is_worth_nothing(answer: str) -> None:
    for right in "ABCD":
        assert score("choice", answered(answer), {"answer": right, "choices": COLOURS}) == 0.0
        assert score("choice", answered(answer), {"answer": right}) == 0.0


@given(st.lists(st.sampled_from("ABCD"), min_size=2, max_size=4), st.sampled_from([" ", ", ", " or ", "/", "; ", "\n"]))
def test_several_labels_name_nothing(labels: list[str], separator: str) -> None:
    assert not options_named(separator.join(labels))
    assert not options_named(separator.join(f"({label})" for label in labels))


# yes_no


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("yes", True),
        ("Yes.", True),
        ("YES, it is", True),
        ("true", True),
        ("no", False),
        ("No, there is no cat", False),
        ("False", False),
        ("yes or no", None),
        ("no yes", None),
        ("Yes. No.", None),
        ("Not known", None),
        ("know", None),
        ("I think yes", None),
        ("nothing", None),
        ("maybe", None),
        ("", None),
    ],
)
def test_yes_or_no(answer: str, meaning: bool | None) -> None:
    assert yes_or_no(answer) is meaning
    for right in (True, False):
        for wanted in (right, "yes" if right else "No."):
            assert score("yes_no", answered(answer), {"answer": wanted}) == float(meaning is right)


def test_yes_no_applies_to_yes_no_questions_only() -> None:
    assert score("yes_no", answered("yes"), {"answer": "red"}) is None
    assert score("yes_no", answered("yes"), {"answer": 1}) is None
    assert score("yes_no", answered("yes"), {}) is None
    assert score("yes_no", answered(r"\boxed{yes}"), {"answer": True}) == 1.0


# numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", "5"),
        ("-5", "-5"),
        ("− 5", "-5"),
        ("+7.", "7"),
        (".5", "1/2"),
        ("about $1,234.50", "2469/2"),
        ("-$5", "-5"),
        ("12 cm^2", "12"),
        ("12 cm2", "12"),
        (r"12 \text{ cm}^{2}", "12"),
        (r"\(-3\)", "-3"),
        ("3/4", "3/4"),
        ("45%", "9/20"),
        (r"45\%", "9/20"),
        ("1e5", "100000"),
        ("1.5e-3", "3/2000"),
        ("x = 5", "5"),
        ("5,000 km/h", "5000"),
        *[(text, None) for text in ("5 or 6", "1,2", "12,34", "1.2.3", "3-4", "1 1/2", "3/4/5", "5 5", "10^5", "5!")],
        *[(text, None) for text in ("2+3", "17*23", r"\sqrt{9}", r"2\pi", "not 5", "minus 5", "5 million", "1/0")],
        *[(text, None) for text in ("1e9999", "12e9999", "½", "٣", "nan", "inf", "x1", "", "five", "5" * 1001)],
    ],
)
def test_parse_number(text: str, number: str | None) -> None:
    assert parse_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("given_number", "wanted", "value"),
    [(10, 10, 1.0), (10.5, 10, 0.725), (11, 10, 0.45), (0.2, 0.1, 0.45), (100, 10, 0.0), (-10, 10, 0.0)],
)
def test_closeness_golden_values(given_number: float, wanted: float, value: float) -> None:
    reward = score("numeric", answered(str(given_number)), {"answer": wanted}, measure="closeness")
    assert reward == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("given_number", "wanted", "value"),
    [
        (10, 10, 1.0),
        (10.4, 10, 1.0),
        (10.5, 10, 0.9),  # an error of exactly 0.05 is not below 0.05
        (9.5, 10, 0.9),
        (11, 10, 0.8),
        (0.525, 0.5, 0.9),
        (14.9, 10, 0.1),
        (15, 10, 0.0),
        (-10, -10, 1.0),
        (10, -10, 0.0),
        (0, 0, 1.0),
        (0.001, 0, 0.0),
    ],
)
def test_mean_relative_accuracy_golden_values(given_number: float, wanted: float, value: float) -> None:
    target = {"answer": wanted}
    assert score("numeric", answered(str(given_number)), target, measure="mean_relative_accuracy") == value


def test_numeric_tolerance() -> None:
    assert score("numeric", answered("3.0"), {"answer": 3}) == 1.0
    assert score("numeric", answered("3.01"), {"answer": "3"}) == 0.0
    assert score("numeric", answered("104"), {"answer": 100}, relative_tolerance=0.05) == 1.0
    assert score("numeric", answered("106"), {"answer": 100}, relative_tolerance=0.05) == 0.0
    assert score("numeric", answered("-0.5"), {"answer": 0}, absolute_tolerance=0.5) == 1.0
    assert score("numeric", answered("0.000001"), {"answer": 0}) == 0.0
    assert score("numeric", answered("50%"), {"answer": 0.5}) == 1.0


def test_numeric_applies_to_numbers_only() -> None:
    assert score("numeric", answered("3"), {"answer": "red"}) is None
    assert score("numeric", answered("1"), {"answer": True}) is None
    assert score("numeric", answered("1"), {}) is None
    with pytest.raises(RewardFailure, match="no finite number"):
        score("numeric", answered("3"), {"answer": math.inf})


numbers = st.fractions(min_value=-1000, max_value=1000, max_denominator=1000)


@given(numbers, numbers, st.fractions(min_value=0, max_value=10, max_denominator=100))
def test_a_number_farther_away_never_scores_higher(wanted: Fraction, given_number: Fraction, extra: Fraction) -> None:
    direction = 1 if given_number >= wanted else -1
    for measure in (mean_relative_accuracy, closeness):
        near, far = measure(given_number, wanted), measure(given_number + direction * extra, wanted)
        assert 0.0 <= far <= near <= 1.0
        assert measure(wanted, wanted) == 1.0


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=4, allow_nan=False))
def test_a_written_number_is_read_back(number: Any) -> None:
    for text in (str(number), f"{number:,}", f"{number:e}", f"${number}$", f"about {number} cm"):
        assert parse_number(text) == Fraction(number)
    assert plain_number(f"{number:,}") == Fraction(number)


# edit_similarity


def test_edit_similarity_golden_values() -> None:
    assert score("edit_similarity", answered("invoise"), {"answer": "invoice"}) == pytest.approx(0.857143, abs=1e-6)
    assert score("edit_similarity", answered("  INVOICE \n"), {"answer": "invoice"}) == 1.0
    assert score("edit_similarity", answered("12"), {"answer": 123}) == pytest.approx(2 / 3)
    assert score("edit_similarity", answered("cold"), {"answers": ["warm", "cord"]}) == 0.75
    assert score("edit_similarity", answered("coal"), {"answer": "cold"}) == 0.0  # exactly the threshold
    assert score("edit_similarity", answered("coal"), {"answer": "cold"}, threshold=0.4) == 0.5
    assert score("edit_similarity", answered("invoice invoice"), {"answer": "invoice"}) == 0.0
    assert score("edit_similarity", answered("red"), {"boxes": []}) is None
    assert score("edit_similarity", answered("red"), {"answers": []}) is None
    with pytest.raises(RewardFailure, match="at most 4000"):
        score("edit_similarity", answered("red"), {"answer": "x" * 4001})


def edit_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


@given(st.text("abc ", max_size=12), st.text("abc ", min_size=1, max_size=12))
def test_edit_similarity_equals_its_definition(given_text: str, wanted: str) -> None:
    first, second = " ".join(given_text.split()), " ".join(wanted.split())
    longest = max(len(first), len(second))
    similarity = 1.0 - edit_distance(first, second) / longest if longest else 1.0
    value = score("edit_similarity", answered(given_text), {"answer": wanted})
    assert value == pytest.approx(similarity if similarity > 0.5 else 0.0)


# iou_1d


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("[12.5, 30]", [[12.5, 30.0]]),
        ("12.5 to 30 s", [[12.5, 30.0]]),
        ("from 12.5s to 30s", [[12.5, 30.0]]),
        ("from 0:12 to 1:30", [[12.0, 90.0]]),
        ("1:00:00-1:00:30.5", [[3600.0, 3630.5]]),
        ("[1, 2], [3, 4]", [[1.0, 2.0], [3.0, 4.0]]),
        ("nothing", []),
        ("12", None),
        ("12, 30 and 45", None),
        ("10-20-30", None),
        ("[10, 20] or 15", None),
        ("1.2.3 to 4", None),
    ],
)
def test_parse_spans(text: str, spans: list[list[float]] | None) -> None:
    found = parse_spans(text)
    assert (None if found is None else found.tolist()) == spans


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[10, 20]", 1.0),
        ("0:10 to 0:20", 1.0),
        ("[15, 25]", 1 / 3),
        ("[10, 40]", 1 / 3),
        ("[20, 30]", 0.0),
        ("[20, 10]", 0.0),
        ("[10, 10]", 0.0),
        ("[10, 20] [10, 20]", 0.5),
        ("[10, 20] [0, 5] [5, 9] [30, 40]", 0.25),
        ("10", 0.0),
        ("", 0.0),
    ],
)
def test_iou_1d(answer: str, value: float) -> None:
    assert score("iou_1d", answered(answer), {"time_spans": [[10, 20]]}) == pytest.approx(value)


def test_iou_1d_of_several_spans_and_broken_targets() -> None:
    wanted = {"time_spans": [[0, 10], [20, 30]]}
    assert score("iou_1d", answered("[20, 30], [0, 10]"), wanted) == 1.0
    assert score("iou_1d", answered("[0, 30]"), wanted) == pytest.approx(1 / 3 / 2)
    assert score("iou_1d", answered("[0, 10]"), {"answer": "red"}) is None
    assert score("iou_1d", answered("[0, 10]"), {"time_spans": []}) is None
    for spans in ([[20, 10]], [[1, 2, 3]], [[0, math.inf]], [1, 2]):
        with pytest.raises(RewardFailure, match="start < end"):
            score("iou_1d", answered("[0, 10]"), {"time_spans": spans})


seconds = st.integers(0, 50)
span_lists = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=3)


@given(span_lists, span_lists)
def test_iou_1d_equals_its_definition(given_spans: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    wanted = [(start, start + 1 + length) for start, length in wanted]

    def overlap(first: tuple[int, int], second: tuple[int, int]) -> float:
        covered = [set(range(*span)) for span in (first, second)]
        return len(covered[0] & covered[1]) / len(covered[0] | covered[1])

    short, long = sorted([given_spans, wanted], key=len)
    best = max(sum(map(overlap, short, chosen)) for chosen in itertools.permutations(long, len(short)))
    text = ", ".join(f"[{start}, {end}]" for start, end in given_spans)
    value = score("iou_1d", answered(text), {"time_spans": [list(span) for span in wanted]})
    assert value == pytest.approx(best / len(long))


# All of them


FULL_TARGET: dict[str, Any] = {"answer": "B", "choices": COLOURS, "time_spans": [[10, 20]]}
GOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "choice": ("B", {"answer": "B", "choices": COLOURS}),
    "yes_no": ("yes", {"answer": "yes"}),
    "numeric": ("12", {"answer": 12}),
    "edit_similarity": ("invoice", {"answer": "invoice"}),
    "iou_1d": ("[10, 20]", {"time_spans": [[10, 20]]}),
}


def test_every_answer_reward_is_registered_with_its_source() -> None:
    for name in GOLD:
        spec = REWARDS.get(name)
        assert spec.function.__name__ in answer_rewards.__all__
        assert spec.range == (0.0, 1.0)
        assert spec.summary
        assert spec.source


@pytest.mark.parametrize("name", sorted(GOLD))
def test_gold_is_the_highest_and_hiding_or_repeating_it_pays_nothing(name: str) -> None:
    gold, target = GOLD[name]
    assert score(name, answered(gold), target) == 1.0
    assert score(name, "", target) == 0.0
    values = [score(name, completion, target) for completion in hacked(gold)]
    assert values[:7] == [0.0] * 7
    # Two equal spans are one right of two, as in `iou`; "yes or yes" is still yes.
    allowed = {"iou_1d": 0.5, "yes_no": 1.0}.get(name, 0.0)
    assert max(value or 0.0 for value in values) <= allowed


hostile = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join).map(answered),
    st.text(max_size=100).map(answered),
)
ANSWER_OPTIONS = {"numeric": [{"measure": m} for m in ("tolerance", "mean_relative_accuracy", "closeness")]}


@settings(max_examples=400, deadline=None)
@given(hostile, st.sampled_from(sorted(GOLD)), st.integers(0, 2))
def test_hostile_text_never_fails_or_leaves_the_range(text: str, name: str, option: int) -> None:
    options = ANSWER_OPTIONS.get(name, [{}])
    value = score(name, text, GOLD[name][1], **options[option % len(options)])
    assert value is not None
    assert 0.0 <= value <= 1.0


UNITS = ["1", "1,", "12:", "[1, 2], ", "1/", "yes ", "A ", "\\boxed{", "\\boxed ", "$1$ ", "(", "-", " ", "é", "{}"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", [999, 400_000])
def test_long_answers_cost_little(unit: str, size: int) -> None:
    text = answered(unit * (size // len(unit)))
    rollouts = [made_rollout(text, target) for _, target in GOLD.values()]
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in GOLD}))
    started = time.process_time()
    for rollout in rollouts:
        assert not runner.score([rollout]).failures
    assert time.process_time() - started < 2.0  # quadratic time would be minutes; the rest is slack for slow machines


def test_values_do_not_depend_on_the_batch() -> None:
    completions = [answered(gold) for gold, _ in GOLD.values()] + [answered("A"), "", answered("no")]
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in GOLD}))
    rollouts = [made_rollout(completion, FULL_TARGET) for completion in completions]
    together = runner.score(rollouts).values
    alone = np.concatenate([runner.score([rollout]).values for rollout in rollouts[::-1]])[::-1]
    np.testing.assert_array_equal(together, alone)


def test_parsers_survive_ten_thousand_hostile_strings() -> None:
    readers: list[Callable[[str], Any]] = [boxed_contents, parse_number, plain_number, parse_spans, yes_or_no]
    readers += [options_named, expression, short_answer, parse_json, lambda text: is_too_costly(text, "x+1")]
    source = random.Random(0)
    for _ in range(10_000):
        text = "".join(source.choices(PIECES, k=source.randint(0, 10)))
        for reader in readers:
            reader(text)
    for text in ("\ud800", "\x00", "{" * 5000, "\\boxed{" * 5000, "}" * 5000, "9" * 5000, ":" * 5000, "^" * 999):
        for reader in readers:
            reader(text)
