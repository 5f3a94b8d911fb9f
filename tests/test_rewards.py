"""The built-in rewards: golden values, properties over random and hostile text, and attempts to fool them.

Rewards are called through `RewardRunner`, as in training, with the answer cut out of the completion.
"""

from __future__ import annotations

import math
import string
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.boxes import Boxes, Frame, format_box
from mmreason.config.schema import RewardConfig
from mmreason.errors import RewardFailure
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rewards.exact import normalise
from mmreason.rewards.set_match import items_of
from mmreason.scoring import REWARDS, RewardRunner
from mmreason.text import extract_answer

GEOMETRY = ImageGeometry((400, 200), (392, 196), 14, 2)
BOX = [40.0, 20.0, 140.0, 120.0]
BOX_RELATIVE = "[100, 100, 350, 600]"  # BOX in relative_1000


def score(
    name: str,
    completion: str,
    target: dict[str, Any],
    *,
    frame: str = "relative_1000",
    geometry: tuple[ImageGeometry, ...] = (GEOMETRY,),
    **options: Any,
) -> float | None:
    row = Row("row", (), (), target)
    rollout = Rollout(row, 0, (), completion, extract_answer(completion), 0, "stop", geometry, frame)
    table = RewardRunner(RewardConfig.model_validate({name: options})).score([rollout])
    assert not table.failures
    return None if math.isnan(table.total[0]) else float(table.total[0])


def answered(text: str, thinking: str = "Let me look.") -> str:
    return f"<think>{thinking}</think><answer>{text}</answer>"


# iou: golden values


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (BOX_RELATIVE, 1.0),
        ('{"bbox_2d": [100, 100, 350, 600]}', 1.0),
        ("[100, 100, 225, 600]", 0.5),
        ("[225, 100, 475, 600]", 1 / 3),
        ("[225, 350, 475, 850]", 1 / 7),
        ("[350, 100, 600, 600]", 0.0),  # shares an edge
        ("[100, 100, 100, 100]", 0.0),  # a point
        ("[350, 600, 100, 100]", 0.0),  # corners swapped
        ("[350, 100, 100, 600]", 0.0),  # one axis swapped
        ("[0, 0, 1000, 1000]", 0.125),  # the whole image: 100 × 100 of 400 × 200
        ("[-5000, -5000, 9000, 9000]", 0.125),  # cut to the image
        ("100, 100, 350, 600", 0.0),  # no brackets, no box
        ("nothing there", 0.0),
        ("", 0.0),
    ],
)
def test_iou_of_one_box(answer: str, value: float) -> None:
    assert score("iou", answered(answer), {"boxes": [BOX]}) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        ("original_px", "[40, 20, 140, 120]"),
        ("resized_px", "[78.4, 39.2, 274.4, 235.2]"),
        ("relative_1000", "[100, 100, 350, 600]"),
        ("relative_1", "[0.1, 0.1, 0.35, 0.6]"),
    ],
)
def test_iou_reads_boxes_in_the_models_frame(frame: str, box: str) -> None:
    geometry = (ImageGeometry((400, 200), (784, 392), 14, 2),)
    values = {
        other.value: score("iou", answered(box), {"boxes": [BOX]}, frame=other.value, geometry=geometry)
        for other in Frame
    }
    assert values.pop(frame) == pytest.approx(1.0)
    assert max(value or 0.0 for value in values.values()) < 0.5


def test_iou_of_a_one_pixel_box_with_itself_is_one() -> None:
    target = {"boxes": [[10, 10, 11, 200]]}
    assert score("iou", answered("[10, 10, 11, 200]"), target, frame="original_px") == 1.0


def test_iou_without_target_boxes_does_not_apply() -> None:
    assert score("iou", answered(BOX_RELATIVE), {"answer": "red"}) is None
    assert score("iou", answered(BOX_RELATIVE), {"boxes": []}) is None
    assert score("iou", answered(BOX_RELATIVE), {"answer": "red"}, geometry=()) is None


def test_iou_refuses_rows_without_image() -> None:
    with pytest.raises(RewardFailure, match="no image"):
        score("iou", answered(BOX_RELATIVE), {"boxes": [BOX]}, geometry=())


def test_iou_reads_boxes_of_the_first_of_several_images() -> None:
    other = ImageGeometry(original_size=(999, 50), model_size=(980, 56), patch_size=14, merge_size=2)
    alone = score("iou", answered(BOX_RELATIVE), {"boxes": [BOX]}, geometry=(GEOMETRY,))
    assert alone == 1.0
    assert score("iou", answered(BOX_RELATIVE), {"boxes": [BOX]}, geometry=(GEOMETRY, other)) == alone
    assert score("iou", answered(BOX_RELATIVE), {"boxes": [BOX]}, geometry=(other, GEOMETRY)) != alone


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], [["a", "b", "c", "d"]], [[0, 0, math.nan, 1]], "[1, 2, 3, 4]", [None]])
def test_a_broken_target_is_a_failure_and_not_a_zero(boxes: Any) -> None:
    with pytest.raises(RewardFailure, match="BoxError"):
        score("iou", answered(BOX_RELATIVE), {"boxes": boxes})


def test_iou_threshold() -> None:
    half = answered("[100, 100, 225, 600]")
    assert score("iou", half, {"boxes": [BOX]}, threshold=0.5) == pytest.approx(0.5)
    assert score("iou", half, {"boxes": [BOX]}, threshold=0.51) == 0.0


def test_iou_of_several_boxes_matches_one_to_one_at_best() -> None:
    targets = {"boxes": [[0, 0, 100, 100], [100, 0, 200, 100]]}
    both = "[[0, 0, 100, 100], [100, 0, 200, 100]]"
    assert score("iou", answered(both), targets, frame="original_px") == 1.0
    assert score("iou", answered("[100, 0, 200, 100] [0, 0, 100, 100]"), targets, frame="original_px") == 1.0
    assert score("iou", answered("[0, 0, 100, 100]"), targets, frame="original_px") == 0.5
    assert score("iou", answered("[0, 0, 100, 100] [0, 0, 100, 100]"), targets, frame="original_px") == 0.5
    # Greedy would pair (A, first) at 2/3 and leave (B, second) at 0; the best pairing is worth 1/2 + 1/2.
    targets = {"boxes": [[0, 0, 60, 100], [60, 0, 120, 100]]}
    wide_then_left = "[0, 0, 90, 100] [0, 0, 120, 100]"
    assert score("iou", answered(wide_then_left), targets, frame="original_px") == pytest.approx((2 / 3 + 0.5) / 2)


# iou: attempts to fool it


def test_naming_many_boxes_does_not_pay() -> None:
    flood = " ".join(f"[{x}, 100, {x + 250}, 600]" for x in range(0, 750, 50))
    assert BOX_RELATIVE in flood
    flooded = score("iou", answered(flood), {"boxes": [BOX]})
    assert flooded == pytest.approx(1 / 15)
    assert score("iou", answered(f"{BOX_RELATIVE} {BOX_RELATIVE}"), {"boxes": [BOX]}) == 0.5


def test_order_of_boxes_does_not_matter() -> None:
    first = score("iou", answered(f"{BOX_RELATIVE} [0, 0, 50, 50] [1, 1, 60, 60]"), {"boxes": [BOX]})
    last = score("iou", answered(f"[0, 0, 50, 50] [1, 1, 60, 60] {BOX_RELATIVE}"), {"boxes": [BOX]})
    assert first == last == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "completion",
    [
        f"<think>{BOX_RELATIVE}</think>",
        f"<think>{BOX_RELATIVE}</think><answer></answer>",
        f"<think><answer>{BOX_RELATIVE}</answer></think><answer>none</answer>",
        f"<think><answer>{BOX_RELATIVE}</answer></think>",
        f"<think><answer>{BOX_RELATIVE}</answer>",
        f"{BOX_RELATIVE}",
        f"<answer>{BOX_RELATIVE}</answer><answer>[0, 0, 10, 10]</answer>",
        f"<answer>{BOX_RELATIVE}",
        "<answer>[[100, 100], [350, 600]]</answer>",
        "<answer>[100, 100, 350, 600, 700]</answer>",
        "<answer>[1e2, 1e2, 3.5e2, 6e2]</answer>",
        "<answer>[100+0, 100, 350, 600]</answer>",
    ],
)
def test_a_box_anywhere_but_in_the_last_answer_is_worth_nothing(completion: str) -> None:
    assert score("iou", completion, {"boxes": [BOX]}) == 0.0


corner = st.integers(0, 1000)
box_lists = st.lists(st.tuples(corner, corner, corner, corner), max_size=5)


@given(box_lists, st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=4))
def test_iou_is_bounded_by_the_count_and_equals_its_definition(
    given_boxes: list[tuple[int, ...]], wanted: list[tuple[int, ...]]
) -> None:
    target = {"boxes": [list(box) for box in wanted]}
    geometry = (ImageGeometry((1000, 1000), (980, 980), 14, 2),)
    text = answered(" ".join(format_box(np.array(box)) for box in given_boxes))
    value = score("iou", text, target, geometry=geometry)
    assert value is not None
    assert 0.0 <= value <= min(len(given_boxes), len(wanted)) / max(len(given_boxes), len(wanted)) + 1e-12
    if len(given_boxes) == len(wanted) == 1:
        single = Boxes.of(given_boxes, Frame.original_px).iou(Boxes.of(wanted, Frame.original_px))
        assert value == pytest.approx(single[0, 0])
    backwards = score(
        "iou",
        answered(" ".join(format_box(np.array(b)) for b in given_boxes[::-1])),
        target,
        geometry=geometry,
    )
    assert backwards == pytest.approx(value)


@given(st.tuples(corner, corner, corner, corner).filter(lambda box: box[0] < box[2] and box[1] < box[3]))
def test_iou_of_the_gold_box_is_one_in_every_frame(box: tuple[int, int, int, int]) -> None:
    gold = Boxes.of(np.array(box) * np.array([0.4, 0.2, 0.4, 0.2]), Frame.original_px)
    for frame in Frame:
        text = format_box(gold.to(frame, GEOMETRY).xyxy[0], decimals=6)
        value = score("iou", answered(text), {"boxes": gold.xyxy.tolist()}, frame=frame.value)
        assert value == pytest.approx(1.0, abs=1e-2 if frame is Frame.relative_1 else 1e-4)


# format


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>a\nb</think>\n\n<answer>\nb\n</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("junk <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> more", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a<think>a</think></think><answer>b</answer>", 0.0),
        ("<think>a</think><answer><think>x</think>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion: str, value: float) -> None:
    assert score("format", completion, {}) == value


def test_format_with_other_tags() -> None:
    text = "<info>a</info><think>b</think><answer>c</answer>"
    assert score("format", text, {}, tags=["info", "think", "answer"]) == 1.0
    assert score("format", text, {}, tags=["think", "answer"]) == 0.0


# exact


@pytest.mark.parametrize(
    ("answer", "wanted", "value"),
    [
        ("red", "red", 1.0),
        ("  Red ", "red", 1.0),
        ("RED.", "red", 1.0),
        ("a  red\n cat", "A red cat.", 1.0),
        ("Straße", "STRASSE", 1.0),
        ("3", 3, 1.0),
        ("red or blue", "red", 0.0),
        ("red, blue, green", "red", 0.0),
        ("red..", "red", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
        ("not red", "red", 0.0),
    ],
)
def test_exact(answer: str, wanted: Any, value: float) -> None:
    assert score("exact", answered(answer), {"answer": wanted}) == value


def test_exact_needs_an_answer_block_and_a_target() -> None:
    assert score("exact", "red", {"answer": "red"}) == 0.0
    assert score("exact", "<think><answer>red</answer></think>", {"answer": "red"}) == 0.0
    assert score("exact", answered("red"), {"boxes": [BOX]}) is None


# The period is the one thing that is dropped once; texts with several are covered by the golden values.
plain = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]))


@given(plain)
def test_normalise_is_idempotent_and_ignores_case_and_spacing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f" {text}\n") == once
    assert normalise(f"{text}.") == once
    assert once == once.casefold()


# set_match


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("red cube, blue ball", {"items": ["red cube", "blue ball"]}, 1.0),
        ("Blue ball; RED cube.", {"items": ["red cube", "blue ball"]}, 1.0),
        ("red cube", {"items": ["red cube", "blue ball"]}, 2 / 3),
        ("red cube, red cube", {"items": ["red cube", "blue ball"]}, 0.5),
        ("red cube, red cube", {"items": ["red cube", "red cube"]}, 1.0),
        ("red cube, blue ball, cat, dog", {"items": ["red cube", "blue ball"]}, 2 / 3),
        ("red cube blue ball", {"items": ["red cube", "blue ball"]}, 0.0),
        ("a, b", {"answer": "b, a"}, 1.0),
        ("a, b", {"caption": "b; a."}, 1.0),
        ("a", {"items": ["a"], "answer": "x", "caption": "y"}, 1.0),
        ("x", {"answer": "x", "caption": "y"}, 1.0),
        ("1", {"items": [1]}, 1.0),
        ("", {"items": []}, 1.0),
        ("a", {"items": []}, 0.0),
        (", ;", {"items": ["a"]}, 0.0),
    ],
)
def test_set_match(answer: str, target: dict[str, Any], value: float) -> None:
    assert score("set_match", answered(answer), target) == pytest.approx(value)


def test_items_are_counted_after_they_are_normalised() -> None:
    assert items_of(["A, a.;b,,  ;", "a"]) == {"a": 3, "b": 1}
    assert not items_of(["," * 100_000])


def test_set_match_needs_an_answer_block_and_a_target() -> None:
    assert score("set_match", "a, b", {"items": ["a", "b"]}) == 0.0
    assert score("set_match", "<think>a, b</think>", {"items": ["a", "b"]}) == 0.0
    assert score("set_match", answered("a"), {"boxes": [BOX]}) is None


words = st.lists(st.sampled_from(["red cube", "blue ball", "cat", "dog"]), min_size=1, max_size=6)


@given(words, words, st.randoms())
def test_set_match_is_symmetric_and_order_free_and_one_only_when_equal(
    first: list[str], second: list[str], random: Any
) -> None:
    shuffled = list(first)
    random.shuffle(shuffled)
    value = score("set_match", answered(", ".join(first)), {"items": second})
    assert value == score("set_match", answered(", ".join(second)), {"items": first})
    assert value == score("set_match", answered("; ".join(shuffled)), {"items": second})
    assert (value == 1.0) == (sorted(first) == sorted(second))


# All of them


FULL_TARGET = {"boxes": [BOX], "answer": "red", "items": ["red cube"], "caption": "red cube"}
GOLD = {
    "iou": answered(BOX_RELATIVE),
    "format": answered("anything"),
    "exact": answered("red"),
    "set_match": answered("red cube"),
}
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
PIECES = [
    "[",
    "]",
    "1",
    "-",
    ".",
    ",",
    ";",
    "\n",
    "\x00",
    "9" * 400,
    "{}",
    '{"bbox_2d": ',
    "red",
    BOX_RELATIVE,
]
STRANGE = ["[1e999, nan, inf, 0]", "[٣, ٤, ٥, ٦]", "😀", "\ud800", "é"]
pieces = st.sampled_from([*TAGS, *PIECES, *STRANGE])
hostile = st.one_of(
    st.lists(pieces, max_size=40).map("".join),
    st.text(max_size=200),
    st.text(st.sampled_from(string.printable), max_size=200).map(answered),
)


def test_the_rewards_of_this_file_are_built_in() -> None:
    # The others have files of their own; `mmreason reward check` is run on all of them in test_reward_check.py.
    assert set(GOLD) <= {name for name, spec in REWARDS if spec.function.__module__.startswith("mmreason.")}


@pytest.mark.parametrize("name", sorted(GOLD))
def test_gold_is_the_highest_and_empty_the_lowest(name: str) -> None:
    low, high = REWARDS.get(name).range
    assert score(name, GOLD[name], FULL_TARGET) == pytest.approx(high)
    assert score(name, "", FULL_TARGET) == low
    assert REWARDS.get(name).summary
    assert REWARDS.get(name).source


@settings(max_examples=300, deadline=None)
@given(hostile)
def test_hostile_text_never_fails_or_leaves_the_range(text: str) -> None:
    row = Row("row", (), (), FULL_TARGET)
    rollout = Rollout(row, 0, (), text, extract_answer(text), 0, "stop", (GEOMETRY,), "relative_1000")
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in GOLD}))
    first, again = runner.score([rollout]), runner.score([rollout])
    assert not runner.failures
    assert np.isfinite(first.values).all()
    np.testing.assert_array_equal(first.values, again.values)


@pytest.mark.parametrize(
    "unit",
    [
        "<answer>",
        "<think></think>",
        "[1, 2, 3, 4] ",
        "[",
        "1,",
        "[1,2,3,",
        " ",
        ", ",
        "<",
        "a",
        "\u3000",
        "é;",
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_megabyte_of_hostile_text_costs_little(unit: str, wrapped: bool) -> None:
    text = unit * (1_000_000 // len(unit))
    text = answered(text) if wrapped else text
    row = Row("row", (), (), FULL_TARGET)
    rollout = Rollout(row, 0, (), text, extract_answer(text), 0, "stop", (GEOMETRY,), "relative_1000")
    runner = RewardRunner(RewardConfig.model_validate({name: {} for name in GOLD}))
    started = time.process_time()
    table = runner.score([rollout])
    assert time.process_time() - started < 2.0  # quadratic time would be minutes; the rest is slack for slow machines
    assert not table.failures
