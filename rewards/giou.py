"""Reward `giou`: like `iou`, but a miss that lies near is worth more than one far away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.boxes import Frame
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import best_sum, boxes_to_find, given_boxes, pair_gious
from mmreason.scoring import reward


@reward(
    range=(-1.0, 1.0),
    source="GIoU (arXiv 1902.09630), reward of Visual-RFT on LISA (arXiv 2503.01785), matched, with a count penalty",
)
def giou(
    target: Mapping[str, Any], answer: str | None, geometry: tuple[ImageGeometry, ...], box_frame: Frame
) -> float | None:
    """Mean generalised IoU of matched boxes; every box too many or too few counts as -1.

    Formula: with P given and T wanted boxes, `g[p, t] = IoU - (hull - union) / hull` and `m` the one-to-one
    matching with the largest sum, the reward is `(sum of g over m - |P - T|) / max(P, T)`. For one wanted box
    and one given box that is plain GIoU.

    Boxes are read from the answer only, converted to original pixels and cut to the image. One with swapped
    corners or without area is worth -1. Range -1..1; no box at all is -1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
    """
    wanted = boxes_to_find(target, geometry)
    if wanted is None:
        return None
    given = given_boxes(answer, target, geometry, box_frame)
    unmatched = abs(len(given) - len(wanted))
    return (best_sum(pair_gious(given, wanted)) - unmatched) / max(len(given), len(wanted))
