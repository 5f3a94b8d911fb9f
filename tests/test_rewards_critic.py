"""The caption critic: ViCrit's span rules by example, as properties, and attempts to fool them."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.config.schema import RewardConfig
from mmreason.errors import RewardFailure
from mmreason.records import Rollout, Row
from mmreason.rewards.caption_critic import caption_critic, changed_part, words_of
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer

CAPTION = (
    'On a wooden table lies a blue fountain pen, next to a notebook. A sign above it reads "Café Luna", and a red '
    "apple stands behind the notebook, half in the shadow of a lamp."
)
TARGET = {"caption": CAPTION, "span": "a blue fountain pen", "original_span": "a black fountain pen"}


def score(completion: str, target: dict[str, Any], **options: Any) -> float | None:
    row = Row("row", (), (), target)
    rollout = Rollout(row, 0, (), completion, extract_answer(completion), 0, "stop", (), "original_px")
    table = RewardRunner(RewardConfig.model_validate({"caption_critic": options})).score([rollout])
    return None if math.isnan(table.total[0]) else float(table.total[0])


def answered(text: str) -> str:
    return f"<think>Let me compare.</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("answer", "relaxed", "strict"),
    [
        ("a blue fountain pen", 1.0, 1.0),
        ('  "A Blue   fountain\npen." ', 1.0, 1.0),
        ("blue fountain pen", 1.0, 0.0),
        ("blue", 1.0, 0.0),  # the one word that differs
        ("lies a blue fountain pen, next to", 1.0, 0.0),  # three words more
        ("a blue fountain pen next", 1.0, 0.0),
        ("table lies a blue fountain pen, next to", 0.0, 0.0),  # four words more
        (CAPTION, 0.0, 0.0),
        ("On a wooden table lies a blue fountain pen", 0.0, 0.0),
        ("fountain pen", 0.0, 0.0),  # the wrong word is not in it
        ("a black fountain pen", 0.0, 0.0),  # the original
        ("a blue pen", 0.0, 0.0),  # not a copy
        ("a fountain blue pen", 0.0, 0.0),
        ("blu", 0.0, 0.0),  # not whole words
        ("a blue fountain pen, Café Luna", 0.0, 0.0),  # two pieces
        ("the phrase is: a blue fountain pen", 0.0, 0.0),
        ("a red apple", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("...", 0.0, 0.0),
    ],
)
def test_span_rules(answer: str, relaxed: float, strict: float) -> None:
    assert score(answered(answer), TARGET) == relaxed
    assert score(answered(answer), TARGET, strict=True) == strict


def test_the_number_of_extra_words_is_an_option() -> None:
    longer = answered("table lies a blue fountain pen, next to")
    assert score(longer, TARGET, max_extra_words=4) == 1.0
    assert score(answered("a blue fountain pen next"), TARGET, max_extra_words=0) == 0.0
    assert score(answered("blue"), TARGET, max_extra_words=0) == 1.0


def test_only_the_place_that_was_changed_counts() -> None:
    target = {
        "caption": "A blue vase stands beside the blue chair by the window",
        "span": "the blue chair",
        "original_span": "the green chair",
    }
    assert score(answered("blue chair"), target) == 1.0
    assert score(answered("A blue vase"), target) == 0.0
    # Every word of the phrase is different where the original is not known.
    del target["original_span"]
    assert score(answered("blue chair"), target) == 0.0
    assert score(answered("beside the blue chair"), target) == 1.0


def test_only_the_last_answer_counts() -> None:
    assert score("<think><answer>a blue fountain pen</answer></think>", TARGET) == 0.0
    assert score("a blue fountain pen", TARGET) == 0.0
    assert score("<answer>a blue fountain pen</answer><answer>a red apple</answer>", TARGET) == 0.0
    assert score(f"<think>{CAPTION}</think><answer>blue</answer>", TARGET) == 1.0


def test_short_captions_cannot_be_copied_either() -> None:
    target = {"caption": "red cube, blue ball", "span": "blue ball", "original_span": "green ball"}
    assert score(answered("red cube, blue ball"), target) == 0.0
    assert score(answered("cube, blue ball"), target) == 1.0
    assert score(answered("blue ball"), target) == 1.0


@pytest.mark.parametrize(
    ("changed", "original", "expected"),
    [
        ("a blue pen", "a black pen", (1, 2)),
        ("two cats", "three cats", (0, 1)),
        ("a cat", "a dog", (1, 2)),
        ("the old red car", "the car", (1, 3)),
        ("the car", "the old red car", (0, 2)),  # words were only lost: all of it
        ("a a b", "a b", (1, 2)),
        ("a b", "a a b", (0, 2)),
        ("x y", "", (0, 2)),
        ("same", "same", (0, 1)),
    ],
)
def test_changed_part(changed: str, original: str, expected: tuple[int, int]) -> None:
    assert changed_part(changed.split(), original.split()) == expected


def test_words() -> None:
    assert words_of(' The "Red" car, (it\'s) — 5% OFF! ') == ["the", "red", "car", "it's", "5%", "off"]


@pytest.mark.parametrize("target", [{}, {"caption": CAPTION}, {"span": "blue"}, {"answer": "7"}])
def test_other_targets_do_not_apply(target: dict[str, Any]) -> None:
    assert score(answered("a blue fountain pen"), target) is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"caption": CAPTION, "span": "a purple elephant"}, "does not stand in"),
        ({"caption": CAPTION, "span": "fountain pe"}, "does not stand in"),
        ({"caption": CAPTION, "span": " . "}, "does not stand in"),
        ({"caption": CAPTION, "span": "red", "original_span": "red"}, "the same"),
    ],
)
def test_a_broken_target_is_a_failure_and_not_a_zero(target: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardFailure, match=message):
        score(answered("a blue fountain pen"), target)


# Words that occur once, so that what the right answer is does not depend on chance.
captions = st.lists(st.sampled_from([f"w{n}" for n in range(60)]), min_size=3, max_size=40, unique=True)


@st.composite
def falsified(draw: st.DrawFn) -> tuple[list[str], int, int]:
    """A caption, and where its falsified phrase lies: at most all but one of its words."""
    caption = draw(captions)
    size = draw(st.integers(1, min(5, len(caption) - 1)))
    start = draw(st.integers(0, len(caption) - size))
    return caption, start, start + size


@settings(max_examples=300)
@given(falsified(), st.data())
def test_a_piece_of_the_caption_is_right_if_it_covers_the_phrase_and_is_short(
    case: tuple[list[str], int, int], data: st.DataObject
) -> None:
    caption, start, end = case
    target = {"caption": " ".join(caption), "span": " ".join(caption[start:end])}
    assert caption_critic(target, target["span"]) == 1.0
    assert caption_critic(target, target["caption"]) == 0.0  # copying
    first = data.draw(st.integers(0, len(caption)))
    last = data.draw(st.integers(first, len(caption)))
    extra = min(3, (len(caption) - (end - start)) // 2)
    right = first <= start and end <= last and last - first <= end - start + extra
    assert caption_critic(target, " ".join(caption[first:last])) == float(right)
    assert caption_critic(target, " ".join(caption[first:last]), strict=True) == float((first, last) == (start, end))


def test_hostile_completions_are_worth_nothing_and_never_fail() -> None:
    source = random.Random(6)
    pieces = [
        "a ",
        "black ",
        "pen",
        "fountain",
        "<answer>",
        "</answer>",
        "<think>",
        "\x00",
        "\ud800",
        "é",
        "—",
        "\n",
        "9" * 99,
    ]
    for _ in range(10_000):
        text = "".join(source.choices(pieces, k=source.randrange(30)))
        assert caption_critic(TARGET, extract_answer(text)) == 0.0
        assert caption_critic(TARGET, text) == 0.0
    for unit in ("blue ", "a blue fountain pen ", '"', "\u3000", "x"):
        assert caption_critic(TARGET, unit * (1_000_000 // len(unit))) == 0.0
