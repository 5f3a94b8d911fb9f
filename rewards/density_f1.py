"""Reward `density_f1`: F1 of boxes over rising IoU thresholds, lowered for every box too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmreason.boxes import Frame
from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import (
    COCO_IOU_THRESHOLDS,
    count_control_factor,
    given_boxes,
    most_pairs,
    pair_ious,
    wanted_boxes,
)
from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="DensityF1 of HumanRef, as used by Rex-Thinker (arXiv 2506.04034)")
def density_f1(
    target: Mapping[str, Any], answer: str | None, geometry: tuple[ImageGeometry, ...], box_frame: Frame
) -> float | None:
    """Mean F1 over the IoU thresholds .50, .55, ... .95, times min(1, boxes wanted / boxes given).

    Formula: with P boxes given, T wanted and `m(t)` the most pairs of IoU >= t that can be matched one to one,
    the reward is the mean over t of `2 m(t) / (P + T)`, times `min(1, T / P)`. If nothing is wanted: 1 if the
    answer says so (`[]` or none), else 0. Labels are not looked at. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.

    Returns:
        The reward; `None` if the target is not about boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
    """
    wanted = wanted_boxes(target, geometry)
    if wanted is None:
        return None
    if len(wanted) == 0:
        return float(says_nothing_is_there(answer))
    given = given_boxes(answer, target, geometry, box_frame)
    ious = pair_ious(given, wanted)
    matches = float(np.mean([most_pairs(ious >= threshold) for threshold in COCO_IOU_THRESHOLDS]))
    return 2.0 * matches / (len(given) + len(wanted)) * count_control_factor(given, wanted)
