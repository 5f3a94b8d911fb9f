"""Reward `abstention`: where nothing is to be found, the answer says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.labelled_boxes import says_nothing_is_there
from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="rejection score of HumanRef, as used by Rex-Thinker (arXiv 2506.04034)")
def abstention(target: Mapping[str, Any], answer: str | None) -> float | None:
    """1 if nothing is wanted and the answer says that nothing is there; else 0.

    Formula: on rows with `"boxes": []`, 1 if the answer is an empty list `[]`, plain or in a ```json fence, or
    the word none; else 0. An answer that merely holds no readable box, or no answer at all, says nothing and is
    worth 0. Values: 0 and 1. It does not apply to rows with boxes: there, use it beside a reward that gives 0
    for no box, such as `box_set_f1` or `iou`, so that saying "nothing" everywhere does not pay.

    Args:
        target: `{"boxes": []}`.
        answer: the answer.

    Returns:
        The reward; `None` if something is wanted, or the target is not about boxes.
    """
    wanted = target.get("boxes")
    if wanted is None or len(wanted) > 0:
        return None
    return float(says_nothing_is_there(answer))
