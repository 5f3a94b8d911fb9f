"""Rows of the perception tasks for tests, and what an answer to one earns by the task's own metric."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import RewardConfig, TaskConfig
from mmreason.data.base import TASKS, Task, TaskOptions, build_task
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer

INDICES, DIFFICULTIES = st.integers(0, 10**6), st.integers(0, 3)


@cache
def the_task(name: str, difficulty: int = 1, seed: int = 0) -> Task[TaskOptions]:
    return build_task(TaskConfig(name=name, difficulty=difficulty), seed)


def picture(row: Row) -> Image.Image:
    assert isinstance(row.images[0], Image.Image)
    return row.images[0]


def geometry_of(row: Row) -> tuple[ImageGeometry, ...]:
    return (ImageGeometry(picture(row).size, (112, 140), 14, 2),)


def question(row: Row) -> str:
    return str(row.messages[0]["content"][1]["text"])


def score(row: Row, answer: str | None) -> float:
    """The task's own metric for an answer in resized pixels."""
    name = TASKS.get(row.dataset).metric
    text = "<think></think>" if answer is None else f"<think></think><answer>{answer}</answer>"
    rollout = Rollout(row, 0, (), text, extract_answer(text), 1, "stop", geometry_of(row), Frame.resized_px.value)
    options = TASKS.get(row.dataset).metric_options
    value = RewardRunner(RewardConfig(**{name: dict(options)})).score([rollout]).values[0, 0]
    assert np.isfinite(value)
    return float(value)


def json_boxes(row: Row, boxes: Any, labels: Any) -> str:
    seen = Boxes.of(boxes, Frame.original_px).to(Frame.resized_px, geometry_of(row)[0]).xyxy
    return json.dumps(
        [{"bbox_2d": box.round(2).tolist(), "label": label} for box, label in zip(seen, labels, strict=True)]
    )
