"""Reward `point_in_box`: the answer points at the wanted thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmreason.boxes import Frame
from mmreason.labelled_boxes import parse_labelled_points
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import boxes_to_find, most_pairs, place
from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="click accuracy of ScreenSpot (arXiv 2401.10935), with a count penalty")
def point_in_box(
    target: Mapping[str, Any], answer: str | None, geometry: tuple[ImageGeometry, ...], box_frame: Frame
) -> float | None:
    """Share of points that lie in a wanted box of their own; every point too many lowers it.

    Formula: with P points given, T boxes wanted and `m` the most pairs of a point and a box around it (border
    included) that can be matched one to one, the reward is `m / max(P, T)`. For one point and one box it is 1
    inside, 0 outside. Range 0..1.

    Points are `[x, y]`, or objects such as `{"point_2d": [x, y]}`, in the answer only; boxes are no points.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes coordinates.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image, or the target does not fit it.
    """
    wanted = boxes_to_find(target, geometry)
    if wanted is None:
        return None
    points = place(parse_labelled_points(answer or "", box_frame), target, geometry, clip=False)
    xy = points.boxes.xyxy[:, np.newaxis, :2]
    inside = ((xy >= wanted.boxes.xyxy[:, :2]) & (xy <= wanted.boxes.xyxy[:, 2:])).all(axis=-1)
    pairs = most_pairs(inside & (points.images[:, np.newaxis] == wanted.images))
    return pairs / max(len(points), len(wanted))
