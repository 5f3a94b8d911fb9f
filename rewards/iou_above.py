"""Reward `iou_above`: IoU that counts only above a threshold, as it is or as a plain yes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import best_sum, boxes_to_find, given_boxes, pair_ious
from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="IoU reward of DeepPerception (arXiv 2503.12797v2): IoU above 0.8, else 0")
def iou_above(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.8,
    hard: bool = False,
) -> float | None:
    """IoU where it exceeds the threshold, else 0; with `hard`, 1 where it does.

    Formula: a pair of boxes is worth `v = IoU * 1[IoU > threshold]`, or `v = 1[IoU > threshold]` with `hard`.
    The reward is the sum of `v` over the one-to-one matching where it is largest, divided by
    max(boxes given, boxes wanted). Range 0..1.

    Boxes are read from the answer only, converted to original pixels and cut to the image; one with swapped
    corners or without area is worth 0 and still counts.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        threshold: IoU that a pair must exceed; exactly this much is not enough.
        hard: a pair above the threshold is worth 1 instead of its IoU.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
    """
    wanted = boxes_to_find(target, geometry)
    if wanted is None:
        return None
    given = given_boxes(answer, target, geometry, box_frame)
    ious = pair_ious(given, wanted)
    values = np.where(ious > threshold, 1.0 if hard else ious, 0.0)
    return best_sum(values) / max(len(given), len(wanted))
