"""Procedural scenes: anti-aliased coloured shapes on varied backgrounds, with exact boxes.

What enters: a random generator and `SceneOptions`. What leaves: a `Scene`, i.e. an RGB picture and its objects with exact
boxes in the picture's own pixels. The same generator state gives the same picture, bit for bit, on one Pillow version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from mmreason.data.base import TaskOptions

SUPERSAMPLE = 3

#: Fill colours (RGB) before jitter. The first five are easy to tell apart; the dial adds the others.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 42, 38),
    "green": (36, 156, 62),
    "blue": (38, 84, 214),
    "yellow": (245, 205, 35),
    "purple": (142, 52, 180),
    "orange": (245, 130, 24),
    "cyan": (40, 196, 208),
    "pink": (244, 128, 178),
}

Point = tuple[float, float]
#: Colour and shape of an object.
Name = tuple[str, str]

#: Pictures tried for objects that have to be there.
_ROOM_TRIES = 3


def _regular(count: int, phase: float) -> list[Point]:
    return [
        (math.cos(phase + 2 * math.pi * i / count), math.sin(phase + 2 * math.pi * i / count)) for i in range(count)
    ]


def _star() -> list[Point]:
    outer, inner = _regular(5, -math.pi / 2), _regular(5, -math.pi / 2 + math.pi / 5)
    return [p for pair in zip(outer, [(0.42 * x, 0.42 * y) for x, y in inner], strict=True) for p in pair]


def _fill_unit(points: list[Point]) -> list[Point]:
    """Stretch a polygon so that its bounding box is exactly the unit square; then object boxes are exact."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


#: Outlines in the unit square. The first four are easy to tell apart; the dial adds the others.
SHAPES: dict[str, list[Point]] = {
    "circle": _fill_unit(_regular(64, 0.0)),
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "star": _fill_unit(_star()),
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "cross": [
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67),
        (0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33),
    ],
}  # fmt: skip

EASY_COLORS, EASY_SHAPES = 5, 4


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn object; `box` is its exact extent `(x1, y1, x2, y2)` in pixels of the picture."""

    color: str
    shape: str
    box: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def center(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its objects, from left to right (by centre)."""

    image: Image.Image
    objects: tuple[SceneObject, ...]

    def with_color(self, color: str) -> list[SceneObject]:
        return [o for o in self.objects if o.color == color]

    def with_shape(self, shape: str) -> list[SceneObject]:
        return [o for o in self.objects if o.shape == shape]


class SceneOptions(TaskOptions):
    """How pictures are made. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: object number, palette, clutter, overlap")
    objects: tuple[int, int] | None = Field(None, description="least and most objects; null = by difficulty")
    side_px: tuple[int, int] = Field((98, 126), description="least and greatest side of the picture in pixels")

    @property
    def count_range(self) -> tuple[int, int]:
        return self.objects or ((1, 2), (3, 3), (3, 5), (5, 8))[self.difficulty]

    @property
    def size_share(self) -> tuple[float, float]:
        """Object side as a share of the picture's shorter side."""
        return ((0.3, 0.5), (0.26, 0.46), (0.18, 0.4), (0.12, 0.3))[self.difficulty]

    @property
    def max_overlap(self) -> float:
        """Largest intersection of two objects' boxes as a share of the smaller one."""
        return (0.0, 0.0, 0.1, 0.25)[self.difficulty]

    def palette(self) -> tuple[list[str], list[str]]:
        """Colours and shapes in play."""
        colors, shapes = list(COLORS), list(SHAPES)
        return (colors[:EASY_COLORS], shapes[:EASY_SHAPES]) if self.difficulty < 2 else (colors, shapes)

    def check(self) -> str | None:
        low, high = self.count_range
        if not 1 <= low <= high <= 12:
            return f"objects=[{low}, {high}] must satisfy 1 <= least <= most <= 12"
        if not 32 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 32 <= least <= greatest <= 2048"
        return None


def draw_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A muted background: plain, gradient, stripes, checks or smooth noise."""
    kind = rng.integers(5)
    light = float(rng.uniform(168, 245)) if rng.random() < 0.7 else float(rng.uniform(18, 70))
    base = light + rng.uniform(-10, 10, size=3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp: NDArray[np.floating[Any]]
    if kind == 0:
        ramp = np.zeros((height, width), np.float32)
    elif kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    elif kind == 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 20)
        ramp = 0.35 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    elif kind == 3:
        cell = rng.uniform(10, 24)
        ramp = 0.3 * (((x // cell + y // cell) % 2) - 0.5)
    else:
        coarse = Image.fromarray(rng.uniform(0, 255, size=(6, 6)).astype(np.uint8))
        ramp = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255 - 0.5
    contrast = rng.uniform(8, 34)
    pixels = base[None, None, :] + contrast * ramp[:, :, None] + rng.normal(0, rng.uniform(0, 4), (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def overlap_share(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection of two boxes as a share of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller


def _place(
    rng: np.random.Generator, options: SceneOptions, width: int, height: int, count: int
) -> list[tuple[float, float, float, float]]:
    """Boxes for up to `count` objects that respect the overlap rule; at least one always fits."""
    short = min(width, height)
    boxes: list[tuple[float, float, float, float]] = []
    for attempt in range(60 * count):
        if len(boxes) == count:
            break
        low, high = options.size_share
        shrink = 1.0 if attempt < 30 * count else 0.7
        side = rng.uniform(low, high) * short * shrink
        aspect = float(np.exp(rng.uniform(-0.16, 0.16)))
        w, h = side * math.sqrt(aspect), side / math.sqrt(aspect)
        x, y = rng.uniform(1, width - 1 - w), rng.uniform(1, height - 1 - h)
        box = (x, y, x + w, y + h)
        grown = (x - 2, y - 2, x + w + 2, y + h + 2) if options.max_overlap == 0 else box
        if all(overlap_share(grown, other) <= options.max_overlap for other in boxes):
            boxes.append(box)
    return boxes


def draw_object(image: Image.Image, item: SceneObject, rng: np.random.Generator) -> None:
    """Draw one object on the supersampled canvas, with jittered colour and sometimes an outline."""
    x1, y1, x2, y2 = (SUPERSAMPLE * v for v in item.box)
    points = [(x1 + px * (x2 - x1), y1 + py * (y2 - y1)) for px, py in SHAPES[item.shape]]
    fill = tuple(int(np.clip(c + rng.uniform(-16, 16), 0, 255)) for c in COLORS[item.color])
    outline = tuple(int(0.55 * c) for c in fill) if rng.random() < 0.5 else None
    ImageDraw.Draw(image).polygon(points, fill=fill, outline=outline, width=SUPERSAMPLE if outline else 1)


def draw_scene(rng: np.random.Generator, options: SceneOptions) -> Scene:
    """Draw one scene. No two objects share both colour and shape, so that a name is unique."""
    width, height = (int(v) for v in rng.integers(options.side_px[0], options.side_px[1] + 1, size=2))
    low, high = options.count_range
    boxes = _place(rng, options, width, height, int(rng.integers(low, high + 1)))
    colors, shapes = options.palette()
    picks = rng.choice(len(colors) * len(shapes), size=len(boxes), replace=False)
    items = [
        SceneObject(colors[int(p) // len(shapes)], shapes[int(p) % len(shapes)], box)
        for p, box in zip(picks, boxes, strict=True)
    ]
    return _painted(rng, items, width, height)


def draw_named_scene(rng: np.random.Generator, options: SceneOptions, names: Sequence[Name]) -> Scene | None:
    """Draw one scene of given objects, `(colour, shape)`, no two the same; `None` if there is no room for all."""
    for _ in range(_ROOM_TRIES):
        width, height = (int(v) for v in rng.integers(options.side_px[0], options.side_px[1] + 1, size=2))
        boxes = _place(rng, options, width, height, len(names))
        if len(boxes) == len(names):
            items = [SceneObject(*name, box) for name, box in zip(names, boxes, strict=True)]
            return _painted(rng, items, width, height)
    return None


def _painted(rng: np.random.Generator, items: Sequence[SceneObject], width: int, height: int) -> Scene:
    canvas = draw_background(rng, width, height).resize(
        (width * SUPERSAMPLE, height * SUPERSAMPLE), Image.Resampling.BILINEAR
    )
    for item in items:
        draw_object(canvas, item, rng)
    ordered = tuple(sorted(items, key=lambda item: item.center))
    return Scene(canvas.reduce(SUPERSAMPLE), ordered)
