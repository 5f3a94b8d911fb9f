"""The grounding rewards: golden values, properties, and attempts to fool them.

Rewards are called through `RewardRunner`, as in training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from grounding_answers import (
    BOX_REWARDS,
    DETECTION,
    FAR,
    GEOMETRY,
    HALF_A,
    SETS,
    SQUARE,
    A,
    B,
    Box,
    C,
    answered,
    listed,
    score,
    table,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mmreason.rewards.grounding_rewards as grounding
from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, RewardFailure
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rewards.detection_weighted import greedy_pairs
from mmreason.scoring import REWARDS, RewardRunner
from mmreason.text import extract_answer

# ---------------------------------------------------------------------------------------- one box: golden values


@pytest.mark.parametrize(
    ("box", "value"),
    [
        (A, 1.0),
        (HALF_A, 0.5),
        ([300, 100, 500, 300], 0.0),  # side by side: the hull is full
        ([500, 100, 700, 300], -1 / 3),  # hull 600 × 200, a third of it empty
        ([300, 300, 500, 500], -0.5),
        ([0, 0, 1000, 1000], 0.04),  # the whole image: hull = union
        ([300, 300, 100, 100], -1.0),  # swapped
        ([200, 200, 200, 200], -1.0),  # a point
        ([2000, 2000, 3000, 3000], -1.0),  # outside the image
    ],
)
def test_giou_of_one_box(box: Box, value: float) -> None:
    assert score("giou", listed([box]), {"boxes": [A]}) == pytest.approx(value)


def test_giou_of_several_boxes_pays_one_for_each_that_is_missing_or_too_many() -> None:
    assert score("giou", listed([A, B]), {"boxes": [B, A]}) == 1.0
    assert score("giou", listed([A]), {"boxes": [A, B]}) == 0.0
    assert score("giou", listed([A, FAR, FAR]), {"boxes": [A]}) == pytest.approx(-1 / 3)
    assert score("giou", answered("none"), {"boxes": [A]}) == -1.0
    assert score("giou", "", {"boxes": [A]}) == -1.0


def test_iou_above() -> None:
    near = [100, 100, 300, 290]  # IoU .95
    target = {"boxes": [A]}
    assert score("iou_above", listed([near]), target) == pytest.approx(0.95)
    assert score("iou_above", listed([near]), target, hard=True) == 1.0
    assert score("iou_above", listed([HALF_A]), target) == 0.0
    assert score("iou_above", listed([HALF_A]), target, threshold=0.5) == 0.0  # strictly above
    assert score("iou_above", listed([HALF_A]), target, threshold=0.49, hard=True) == 1.0
    assert score("iou_above", listed([near, B]), {"boxes": [A, B, C]}) == pytest.approx(1.95 / 3)
    assert score("iou_above", listed([near, near]), target, hard=True) == 0.5
    with pytest.raises(ConfigError, match="threshold"):
        score("iou_above", "", target, threshold=1.0)


@pytest.mark.parametrize(
    ("accuracy", "hit", "miss"),
    [
        (0.7, 0.8 * 0.65, -0.6),
        (0.69, 0.8 * 0.85, -0.5),
        (0.45, 0.8 * 0.85, -0.5),
        (0.3, 0.8, -0.4),
        (0.29, 0.96, -0.2),
        (0.1, 0.96, -0.2),
        (0.09, 1.0, 0.0),  # .8 × 1.4 is capped
        (None, 1.0, 0.0),
    ],
)
def test_knowledge_iou_levels_of_karl(accuracy: float | None, hit: float, miss: float) -> None:
    target = {"boxes": [A], "recognition_accuracy": accuracy}
    assert score("knowledge_iou", listed([[100, 100, 300, 260]]), target) == pytest.approx(hit)  # IoU .8
    assert score("knowledge_iou", listed([HALF_A]), target) == miss
    assert score("knowledge_iou", answered("I do not know"), target) == miss
    assert score("knowledge_iou", "no answer block", target) == 0.0
    assert score("knowledge_iou", "no answer block", target, fine_silence=True) == miss


def test_knowledge_iou_threshold_is_strict_and_its_accuracy_checked() -> None:
    target = {"boxes": [A], "recognition_accuracy": 0.3}
    assert score("knowledge_iou", listed([[100, 100, 300, 230]]), target) == -0.4  # IoU .65 exactly
    assert score("knowledge_iou", listed([[100, 100, 300, 231]]), target) == pytest.approx(0.655)
    with pytest.raises(RewardFailure, match="recognition_accuracy"):
        score("knowledge_iou", listed([A]), {"boxes": [A], "recognition_accuracy": 70})


# -------------------------------------------------------------------------------------- sets of boxes: golden values


@pytest.mark.parametrize(
    ("boxes", "wanted", "value"),
    [
        ([A], [A], 1.0),
        ([A, B], [A], 2 / 3),  # Rex-Thinker: .9 × 2/3 + .1 = .7 with the format
        ([B, A], [A, B], 1.0),
        ([A], [A, B], 2 / 3),
        ([A, A], [A, B], 0.0),  # a duplicate
        ([A, B, B], [A, B], 0.0),
        ([FAR], [A], 0.0),
        ([[100, 100, 300, 301]], [A], 0.0),  # not a copy
        ([[100.4, 100, 300, 299.5]], [A], 1.0),  # rounding is no error
        ([], [A], 0.0),
        ([A], [], 0.0),
    ],
)
def test_box_set_f1(boxes: list[Box], wanted: list[Box], value: float) -> None:
    assert score("box_set_f1", listed(boxes), {"boxes": wanted}) == pytest.approx(value)


def test_box_set_f1_accepts_what_rounding_in_the_models_frame_makes_of_a_box() -> None:
    box = [33.3, 21.7, 141.1, 120.9]
    for frame, decimals in [
        (Frame.resized_px, 0),
        (Frame.relative_1000, 0),
        (Frame.relative_1, 3),
        (Frame.original_px, 0),
    ]:
        written = np.round(Boxes.of(box, Frame.original_px).to(frame, GEOMETRY).xyxy, decimals)
        text = listed(written.tolist())
        off = listed((written + 2 * 10.0**-decimals).tolist())
        assert score("box_set_f1", text, {"boxes": [box]}, frame=frame.value, geometry=(GEOMETRY,)) == 1.0
        assert score("box_set_f1", off, {"boxes": [box]}, frame=frame.value, geometry=(GEOMETRY,)) == 0.0
    assert score("box_set_f1", listed([[100, 100, 300, 300.4]]), {"boxes": [A]}, tolerance=0.0) == 0.0


@pytest.mark.parametrize(
    ("boxes", "wanted", "value"),
    [
        ([A, B], [B, A], 1.0),
        ([A, B], [A], 2 / 3 * 1 / 2),
        ([A], [A, B], 2 / 3),
        ([[100, 100, 300, 230]], [A], 0.4),  # IoU .65: four of ten thresholds
        ([HALF_A], [A], 0.1),
        ([A, A], [A], 1 / 3),
        ([], [A], 0.0),
    ],
)
def test_density_f1(boxes: list[Box], wanted: list[Box], value: float) -> None:
    assert score("density_f1", listed(boxes), {"boxes": wanted}) == pytest.approx(value)


CATS = {"boxes": [A, B], "labels": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("boxes", "labels", "value"),
    [
        ([B, A], ["dog", "cat"], 1.0),
        ([B, A], [" DOG", "Cat\n"], 1.0),
        ([HALF_A, B], ["cat", "dog"], 0.75),
        ([A, B], ["dog", "cat"], 0.0),
        ([A], ["cat"], 0.5),
        ([A, B, B], ["cat", "dog", "dog"], 2 / 3),
        ([A, B, FAR], ["cat", "dog", "unicorn"], 2 / 3),
        ([A, B], ["cat"], 0.5),  # one without label
        ([], [], 0.0),
    ],
)
def test_detection_iou(boxes: list[Box], labels: list[str], value: float) -> None:
    assert score("detection_iou", listed(boxes, labels), CATS) == pytest.approx(value)


def test_detection_iou_takes_the_best_matching_and_no_labels_where_none_are_wanted() -> None:
    # Greedy would pair the wide box with the left one at 2/3 and leave nothing for the other.
    target = {"boxes": [[0, 0, 60, 100], [60, 0, 120, 100]]}
    text = listed([[0, 0, 90, 100], [0, 0, 120, 100]], ["x", "y"])
    assert score("detection_iou", text, target) == pytest.approx((2 / 3 + 0.5) / 2)
    assert score("iou", text, target) == pytest.approx((2 / 3 + 0.5) / 2)


GOLDEN_WEIGHTED = listed([[100, 100, 300, 260], [500, 100, 700, 220], FAR], ["cat", "cat", "cat"])


def test_detection_weighted_golden_value_of_vlm_r1() -> None:
    """Two wanted, three given: IoU .8 with the right label, IoU .6 with the wrong one, one nowhere."""
    assert score("detection_weighted", GOLDEN_WEIGHTED, CATS, count_control=False) == pytest.approx(0.53)
    scored = table("detection_weighted", GOLDEN_WEIGHTED, CATS)
    assert scored.total[0] == pytest.approx(0.53 * 2 / 3)
    parts = {name: float(values[0]) for name, values in scored.parts.items()}
    assert parts == {
        "detection_weighted/position": pytest.approx(0.4),
        "detection_weighted/label": pytest.approx(0.5),
        "detection_weighted/completeness": pytest.approx(5 / 6),
    }
    weights = {"position": 1.0, "label": 2.0, "completeness": 1.0, "count_control": False}
    assert score("detection_weighted", GOLDEN_WEIGHTED, CATS, **weights) == pytest.approx((0.4 + 1.0 + 5 / 6) / 4)


def test_detection_weighted_matches_by_falling_iou_and_wrong_labels_first() -> None:
    ious = np.array([[0.9, 0.6], [0.9, 0.6], [0.4, 0.9]])
    right = np.array([[True, True], [False, False], [True, True]])
    assert sorted(greedy_pairs(ious, right, 0.5)) == [(1, 0), (2, 1)]
    assert greedy_pairs(ious, right, 0.95) == []
    with pytest.raises(RewardFailure, match="weight above 0"):
        score("detection_weighted", "", CATS, position=0.0, completeness=0.0)


@pytest.mark.parametrize(
    ("boxes", "labels", "value"),
    [
        ([B, A], ["dog", "cat"], 1.0),
        ([A], ["cat"], 0.5),
        ([A, B], ["dog", "cat"], 0.0),
        # One of two classes, and a false alarm in both: precision 1/2 at every recall.
        ([A, FAR], ["cat", "unicorn"], 0.25),
        ([A, B, FAR], ["cat", "dog", "unicorn"], 0.5 * 2 / 3),
        ([A, B, B], ["cat", "dog", "dog"], 0.75 * 2 / 3),
        ([A, B, FAR], ["cat", "dog"], 0.5 * 2 / 3),  # without label
        ([HALF_A, B], ["cat", "dog"], 0.55),
        ([], [], 0.0),
    ],
)
def test_detection_map(boxes: list[Box], labels: list[str], value: float) -> None:
    assert score("detection_map", listed(boxes, labels), CATS) == pytest.approx(value)


def test_detection_map_options_and_parts() -> None:
    boxes, labels = [HALF_A, B, FAR], ["cat", "dog", "dog"]
    assert score("detection_map", listed(boxes, labels), CATS, threshold=0.5) == pytest.approx(0.75 * 2 / 3)
    assert score("detection_map", listed(boxes, labels), CATS, threshold=0.5, count_control=False) == pytest.approx(
        0.75
    )
    scored = table("detection_map", listed(boxes, labels), CATS, threshold=0.5)
    assert scored.parts["detection_map/map"][0] == pytest.approx(0.75)
    assert scored.parts["detection_map/count_factor"][0] == pytest.approx(2 / 3)
    # A false alarm below the right boxes in confidence costs its place in the count only.
    sure = listed(boxes, labels, confidence=[0.9, 0.9, 0.1])
    assert score("detection_map", sure, CATS, threshold=0.5) == pytest.approx(2 / 3)
    assert score("detection_map", listed([A, B]), {"boxes": [B, A]}) == 1.0


def test_a_right_box_is_worth_as_little_before_nine_wrong_ones_as_after_them() -> None:
    wrong = [[400 + 50 * n, 500, 440 + 50 * n, 540] for n in range(9)]
    assert score("detection_map", listed([A, *wrong]), {"boxes": [A]}) == pytest.approx(0.1 * 0.1)
    assert score("detection_map", listed([*wrong, A]), {"boxes": [A]}) == pytest.approx(0.1 * 0.1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (answered("[]"), 1.0),
        (answered("```json\n[]\n```"), 1.0),
        (answered("None"), 1.0),
        (listed([A]), 0.0),
        (answered("there is nothing that I can read as a box"), 0.0),  # VLM-R1 pays 1.0 for this
        (answered('{"bbox_2d": [1, 2, 3'), 0.0),
        (answered(""), 0.0),
        ("<think>[]</think>", 0.0),
        ("", 0.0),
    ],
)
def test_where_nothing_is_wanted_only_saying_so_counts(name: str, text: str, value: float) -> None:
    assert score(name, text, {"boxes": []}) == value
    assert score("abstention", text, {"boxes": []}) == value


def test_saying_nothing_is_worth_nothing_where_something_is_wanted() -> None:
    for name in BOX_REWARDS:
        assert score(name, answered("[]"), {"boxes": [A]}) in (0.0, -1.0)
    assert score("abstention", answered("[]"), {"boxes": [A]}) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[200, 200]", 1.0),
        ('{"point_2d": [200, 200], "label": "cat"}', 1.0),
        ("[100, 300]", 1.0),  # on the corner
        ("[99, 300]", 0.0),
        ("[200, 200] [201, 201]", 0.5),
        ("[200, 200] [900, 900]", 0.5),
        ("[100, 100, 300, 300]", 0.0),  # a box
        ("[200, 200, 200]", 0.0),
        ("200, 200", 0.0),
        ("", 0.0),
    ],
)
def test_point_in_box(text: str, value: float) -> None:
    assert score("point_in_box", answered(text), {"boxes": [A]}) == value


def test_point_in_box_wants_a_point_for_each_box_and_converts_frames() -> None:
    assert score("point_in_box", answered("[200, 200] [600, 200]"), {"boxes": [B, A]}) == 1.0
    assert score("point_in_box", answered("[200, 200] [210, 200]"), {"boxes": [B, A]}) == 0.5
    wide = {"boxes": [[300, 100, 400, 200]]}
    assert score("point_in_box", answered("[900, 900]"), wide, frame="relative_1000", geometry=(GEOMETRY,)) == 1.0
    assert score("point_in_box", answered("[350, 150]"), wide, frame="relative_1000", geometry=(GEOMETRY,)) == 0.0
    # Outside the image is outside a box at its border.
    assert score("point_in_box", answered("[1200, 900]"), wide, frame="relative_1000", geometry=(GEOMETRY,)) == 0.0


# ------------------------------------------------------------------------------------------------ properties


corner = st.integers(0, 1000)
any_box = st.lists(corner, min_size=4, max_size=4)
proper_box = st.tuples(corner, corner, corner, corner).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 5, max(c[1], c[3]) + 5]
)
wanted_lists = st.lists(proper_box, min_size=1, max_size=4, unique_by=tuple)
names = st.sampled_from(["cat", "dog", "unicorn"])
ROOM = (ImageGeometry((1005, 1005), (980, 980), 14, 2),)


@st.composite
def detections(draw: st.DrawFn) -> tuple[list[Box], list[str], list[float], dict[str, Any]]:
    """Boxes, labels and confidences of an answer, some of them right, and the target."""
    wanted = draw(wanted_lists)
    wanted_labels = draw(st.lists(names, min_size=len(wanted), max_size=len(wanted)))
    boxes = draw(st.lists(st.one_of(st.sampled_from(wanted), any_box), max_size=6))
    labels = draw(st.lists(names, min_size=len(boxes), max_size=len(boxes)))
    confidences = draw(st.lists(st.sampled_from([0.2, 0.7, 1.0]), min_size=len(boxes), max_size=len(boxes)))
    return boxes, labels, confidences, {"boxes": wanted, "labels": wanted_labels}


@settings(max_examples=60, deadline=None)
@given(detections(), st.randoms(use_true_random=False), st.sampled_from(BOX_REWARDS))
def test_values_lie_in_the_range_and_no_order_changes_a_bit(
    case: tuple[list[Box], list[str], list[float], dict[str, Any]], shuffler: random.Random, name: str
) -> None:
    boxes, labels, confidences, target = case
    value = score(name, listed(boxes, labels, confidence=confidences), target, geometry=ROOM)
    low, high = REWARDS.get(name).range
    assert value is not None
    assert low <= value <= high
    order = list(range(len(boxes)))
    shuffler.shuffle(order)
    shuffled = listed([boxes[i] for i in order], [labels[i] for i in order], confidence=[confidences[i] for i in order])
    turned = list(range(len(target["boxes"])))
    shuffler.shuffle(turned)
    same_target = {key: [values[i] for i in turned] for key, values in target.items()}
    assert score(name, shuffled, same_target, geometry=ROOM) == value


@settings(max_examples=60, deadline=None)
@given(detections(), st.sampled_from(BOX_REWARDS))
def test_transposing_everything_changes_nothing(
    case: tuple[list[Box], list[str], list[float], dict[str, Any]], name: str
) -> None:
    boxes, labels, _, target = case

    def transposed(xyxy: Sequence[Box]) -> list[Box]:
        return [[box[1], box[0], box[3], box[2]] for box in xyxy]

    value = score(name, listed(boxes, labels), target, geometry=ROOM)
    turned = {**target, "boxes": transposed(target["boxes"])}
    assert score(name, listed(transposed(boxes), labels), turned, geometry=ROOM) == pytest.approx(value)


@settings(max_examples=40, deadline=None)
@given(wanted_lists, wanted_lists, st.sampled_from(["iou", "giou", "iou_above", "box_set_f1", "detection_iou"]))
def test_swapping_given_and_wanted_changes_nothing(first: list[Box], second: list[Box], name: str) -> None:
    forth = score(name, listed(first), {"boxes": second}, geometry=ROOM)
    back = score(name, listed(second), {"boxes": first}, geometry=ROOM)
    assert forth == pytest.approx(back)


@settings(max_examples=40, deadline=None)
@given(wanted_lists, st.data(), st.sampled_from(BOX_REWARDS))
def test_gold_is_the_highest_and_every_known_trick_is_below_it(
    wanted: list[Box], data: st.DataObject, name: str
) -> None:
    labels = data.draw(st.lists(st.sampled_from(["cat", "dog"]), min_size=len(wanted), max_size=len(wanted)))
    target = {"boxes": wanted, "labels": labels}
    gold = score(name, listed(wanted, labels), target, geometry=ROOM)
    assert gold == pytest.approx(REWARDS.get(name).range[1])
    grid = [[x, y, x + 200, y + 200] for x in range(0, 1000, 200) for y in range(0, 1000, 200)]
    whole = [[0, 0, 1005, 1005]]
    tricks = {
        "every box at once": (wanted + grid, [*labels, *(["cat"] * len(grid))]),
        "every box, gold last": (grid + wanted, [*(["dog"] * len(grid)), *labels]),
        "gold twice": (wanted * 2, labels * 2),
        "gold and one with an unknown label": ([*wanted, [0, 0, 9, 9]], [*labels, "unicorn"]),
        "gold and the whole image": (wanted + whole, [*labels, "cat"]),
        "whole image": (whole * len(wanted), labels) if len(wanted) == 1 else (whole, labels[:1]),
        "corners swapped": ([[b[2], b[3], b[0], b[1]] for b in wanted], labels),
        "gold with every label": (wanted * 3, ["cat"] * len(wanted) + ["dog"] * len(wanted) + ["bird"] * len(wanted)),
    }
    for trick, (boxes, given_labels) in tricks.items():
        value = score(name, listed(boxes, given_labels), target, geometry=ROOM)
        assert value is not None
        # KARL's credit of 1.4 is capped at 1, so there a small excess beside the gold boxes is free.
        assert value <= gold if name == "knowledge_iou" else value < gold, trick
        if trick.startswith("every box"):
            assert value <= 0.35, trick


@settings(max_examples=60, deadline=None)
@given(detections())
def test_a_box_with_an_unknown_label_never_raises_a_detection_reward(
    case: tuple[list[Box], list[str], list[float], dict[str, Any]],
) -> None:
    boxes, labels, confidences, target = case
    more = listed([*boxes, [1, 1, 2, 2]], [*labels, "martian"], confidence=[*confidences, 1.0])
    for name in DETECTION:
        before = score(name, listed(boxes, labels, confidence=confidences), target, geometry=ROOM)
        after = score(name, more, target, geometry=ROOM)
        assert before is not None
        assert after is not None
        assert after <= before + 1e-12
        if name == "detection_map" and before > 0:
            assert after < before


# Boxes that do not touch: otherwise a second copy may cover a second wanted box, and then it is no mere repetition.
cells = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5, unique=True)


@settings(max_examples=40, deadline=None)
@given(cells, st.data())
def test_repeating_a_box_never_raises_a_detection_reward(places: list[tuple[int, int]], data: st.DataObject) -> None:
    boxes = [[100 * x, 100 * y, 100 * x + 90, 100 * y + 90] for x, y in places]
    target = {"boxes": boxes, "labels": data.draw(st.lists(names, min_size=len(boxes), max_size=len(boxes)))}
    found = data.draw(st.lists(st.sampled_from(boxes), min_size=1, max_size=5))
    labels = data.draw(st.lists(names, min_size=len(found), max_size=len(found)))
    for name in DETECTION:
        before = score(name, listed(found, labels), target, geometry=ROOM)
        after = score(name, listed([*found, found[0]], [*labels, labels[0]]), target, geometry=ROOM)
        assert before is not None
        assert after is not None
        assert after <= before + 1e-12


@pytest.mark.parametrize("name", BOX_REWARDS)
def test_a_box_anywhere_but_in_the_last_answer_is_worth_nothing(name: str) -> None:
    lowest = {"giou": -1.0}.get(name, 0.0)
    for completion in [
        f"<think>{A}</think>",
        f"<think>{A}</think><answer></answer>",
        f"<think><answer>{A}</answer></think><answer>cannot say</answer>",
        f"{A}",
        f"<answer>{A}</answer><answer>[950, 950, 960, 960]</answer>",
        f"<answer>{A}",
        f"<answer>{A[0]}, {A[1]}, {A[2]}, {A[3]}</answer>",
    ]:
        value = score(name, completion, {"boxes": [A]})
        assert value == lowest or (name == "giou" and value is not None and value < -0.5)


# ------------------------------------------------------------------------------------------------ hostile text


PIECES = [
    *'[]{}:,"\\1-.\n',
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "[100, 100, 300, 300]",
    '{"bbox_2d": [100, 100, 300, 300], "label": "cat"}',
    '{"bbox_2d": [100, 100, 300, 300], "label": "cat", "image_index": 7, "confidence": 0.5},',
    '{"bbox_2d": [300, 300, 100',
    "[200, 200]",
    "9" * 300,
    "999999999",
    "-1e999",
    "none",
    "[]",
    "\ud800",
    "\x00",
    "😀",
]


def test_hostile_completions_stay_in_range() -> None:
    source = random.Random(5)
    targets = [{"boxes": [A, B], "labels": ["cat", "dog"]}, {"boxes": []}, {"boxes": [A], "image_index": [0]}]
    rollouts = []
    for index in range(1500):
        text = "".join(source.choices(PIECES, k=source.randrange(25)))
        text = f"<answer>{text}</answer>" if index % 2 else text
        row = Row(str(index), (), (), targets[index % 3])
        rollouts.append(Rollout(row, 0, (), text, extract_answer(text), 0, "stop", (SQUARE,), "relative_1000"))
    every = [*BOX_REWARDS, "point_in_box", "abstention"]
    scored = RewardRunner(RewardConfig.model_validate({name: {} for name in every})).score(rollouts)
    assert not scored.failures  # neither an exception nor a value out of range
    values = scored.values[~np.isnan(scored.values)]
    assert len(np.unique(values)) > 20  # not all so broken that everything is 0


@pytest.mark.parametrize("name", grounding.__all__)
def test_every_reward_says_what_it_is(name: str) -> None:
    spec = REWARDS.get(name)
    assert spec.summary
    assert "arXiv" in spec.source
    assert "Formula:" in (spec.function.__doc__ or "")
