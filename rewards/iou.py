"""Reward `iou`: how well the boxes in the answer cover the boxes of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import best_sum, boxes_to_find, given_boxes, pair_ious
from mmreason.scoring import reward


@reward(
    range=(0.0, 1.0),
    source="IoU reward of VLM-R1 (arXiv 2504.07615), here matched one to one and with a count penalty",
)
def iou(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0,
) -> float | None:
    """Sum of the IoU of matched boxes over max(boxes given, boxes wanted).

    Formula: with P predicted and T target boxes, `u[p, t]` their IoU (0 where below `threshold`) and `m` the
    one-to-one matching with the largest sum, the reward is `sum of u over m / max(P, T)`. For one target and
    one box that is plain IoU; every box too many or too few lowers it, so naming many boxes does not pay.

    Predicted boxes are read from the answer only, in the model's own frame, and cut to the image. They are
    taken as written: a box with swapped corners or without area is worth 0 and still counts. Areas are plain
    (no +1 per side), compared in original pixels. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels of the first image; with `"image_index"`,
            of the images it says, and the answer then names an image with each box: see `rewards/box_matching.py`.
        answer: the answer, such as `[12, 30, 88, 140]` or `{"bbox_2d": [12, 30, 88, 140], "image_index": 1}`.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        threshold: a pair below this IoU is worth 0.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
        BoxError: the target's boxes are no boxes.
    """
    wanted = boxes_to_find(target, geometry)
    if wanted is None:
        return None
    given = given_boxes(answer, target, geometry, box_frame)
    overlaps = pair_ious(given, wanted)
    overlaps = np.where(overlaps >= threshold, overlaps, 0.0)
    return best_sum(overlaps) / max(len(given), len(wanted))
