"""Reward `iou`: how well the boxes in the answer cover the boxes of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from mmreason.boxes import Boxes, Frame
from mmreason.records import ImageGeometry
from mmreason.scoring import reward


@reward(
    range=(0.0, 1.0),
    source="IoU reward of VLM-R1 (arXiv 2504.07615), here matched one to one and with a count penalty",
)
def iou(
    target: Mapping[str, Any],
    boxes: Boxes,
    geometry: tuple[ImageGeometry, ...],
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
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels.
        boxes: boxes of the answer.
        geometry: of the row's images; boxes, wanted and given, are those of the first one.
        threshold: a pair below this IoU is worth 0.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image.
        BoxError: the target's boxes are no boxes.
    """
    wanted = target.get("boxes")
    if wanted is None or len(wanted) == 0:
        return None
    if not geometry:
        raise ValueError("the reward iou reads boxes of the row's first image, and this row has no image")
    truth = Boxes.of(wanted, Frame.original_px)
    if len(boxes) == 0:
        return 0.0
    given = boxes.to(Frame.original_px, geometry[0]).clipped(geometry[0])
    overlaps = given.iou(truth)
    overlaps = np.where(overlaps >= threshold, overlaps, 0.0)
    pairs = linear_sum_assignment(overlaps, maximize=True)
    return float(overlaps[pairs].sum() / max(len(given), len(truth)))
