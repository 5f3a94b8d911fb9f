"""Reward `detection_map`: COCO's mean average precision, made safe: order-free, with a control of the count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from mmreason.boxes import Frame
from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import (
    COCO_IOU_THRESHOLDS,
    FloatArray,
    PlacedBoxes,
    count_control_factor,
    given_boxes,
    pair_ious,
    wanted_boxes,
)
from mmreason.scoring import RewardResult, reward

#: Recalls at which COCO reads off the precision.
_RECALLS = np.linspace(0.0, 1.0, 101)


def average_precision(ious: FloatArray, confidences: FloatArray, threshold: float) -> float:
    """COCO's average precision of one class at one IoU threshold, where boxes of equal confidence are one step.

    Boxes enter by falling confidence; all of one confidence enter together and are matched as well as possible
    (most pairs, then largest IoU) to the wanted boxes that are left. The precision-recall curve has one point for
    each confidence, so a right box written before ten wrong ones is worth no more than after them. Without equal
    confidences this is exactly COCO's value (101 recalls, interpolated precision).

    Args:
        ious: `[P, T]`, T at least 1.
        confidences: `[P]`.
        threshold: lowest IoU of a match, above 0.

    Returns:
        0..1.
    """
    num_given, num_wanted = ious.shape
    free = np.ones(num_wanted, dtype=np.bool_)
    recalls: list[float] = []
    precisions: list[float] = []
    for confidence in np.unique(confidences)[::-1]:
        left = np.flatnonzero(free)
        block = ious[np.ix_(confidences == confidence, free)]
        # A pair outweighs any sum of IoUs, so the number of pairs comes first.
        values = np.where(block >= threshold, 1.0 + min(block.shape) + block, 0.0)
        rows, columns = linear_sum_assignment(values, maximize=True)
        free[left[columns[values[rows, columns] > 0.0]]] = False
        matched = num_wanted - int(free.sum())
        recalls.append(matched / num_wanted)
        precisions.append(matched / int((confidences >= confidence).sum()))
    if num_given == 0:
        return 0.0
    best_from_here = np.maximum.accumulate(np.array(precisions)[::-1])[::-1]
    points = np.searchsorted(recalls, _RECALLS, side="left")
    return float(np.append(best_from_here, 0.0)[points].mean())


def mean_average_precision(given: PlacedBoxes, wanted: PlacedBoxes, thresholds: tuple[float, ...]) -> float:
    """Mean of `average_precision` over the wanted classes and the thresholds.

    A given box whose label is not among the wanted ones is a false alarm in every class; without wanted labels,
    all boxes are one class.
    """
    ious = pair_ious(given, wanted)
    classes = sorted({label or "" for label in wanted.labels}) if wanted.has_labels else [None]
    values = []
    for name in classes:
        columns = np.array([name is None or (label or "") == name for label in wanted.labels])
        mine = np.array([name is None or label == name for label in given.labels], dtype=np.bool_)
        unknown = np.array([name is not None and label not in classes for label in given.labels], dtype=np.bool_)
        rows = mine | unknown
        overlaps = np.where(mine[rows, np.newaxis], ious[np.ix_(rows, columns)], 0.0)
        values += [average_precision(overlaps, given.confidences[rows], threshold) for threshold in thresholds]
    return float(np.mean(values))


@reward(range=(0.0, 1.0), source="odLength detection reward of VLM-R1 (arXiv 2504.07615); AP as in COCO")
def detection_map(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
    count_control: bool = True,
) -> RewardResult | None:
    """Mean average precision times min(1, boxes wanted / boxes given).

    Formula: `min(1, T / P) * mAP`, with P boxes given and T wanted; mAP is the mean over the labels of the target,
    and over the IoU thresholds .50, .55, ... .95 or the one that is set, of COCO's average precision. Unlike in
    COCO's evaluator, and in rewards that call it,

    - boxes of equal confidence, which is all of them where the answer gives none, count as one step of the
      precision-recall curve, so the order of writing is worth nothing;
    - a box whose label the target does not have, or without label, is a false alarm in every class.

    If nothing is wanted: 1 if the answer says so (`[]` or none), else 0. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...], "labels": [...]}` in original pixels, `"image_index"` for several
            images; without labels, all boxes are of one class.
        answer: the answer, such as `[{"bbox_2d": [12, 30, 88, 140], "label": "mug"}]`; a member `"confidence"` in
            0..1 is used where given, else it is 1.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        threshold: IoU of a match; null = mean over .50 to .95.
        count_control: boxes beyond the wanted number lower the reward.

    Returns:
        The reward with the parts `map` and `count_factor`; `None` if the target is not about boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
    """
    wanted = wanted_boxes(target, geometry)
    if wanted is None:
        return None
    if len(wanted) == 0:
        return RewardResult(float(says_nothing_is_there(answer)))
    given = given_boxes(answer, target, geometry, box_frame)
    precision = mean_average_precision(given, wanted, COCO_IOU_THRESHOLDS if threshold is None else (threshold,))
    factor = count_control_factor(given, wanted) if count_control else 1.0
    return RewardResult(precision * factor, {"map": precision, "count_factor": factor})
