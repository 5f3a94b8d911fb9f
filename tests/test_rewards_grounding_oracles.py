"""The grounding rewards beside torchvision and pycocotools on random cases."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou, generalized_box_iou

import mmreason.rewards.grounding_rewards as grounding
from mmreason.boxes import Boxes, Frame
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import PlacedBoxes, best_sum, most_pairs, pair_gious, pair_ious
from mmreason.rewards.detection_map import average_precision
from mmreason.rewards.iou import iou


def random_boxes(rng: np.random.Generator, num: int, size: float = 1000.0) -> NDArray[np.float64]:
    corners = rng.uniform(0, size, (num, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def placed(boxes: NDArray[np.float64]) -> PlacedBoxes:
    num = len(boxes)
    return PlacedBoxes(Boxes.of(boxes, Frame.original_px), np.zeros(num, np.int64), (None,) * num, np.ones(num))


def test_iou_and_giou_equal_torchvision_on_forty_thousand_random_pairs() -> None:
    rng = np.random.default_rng(0)
    ours = np.concatenate([random_boxes(rng, 150), random_boxes(rng, 50, 3.0)])
    theirs = np.concatenate([random_boxes(rng, 150), ours[:50]])
    tensors = torch.tensor(ours), torch.tensor(theirs)
    np.testing.assert_allclose(pair_ious(placed(ours), placed(theirs)), box_iou(*tensors).numpy(), atol=1e-12)
    gious = pair_gious(placed(ours), placed(theirs))
    np.testing.assert_allclose(gious, generalized_box_iou(*tensors).numpy(), atol=1e-12)
    assert (gious <= pair_ious(placed(ours), placed(theirs)) + 1e-15).all()
    assert (gious[np.arange(50), 150 + np.arange(50)] == 1.0).all()


def test_one_box_rewards_equal_torchvision_on_random_answers() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = np.round(random_boxes(rng, 1000)), np.round(random_boxes(rng, 1000))
    theirs[::3] = np.clip(ours[::3] + rng.integers(-30, 30, theirs[::3].shape), 0, 1000)
    for boxes in (ours, theirs):
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    geometry = (ImageGeometry((1001, 1001), (980, 980), 14, 2),)
    ious = box_iou(torch.tensor(ours), torch.tensor(theirs)).diagonal().tolist()
    gious = generalized_box_iou(torch.tensor(ours), torch.tensor(theirs)).diagonal().tolist()
    for mine, wanted, expected, generalised in zip(ours.tolist(), theirs.tolist(), ious, gious, strict=True):
        arguments = ({"boxes": [wanted]}, str(mine), geometry, Frame.original_px)
        assert iou(*arguments) == pytest.approx(expected, abs=1e-9)
        assert grounding.detection_iou(*arguments) == pytest.approx(expected, abs=1e-9)
        assert grounding.giou(*arguments) == pytest.approx(generalised, abs=1e-9)
        assert grounding.iou_above(*arguments) == pytest.approx(expected if expected > 0.8 else 0.0, abs=1e-9)


Case = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def coco_average_precision(cases: Sequence[Case], threshold: float) -> list[float]:
    """COCO's evaluator on cases of (given boxes, confidences, wanted boxes), each a category of its own."""

    def xywh(box: NDArray[np.float64]) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    truth, found = [], []
    for category, (boxes, confidences, wanted) in enumerate(cases, start=1):
        truth += [{"category_id": category, "bbox": xywh(box)} for box in wanted]
        found += [
            {"image_id": 1, "category_id": category, "bbox": xywh(box), "score": float(confidence)}
            for box, confidence in zip(boxes, confidences, strict=True)
        ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 1}],
        "categories": [{"id": category} for category in range(1, len(cases) + 1)],
        "annotations": [
            {"id": index, "image_id": 1, "iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3], **item}
            for index, item in enumerate(truth, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluator.params.iouThrs = np.array([threshold])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [100]
        evaluator.evaluate()
        evaluator.accumulate()
    values: list[float] = evaluator.eval["precision"][0, :, :, 0, 0].mean(axis=0).tolist()
    return values


def random_case(rng: np.random.Generator) -> Case:
    """One to five wanted boxes, and up to eight given ones that lie near them or anywhere."""
    wanted = random_boxes(rng, int(rng.integers(1, 6)))
    near = wanted[rng.integers(0, len(wanted), int(rng.integers(1, 7)))]
    near = near + rng.normal(0, 25.0, near.shape)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1.0)
    given_boxes = np.concatenate([near, random_boxes(rng, int(rng.integers(0, 3)))])
    return given_boxes, rng.permutation(len(given_boxes)) / 10 + 0.1, wanted


def test_average_precision_equals_pycocotools_on_ten_thousand_random_cases() -> None:
    rng = np.random.default_rng(2)
    seen: list[float] = []
    for batch in range(40):  # the evaluator's time grows faster than the number of its categories
        threshold = (0.5, 0.75)[batch % 2]
        cases = [random_case(rng) for _ in range(250)]
        expected = coco_average_precision(cases, threshold)
        for (boxes, confidences, wanted), value in zip(cases, expected, strict=True):
            ious = Boxes.of(boxes, Frame.original_px).iou(Boxes.of(wanted, Frame.original_px))
            assert average_precision(ious, confidences, threshold) == pytest.approx(value, abs=1e-9)
        seen += expected
    assert len(seen) == 10_000
    assert np.std(seen) > 0.2  # the cases are not all alike


def test_the_order_hack_of_vlm_r1_works_on_cocos_evaluator_and_not_here() -> None:
    """One right box before or after nine wrong ones: AP 1.0 or 0.1 there, and the same low value here."""
    right = np.array([[100.0, 100, 300, 300]])
    wrong = np.array([[400.0 + 50 * n, 500, 440 + 50 * n, 540] for n in range(9)])
    orders = [np.concatenate([right, wrong]), np.concatenate([wrong, right])]
    coco_values = coco_average_precision([(order, np.ones(10), right) for order in orders], 0.5)
    assert coco_values == pytest.approx([1.0, 0.1])
    for order in orders:
        ious = Boxes.of(order, Frame.original_px).iou(Boxes.of(right, Frame.original_px))
        assert average_precision(ious, np.ones(10), 0.5) == pytest.approx(0.1)


def test_without_confidences_our_value_is_cocos_with_the_wrong_boxes_written_first() -> None:
    rng = np.random.default_rng(3)
    cases, ours = [], []
    for _ in range(500):
        wanted = np.array([[200.0 * n, 0, 200 * n + 100, 100] for n in range(int(rng.integers(1, 5)))])
        found = wanted[rng.permutation(len(wanted))[: int(rng.integers(0, len(wanted) + 1))]]
        wrong = random_boxes(rng, int(rng.integers(0, 5)), 50.0) + np.array([0, 500, 0, 500])
        boxes = np.concatenate([wrong, found])
        if len(boxes):
            ious = Boxes.of(boxes, Frame.original_px).iou(Boxes.of(wanted, Frame.original_px))
            ours.append(average_precision(ious, np.ones(len(boxes)), 0.5))
            cases.append((boxes, np.ones(len(boxes)), wanted))
    np.testing.assert_allclose(ours, coco_average_precision(cases, 0.5), atol=1e-9)


def test_matchings_are_the_best_of_all() -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        values = rng.uniform(-1, 1, (int(rng.integers(1, 5)), int(rng.integers(1, 5))))
        wide = values if values.shape[0] <= values.shape[1] else values.T
        ways = itertools.permutations(range(wide.shape[1]), wide.shape[0])
        sums = [(wide[range(len(wide)), way].sum(), (wide > 0.3)[range(len(wide)), way].sum()) for way in ways]
        assert best_sum(values) == pytest.approx(max(total for total, _ in sums))
        assert most_pairs(values > 0.3) == max(count for _, count in sums)
