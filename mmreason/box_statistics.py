"""How many boxes answers give, and how many of them are right: what a mean reward does not tell apart.

What enters: rollouts whose targets hold `boxes`. What leaves: `BoxStatistics` over all of them.

Legend of shapes: P boxes given and T wanted in one answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mmreason.boxes import Frame
from mmreason.records import Rollout
from mmreason.rewards.box_matching import given_boxes, most_pairs, pair_ious, same_label, wanted_boxes


@dataclass(frozen=True, slots=True)
class BoxStatistics:
    """Boxes of an evaluation.

    Attributes:
        given: mean number of boxes in an answer; NaN without rows.
        wanted: mean number of boxes in a target, as `given`.
        precision: right boxes over given ones, summed over all answers; NaN if no box was given.
        recall: right boxes over wanted ones, likewise; NaN if none was wanted.
        n: answers counted.
    """

    given: float
    wanted: float
    precision: float
    recall: float
    n: int


def box_statistics(rollouts: Iterable[Rollout], least_iou: float = 0.5) -> BoxStatistics:
    """Count the boxes of answers and match them one to one with the wanted ones of the same label.

    Args:
        rollouts: those whose target has no `boxes` are passed over.
        least_iou: overlap from which a pair matches, as in PASCAL VOC.
    """
    rows = given_count = wanted_count = matched = 0
    for rollout in rollouts:
        wanted = wanted_boxes(rollout.row.target, rollout.geometry)
        if wanted is None:
            continue
        given = given_boxes(rollout.answer, rollout.row.target, rollout.geometry, Frame(rollout.box_frame))
        rows += 1
        given_count += len(given)
        wanted_count += len(wanted)
        if len(given) and len(wanted):
            matched += most_pairs((pair_ious(given, wanted) >= least_iou) & same_label(given, wanted))
    return BoxStatistics(
        given=given_count / rows if rows else math.nan,
        wanted=wanted_count / rows if rows else math.nan,
        precision=matched / given_count if given_count else math.nan,
        recall=matched / wanted_count if wanted_count else math.nan,
        n=rows,
    )
