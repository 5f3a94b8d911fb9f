"""Reward `box_set_f1`: the answer picks the right boxes out of candidates that the prompt lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.labelled_boxes import parse_labelled_boxes, says_nothing_is_there
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import NO_IMAGE, corners_in, most_pairs, place, wanted_boxes
from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="F1 reward of Rex-Thinker (arXiv 2506.04034)")
def box_set_f1(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    tolerance: Annotated[float, Field(ge=0.0)] = 0.5,
) -> float | None:
    """F1 of the boxes in the answer against the wanted ones, where only an exact copy matches.

    Formula: `F1 = 2 m / (P + T)` with P boxes given, T wanted and `m` the most pairs that can be matched one to
    one; a pair matches if none of its four numbers differs by more than `tolerance` in the model's own frame, so
    that rounding to whole numbers is no error. 0 if two given boxes are the same. If nothing is wanted: 1 if
    the answer says so (`[]` or none), else 0. Labels are not looked at. Range 0..1.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        tolerance: in units in which boxes are written: pixels, or thousandths of a side.

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
    given = place(parse_labelled_boxes(answer or "", box_frame), target, geometry, clip=False)
    # The unit of thousandths, as models write them, also where the frame counts whole sides.
    frame = Frame.relative_1000 if box_frame is Frame.relative_1 else box_frame
    ours = corners_in(frame, given.boxes, given.images, geometry)
    theirs = corners_in(frame, wanted.boxes, wanted.images, geometry)
    placed = given.images != NO_IMAGE
    named = np.column_stack([given.images, ours])[placed]
    if len(np.unique(named, axis=0)) < len(named):
        return 0.0
    # One part in 10^9 for what conversion there and back costs.
    slack = tolerance + 1e-9 * (1.0 + np.abs(theirs))
    close = (np.abs(ours[:, np.newaxis] - theirs) <= slack).all(axis=-1)
    matches = most_pairs(close & (given.images[:, np.newaxis] == wanted.images))
    return 2.0 * matches / (len(given) + len(wanted))
