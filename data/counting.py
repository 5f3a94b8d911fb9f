"""Task `counting`: how many of one kind of thing, among many that may overlap.

What enters: a seed, an index and `CountingOptions`. What leaves: a picture of up to 24 objects, a question and a whole number.
Unlike in the other scene tasks, several objects may look the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.scenes import (
    COLORS,
    SHAPES,
    SUPERSAMPLE,
    SceneObject,
    draw_background,
    draw_object,
    overlap_share,
)
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Box = tuple[float, float, float, float]

#: Tries for one object's place before the objects get smaller.
_TRIES = 60


@dataclass(frozen=True, slots=True)
class _Level:
    """What a difficulty means: number of objects, their side as a share of the picture's, kinds in play, overlap."""

    objects: tuple[int, int]
    size_share: tuple[float, float]
    num_colors: int
    num_shapes: int
    max_overlap: float


_LEVELS = (
    _Level((1, 5), (0.18, 0.28), 3, 2, 0.0),
    _Level((3, 9), (0.14, 0.22), 4, 3, 0.0),
    _Level((8, 16), (0.11, 0.18), 5, 4, 0.15),
    _Level((14, 24), (0.1, 0.16), 5, 4, 0.35),
)


class CountingOptions(TaskOptions):
    """How many objects, and how crowded. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: number of objects, kinds, overlap")
    objects: tuple[int, int] | None = Field(None, description="least and most objects; null = by difficulty")
    max_overlap: float | None = Field(
        None, ge=0.0, le=0.5, description="largest share of a box that others may cover; null = by difficulty"
    )
    side_px: tuple[int, int] = Field((98, 126), description="least and greatest side of the picture in pixels")

    @property
    def count_range(self) -> tuple[int, int]:
        return self.objects or _LEVELS[self.difficulty].objects

    @property
    def overlap(self) -> float:
        return _LEVELS[self.difficulty].max_overlap if self.max_overlap is None else self.max_overlap

    def check(self) -> str | None:
        low, high = self.count_range
        if not 1 <= low <= high <= 24:
            return f"objects=[{low}, {high}] must satisfy 1 <= least <= most <= 24"
        if not 84 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 84 <= least <= greatest <= 2048"
        return None


@dataclass(frozen=True, slots=True)
class _Question:
    """A colour, a shape, both, or (neither) everything."""

    color: str | None = None
    shape: str | None = None

    def fits(self, item: SceneObject) -> bool:
        return self.color in (None, item.color) and self.shape in (None, item.shape)

    @property
    def text(self) -> str:
        plural = "objects" if self.shape is None else "crosses" if self.shape == "cross" else f"{self.shape}s"
        return f"How many {f'{self.color} ' if self.color else ''}{plural} are there?"


@task("counting")
class Counting(Task[CountingOptions]):
    """Count the things of one kind.

    Score: exact match of the number. Styles: `direct`, `look` (names the counted ones from left to right with a running
    number, then answers).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "exact"

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return CountingOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        image, objects = _draw(rng, self.options)
        question = _ask(rng, objects)
        counted = tuple(item for item in objects if question.fits(item))
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": content},),
            images=(image,),
            target={"answer": str(len(counted))},
            dataset=self.name,
            columns={"objects": objects, "counted": counted},
        )

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        counted: Sequence[SceneObject] = row.columns["counted"]
        told = ", ".join(f"{item.name} {number}" for number, item in enumerate(counted, start=1)) or "none"
        return f"<think>{told if style == 'look' else ''}</think><answer>{row.target['answer']}</answer>"


def _ask(rng: np.random.Generator, objects: Sequence[SceneObject]) -> _Question:
    """About something that is there, nine times in ten; the tenth question mixes two objects and may find none."""
    first, second = (objects[int(i)] for i in rng.integers(len(objects), size=2))
    kind = rng.choice(["all", "color", "shape", "both", "mixed"], p=[0.2, 0.3, 0.25, 0.15, 0.1])
    if kind == "all":
        return _Question()
    if kind == "mixed":
        return _Question(first.color, second.shape)
    return _Question(first.color if kind in ("color", "both") else None, first.shape if kind != "color" else None)


def _draw(rng: np.random.Generator, options: CountingOptions) -> tuple[Image.Image, tuple[SceneObject, ...]]:
    """A picture and its objects, left to right (by centre)."""
    level = _LEVELS[options.difficulty]
    width, height = (int(v) for v in rng.integers(options.side_px[0], options.side_px[1] + 1, size=2))
    low, high = options.count_range
    boxes = _place(rng, level.size_share, options.overlap, (width, height), int(rng.integers(low, high + 1)))
    colors = rng.permutation(list(COLORS)[: level.num_colors])[: max(2, level.num_colors - 1)].tolist()
    shapes = rng.permutation(list(SHAPES)[: level.num_shapes])[: max(2, level.num_shapes - 1)].tolist()
    items = [SceneObject(str(rng.choice(colors)), str(rng.choice(shapes)), box) for box in boxes]
    canvas = draw_background(rng, width, height).resize(
        (width * SUPERSAMPLE, height * SUPERSAMPLE), Image.Resampling.BILINEAR
    )
    # Small ones last, so that a large one never hides the better part of them.
    for item in sorted(items, key=lambda item: -item.area):
        draw_object(canvas, item, rng)
    return canvas.reduce(SUPERSAMPLE), tuple(sorted(items, key=lambda item: item.center))


def _place(
    rng: np.random.Generator, size_share: tuple[float, float], overlap: float, size: tuple[int, int], count: int
) -> list[Box]:
    """Exactly `count` boxes; objects shrink where the picture is too crowded for more of their size."""
    boxes: list[Box] = []
    # What all neighbours together may hide of each box, so that nothing vanishes under several of them.
    hidden: list[float] = []
    shrink = 1.0
    while len(boxes) < count:
        for _ in range(_TRIES):
            box = _some_box(rng, size_share, shrink, size)
            grown = box if overlap > 0 else (box[0] - 1.5, box[1] - 1.5, box[2] + 1.5, box[3] + 1.5)
            shares = [overlap_share(grown, other) for other in boxes]
            totals = [old + new for old, new in zip(hidden, shares, strict=True)]
            if max([sum(shares), *totals]) <= overlap:
                boxes.append(box)
                hidden = [*totals, sum(shares)]
                break
        else:
            shrink *= 0.9
    return boxes


def _some_box(rng: np.random.Generator, size_share: tuple[float, float], shrink: float, size: tuple[int, int]) -> Box:
    side = rng.uniform(*size_share) * min(size) * shrink
    aspect = math.sqrt(math.exp(rng.uniform(-0.16, 0.16)))
    w, h = side * aspect, side / aspect
    x, y = rng.uniform(1, size[0] - 1 - w), rng.uniform(1, size[1] - 1 - h)
    return x, y, x + w, y + h
