"""Reward `detection_iou`: how well labelled boxes cover the wanted ones of the same label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmreason.boxes import Frame
from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import best_sum, given_boxes, pair_ious, same_label, wanted_boxes
from mmreason.scoring import reward


@reward(
    range=(0.0, 1.0),
    source="detection IoU reward of Visual-RFT (arXiv 2503.01785), here with labels and the best matching",
)
def detection_iou(
    target: Mapping[str, Any], answer: str | None, geometry: tuple[ImageGeometry, ...], box_frame: Frame
) -> float | None:
    """Sum of the IoU of matched boxes of the same label over max(boxes given, boxes wanted).

    Formula: with P given and T wanted boxes, `u[p, t]` their IoU (0 if the labels differ, letter case and spacing
    aside) and `m` the one-to-one matching with the largest sum, the reward is `sum of u over m / max(P, T)`.
    Naming a box twice, or once with every label, or with an unknown label or none, lowers it. If nothing is
    wanted: 1 if the answer says so (`[]` or none), else 0. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...], "labels": [...]}` in original pixels, `"image_index"` for several
            images; without labels, those of the answer are not looked at.
        answer: the answer, such as `[{"bbox_2d": [12, 30, 88, 140], "label": "mug"}]`.
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
    ious = np.where(same_label(given, wanted), pair_ious(given, wanted), 0.0)
    return best_sum(ious) / max(len(given), len(wanted))
