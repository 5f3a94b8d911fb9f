"""What the tests of the grounding rewards share: answers that list boxes, and their score as in training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import mmreason.rewards.grounding_rewards  # noqa: F401  registers them
from mmreason.config.schema import RewardConfig
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.text import extract_answer

GEOMETRY = ImageGeometry((400, 200), (392, 196), 14, 2)
SQUARE = ImageGeometry((1000, 1000), (980, 980), 14, 2)
SINGLE = ["iou", "giou", "iou_above", "knowledge_iou"]
SETS = ["box_set_f1", "density_f1", "detection_iou", "detection_weighted", "detection_map"]
BOX_REWARDS = SINGLE + SETS
DETECTION = ["detection_iou", "detection_weighted", "detection_map"]
Box = Sequence[float]


def table(
    name: str,
    completion: str,
    target: dict[str, Any],
    *,
    frame: str = "original_px",
    geometry: tuple[ImageGeometry, ...] = (SQUARE,),
    **options: Any,
) -> ScoreTable:
    row = Row("row", (), (), target)
    rollout = Rollout(row, 0, (), completion, extract_answer(completion), 0, "stop", geometry, frame)
    scored = RewardRunner(RewardConfig.model_validate({name: options})).score([rollout])
    assert not scored.failures
    return scored


def score(name: str, completion: str, target: dict[str, Any], **options: Any) -> float | None:
    total = float(table(name, completion, target, **options).total[0])
    return None if math.isnan(total) else total


def answered(text: str, thinking: str = "Let me look.") -> str:
    return f"<think>{thinking}</think><answer>{text}</answer>"


def listed(boxes: Sequence[Box], labels: Sequence[str] | None = None, **members: Sequence[Any]) -> str:
    """An answer that lists boxes as JSON objects; `members` holds one value for each box."""
    objects = [{"bbox_2d": list(box)} for box in boxes]
    for key, values in {"label": labels, **members}.items():
        for item, value in zip(objects, values or [], strict=False):
            item[key] = value
    return answered(f"```json\n{json.dumps(objects)}\n```")


A, B, C = [100, 100, 300, 300], [500, 100, 700, 300], [100, 600, 300, 900]
HALF_A = [100, 100, 300, 200]  # IoU .5 with A
FAR = [800, 800, 900, 900]
