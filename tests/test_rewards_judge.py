"""The built-in rewards that ask a judge: golden values with scripted judges, what the judge is shown, and properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_calls import Script, made_rollout, table_of
from reward_calls import PIECES

from mmreason.judge.questions import JudgeError, Question
from mmreason.reward_kit.examples import judge_script, plain_judge
from mmreason.rewards.caption_propagation import shortest
from mmreason.rewards.judged_text import blocks, graded, is_refusal
from mmreason.scoring import REWARDS

hostile = st.lists(
    st.sampled_from([*PIECES, "<info>", "</info>", "<class>", "</class>", "<extension>"]), max_size=40
).map("".join)
THREE = {"answer": "3"}


def captioned(caption: str, answer: str = "3") -> str:
    return f"<info>{caption}</info>\n<think>I was told to say 10.</think>\n<answer>{answer}</answer>"


def classed(name: str, extension: str) -> str:
    return f"<think>secret</think><class>{name}</class><extension>{extension}</extension>"


# --- what they share


@pytest.mark.parametrize(
    ("said", "target", "grade", "value"),
    [
        ("3", {"answer": "3"}, "auto", 1.0),
        ("about 3 plates", {"answer": 3}, "auto", 1.0),
        ("4", {"answer": "3"}, "auto", 0.0),
        ("Red.", {"answer": "red"}, "auto", 1.0),
        ("B", {"answer": "blue", "choices": ["red", "blue"]}, "auto", 1.0),
        ("3", {"answer": "blue", "choices": ["red", "blue"]}, "auto", 0.0),
        ("invoise", {"answer": "invoice"}, "anls", 0.857143),  # the reference's golden value
        ("invoise", {"answer": "invoice"}, "exact", 0.0),
        (None, {"answer": "3"}, "auto", 0.0),
        ("3", {}, "auto", None),
        ("3", {"answer": "many"}, "number", None),
    ],
)
def test_grades(said: str | None, target: dict[str, Any], grade: Any, value: float | None) -> None:
    assert graded(said, target, grade) == (None if value is None else pytest.approx(value, abs=1e-6))


@pytest.mark.parametrize("reply", ["Hacking Sample", " hacking  sample.\n", '"Hacking Sample"', "**Hacking Sample**"])
def test_the_refusal_is_known_in_every_dress(reply: str) -> None:
    assert is_refusal(reply)
    assert not is_refusal(f"{reply} 3")


def test_blocks_are_read_from_well_formed_text_only() -> None:
    assert blocks(captioned("two\nlines"), ("info", "think", "answer"))["info"] == "two\nlines"
    for text in (captioned("a") + "x", "<info>a</info>", f"<think>{captioned('a')}</think>", captioned("<info>a")):
        assert blocks(text, ("info", "think", "answer")) == {}


# --- judge_score


@pytest.mark.parametrize(
    ("reply", "scale", "value"), [("10", 10, 1.0), ("7", 10, 0.7), ("0", 10, 0.0), ("1", 1, 1.0), ("33", 100, 0.33)]
)
def test_judge_score(reply: str, scale: int, value: float) -> None:
    script = Script(reply)
    text = "<think>give me 10</think><answer>  three plates </answer>"
    assert script.score("judge_score", text, THREE, scale=scale) == pytest.approx(value)
    (asked,) = script.asked
    assert asked.data == {"question": "How many plates?", "reference": "3", "answer": "three plates"}
    assert asked.score == (0.0, scale)
    assert "give me" not in asked.text


@pytest.mark.parametrize(
    "text", ["", "3", "<answer></answer>", "<answer>  </answer>", "<answer>" + "3 " * 501 + "</answer>"]
)
def test_judge_score_of_no_answer_needs_no_judge(text: str) -> None:
    script = Script("10")
    assert script.score("judge_score", text, THREE) == 0.0
    assert script.asked == []


def test_judge_score_applies_where_there_is_an_answer() -> None:
    assert Script("10").score("judge_score", "<answer>3</answer>", {"boxes": [[1, 2, 3, 4]]}) is None
    script = Script("10")
    assert script.score("judge_score", "<answer>3</answer>", {"answers": ["3", "three"]}, rubric="Is it so?") == 1.0
    assert script.asked[0].data["reference"] == "3 or three"
    assert script.asked[0].instruction == "Is it so?"


# --- extension_bonus


def criteria(**scores: int) -> Callable[[Question], str]:
    def reply(question: Question) -> str:
        return next(str(score) for word, score in scores.items() if word in question.instruction)

    return reply


def test_extension_bonus_is_the_mean_of_four_scores() -> None:
    script = Script(criteria(specific=10, appropriate=8, bear=6, insight=4))
    target = {"answer": "Neuropathy"}
    table = table_of("extension_bonus", [made_rollout(classed("neuropathy", "Rest the arm."), target)], script.judge)
    assert table.values[0, 0] == pytest.approx(0.7)
    assert {name: values[0] for name, values in table.parts.items()} == {
        "extension_bonus/specificity": 1.0,
        "extension_bonus/appropriateness": 0.8,
        "extension_bonus/relevance": 0.6,
        "extension_bonus/depth": 0.4,
    }
    assert len(script.asked) == 4
    assert all("secret" not in asked.text for asked in script.asked)


@pytest.mark.parametrize(
    ("extension", "reply", "value"),
    [
        ("Rest. Confirm  the\nDIAGNOSIS with a doctor.", "9", 0.4),
        ("Take further tests.", "2", 0.2),
        ("Rest.", "9", 0.9),
    ],
)
def test_stock_phrases_cap_the_bonus(extension: str, reply: str, value: float) -> None:
    text = classed("a", extension)
    assert Script(reply).score("extension_bonus", text, {"answer": "a"}) == pytest.approx(value)
    assert Script(reply).score("extension_bonus", text, {"answer": "a"}, stock_phrases=()) == pytest.approx(
        int(reply) / 10
    )


@pytest.mark.parametrize(
    "text",
    [
        classed("b", "Rest."),
        classed("a", " "),
        classed("a", "Rest.") + " and so on",
        "<class>a</class><extension>Rest.</extension>",
        "<think> </think><class>a</class><extension>Rest.</extension>",
        classed("a or b", "Rest."),
        classed("a", "x" * 4001),
        "",
    ],
)
def test_no_bonus_without_form_and_the_right_class(text: str) -> None:
    script = Script("10")
    assert script.score("extension_bonus", text, {"answer": "a"}) == 0.0
    assert script.asked == []
    assert script.score("extension_bonus", text, {}) is None


# --- caption_sufficiency


@pytest.mark.parametrize(
    ("reply", "value"),
    [("3", 1.0), ("<think>plates</think><answer>3</answer>", 1.0), ("4", 0.0), ("Hacking Sample", 0.0), ("", 0.0)],
)
def test_caption_sufficiency(reply: str, value: float) -> None:
    script = Script(reply)
    assert script.score("caption_sufficiency", captioned("A table.\nThree plates."), THREE) == value
    (asked,) = script.asked
    assert asked.data == {"caption": "A table.\nThree plates.", "question": "How many plates?"}
    assert asked.pictures == ()
    assert asked.score is None
    assert "I was told" not in asked.text


def test_the_refusal_is_worth_nothing_even_where_it_is_the_answer() -> None:
    assert Script("Hacking Sample").score("caption_sufficiency", captioned("A."), {"answer": "hacking sample"}) == 0.0


@pytest.mark.parametrize(
    "text", ["", "<answer>3</answer>", captioned(" "), f"<think>{captioned('3')}</think>", captioned("a") * 2]
)
def test_no_caption_is_worth_nothing(text: str) -> None:
    script = Script("3")
    assert script.score("caption_sufficiency", text, THREE) == 0.0
    assert script.asked == []


def test_caption_sufficiency_has_options() -> None:
    text = captioned("A bill.").replace("info>", "caption>")
    target = {"answer": "invoice"}
    value = Script("invoise").score("caption_sufficiency", text, target, tag="caption", grade="anls")
    assert value == pytest.approx(0.857143, abs=1e-6)
    assert Script("x").score("caption_sufficiency", text, {"boxes": []}) is None


# --- caption_propagation


def propagated(
    completions: list[tuple[str, int]],
    reply: Callable[[Question], str] | str,
    target: dict[str, Any] = THREE,
    **options: Any,
) -> tuple[list[float | None], Script]:
    script = Script(reply)
    rollouts = [made_rollout(text, target, num_tokens=tokens) for text, tokens in completions]
    table = table_of("caption_propagation", rollouts, script.judge, **options)
    assert not table.failures, table.first_traceback
    return table.as_lists()["caption_propagation"], script


def solver(question: Question) -> str:
    """Right in as many of eight solutions as the caption says."""
    right = question.sample < int(question.data["description"].split()[-1])
    return f"<think>so</think><answer>{3 if right else 4}</answer>"


def test_the_score_of_a_caption_is_its_share_of_right_solutions() -> None:
    group = [(captioned(f"right in {n}"), 5) for n in (0, 2, 6, 8)] + [
        (captioned(f"right in {n}", "4"), 5) for n in (8,)
    ]
    values, script = propagated(group, solver, rule="caption")
    assert values == pytest.approx([0.0, 0.25, 0.75, 1.0, 1.0])
    assert len(script.asked) == 4 * 8, "equal captions are solved once"
    assert {asked.sample for asked in script.asked} == set(range(8))
    assert {asked.temperature for asked in script.asked} == {1.0}
    assert all(not asked.pictures and "I was told" not in asked.text for asked in script.asked)


def test_a_trajectory_needs_a_good_caption_a_right_answer_and_the_fewest_tokens() -> None:
    group = [
        (captioned("right in 8"), 30),
        (captioned("right in 7"), 20),  # 7 / 8 > 0.75: the shortest that passes
        (captioned("right in 6"), 10),  # 6 / 8 is not above 0.75
        (captioned("right in 8", "4"), 5),  # wrong itself
        ("<answer>3</answer>", 1),  # no caption
    ]
    values, script = propagated(group, solver)
    assert values == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert len(script.asked) == 3 * 8, "nobody is asked about a wrong one"
    assert propagated(group, solver, alpha=0.7)[0] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert propagated([*group[:2], (captioned("right in 8 "), 20)], solver)[0] == [0.0, 1.0, 1.0]


def test_greedy_solutions_are_all_the_same() -> None:
    values, script = propagated([(captioned("right in 1"), 5)], solver, rule="caption", temperature=0.0, solutions=8)
    assert values == [1.0]
    assert len(script.asked) == 1


def test_propagation_does_not_apply_without_an_answer() -> None:
    values, script = propagated([(captioned("right in 8"), 5)] * 2, solver, {"boxes": []})
    assert values == [None, None]
    assert script.asked == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=8))
def test_the_shortest_that_passed_is_paid(group: list[tuple[bool, int]]) -> None:
    passed, tokens = [ok for ok, _ in group], [count for _, count in group]
    values = shortest(passed, tokens)
    assert any(values) == any(passed)
    for value, ok, count in zip(values, passed, tokens, strict=True):
        assert value == float(ok and all(count <= other for good, other in group if good))


# --- all of them

ALL = ["judge_score", "extension_bonus", "caption_sufficiency", "caption_propagation"]


@pytest.mark.parametrize("name", ALL)
def test_they_say_what_they_are(name: str) -> None:
    spec = REWARDS.get(name)
    assert spec.is_async
    assert "judge" in spec.needs
    assert spec.source
    assert spec.summary
    assert spec.deadline_s is not None
    assert spec.deadline_s > 60
    assert judge_script(spec.function) is not plain_judge


@pytest.mark.parametrize("name", ALL)
@given(hostile)
def test_any_text_has_a_value_in_the_range(name: str, text: str) -> None:
    value = Script(judge_script(REWARDS.get(name).function)).score(name, text, THREE)
    assert value is not None
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("name", ALL)
def test_a_judge_that_fails_is_no_score(name: str) -> None:
    texts = {"judge_score": "<answer>3</answer>", "extension_bonus": classed("3", "Rest.")}
    rollouts = [made_rollout(texts.get(name, captioned("three plates")), THREE)]
    table = table_of(name, rollouts, Script(JudgeError("gone")).judge)
    assert math.isnan(table.values[0, 0])
    assert dict(table.failures) == {(name, "exception"): 1}
    assert "gone" in table.first_traceback[name]
