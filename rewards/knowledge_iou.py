"""Reward `knowledge_iou`: IoU that pays less, and fines more, for things the model knew from the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from mmreason.boxes import Frame
from mmreason.records import ImageGeometry
from mmreason.rewards.box_matching import best_sum, boxes_to_find, given_boxes, pair_ious
from mmreason.scoring import reward


@dataclass(frozen=True, slots=True)
class KnowledgeLevel:
    """What a hit and a miss are worth, from one recognition accuracy upwards.

    Attributes:
        min_accuracy: lowest recognition accuracy of the level, 0..1.
        credit: factor on the IoU of a hit (`s+`).
        fine: value of a miss (`s-`), 0 or negative.
    """

    min_accuracy: float
    credit: float
    fine: float


#: KARL's five levels, best known first.
LEVELS = (
    KnowledgeLevel(0.70, 0.65, -0.6),
    KnowledgeLevel(0.45, 0.85, -0.5),
    KnowledgeLevel(0.30, 1.0, -0.4),
    KnowledgeLevel(0.10, 1.2, -0.2),
    KnowledgeLevel(0.0, 1.4, 0.0),
)


def level_of(accuracy: float) -> KnowledgeLevel:
    """The level of a recognition accuracy; raises `ValueError` outside 0..1."""
    if not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"target.recognition_accuracy must be in 0..1, not {accuracy}")
    return next(level for level in LEVELS if accuracy >= level.min_accuracy)


@reward(range=(-0.6, 1.0), source="knowledge-aware IoU of KARL (arXiv 2503.12797v3)")
def knowledge_iou(
    target: Mapping[str, Any],
    answer: str | None,
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.65,
    fine_silence: bool = False,
) -> float | None:
    """IoU times a credit above the threshold, a fine below it; both depend on what the model knew before.

    Formula: with `u` the IoU (for several boxes: its sum over the best one-to-one matching, divided by
    max(boxes given, boxes wanted)),

        min(1, credit * u)   if u > threshold
        fine                 if there is an answer and u <= threshold
        0                    if there is no answer block (the fine too, with `fine_silence`)

    and by the start model's recognition accuracy of the thing asked for

        accuracy   >= .70   >= .45   >= .30   >= .10   below, or not known
        credit       .65      .85     1.0      1.2     1.4
        fine        -.6      -.5      -.4      -.2     0

    Range -0.6..1. In the published form silence beats a wrong answer on known things: use `format` beside it,
    or `fine_silence`.

    Args:
        target: `{"boxes": [[x1, y1, x2, y2], ...]}` in original pixels, `"image_index"` for several images, and
            `"recognition_accuracy"`: share of multiple-choice questions about the thing that the start model got
            right, 0..1.
        answer: the answer.
        geometry: of the row's images.
        box_frame: frame in which the model writes boxes.
        threshold: IoU that a hit must exceed.
        fine_silence: no answer block costs as much as a wrong answer.

    Returns:
        The reward; `None` if the target has no boxes.

    Raises:
        ValueError: the row has no image, the target does not fit it, or the accuracy lies outside 0..1.
    """
    wanted = boxes_to_find(target, geometry)
    if wanted is None:
        return None
    accuracy = target.get("recognition_accuracy")
    level = level_of(0.0 if accuracy is None else float(accuracy))
    if answer is None:
        return level.fine if fine_silence else 0.0
    given = given_boxes(answer, target, geometry, box_frame)
    share = best_sum(pair_ious(given, wanted)) / max(len(given), len(wanted))
    return min(1.0, level.credit * share) if share > threshold else level.fine
