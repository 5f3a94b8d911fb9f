"""Task `chart`: read values off bars and lines, with guide lines across to the axis.

What enters: a seed, an index and `ChartOptions`. What leaves: a chart with an axis from 0 to 100, a question about one bar or point, or about
two, and a whole number that is right within a tolerance.

    What is the value of the red bar?                   64
    What is the value of the blue line at 3?            41
    How much larger is the red bar than the blue bar?   23

Source of the setting: charts with guide lines, OpenThinkIMG (arXiv 2505.08617).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.scenes import COLORS, SUPERSAMPLE
from mmreason.data.tool_tasks import DialOptions, Point, Seen, ToolTask, mended, one_call, size_of, the_answer
from mmreason.records import Row

Kind = Literal["bar", "line"]

#: By difficulty: marks (least, most), step between labels of the axis, values are multiples of, grid, share of line charts, of questions about two.
_LEVELS = (
    ((2, 2), 20, 10, True, 0.0, 0.0),
    ((2, 3), 20, 5, True, 0.0, 0.0),
    ((3, 4), 20, 1, True, 0.3, 0.0),
    ((3, 5), 25, 1, False, 0.4, 0.2),
    ((4, 6), 50, 1, False, 0.5, 0.3),
    ((5, 8), 100, 1, False, 0.5, 0.4),
)
#: How far from the true value an answer may be, in units of the axis.
TOLERANCE = 2.0
_HIGHEST = 100
#: How far a line that is drawn by mistake lies from its place, in pixels.
_LEAST_MISS_PX, _MOST_MISS_PX = 10.0, 30.0
#: Space for the numbers of the axis, and around the plot, in pixels.
_LEFT_PX, _TOP_PX, _RIGHT_PX, _BOTTOM_PX, _FONT_PX = 26, 8, 6, 16, 11


class ChartOptions(DialOptions):
    """What is drawn. `difficulty` sets what is not set by hand."""

    marks: tuple[int, int] | None = Field(None, description="least and most bars or points; null = by difficulty")
    side_px: tuple[int, int] = Field((140, 196), description="least and greatest side of the picture in pixels")

    @property
    def mark_range(self) -> tuple[int, int]:
        return self.marks or _LEVELS[self.difficulty][0]

    def check(self) -> str | None:
        low, high = self.mark_range
        if not 1 <= low <= high <= len(COLORS):
            return f"marks=[{low}, {high}] must satisfy 1 <= least <= most <= {len(COLORS)}"
        if not 112 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 112 <= least <= greatest <= 2048"
        return None


@dataclass(frozen=True, slots=True)
class Axes:
    """Where values lie in a picture of `size` pixels: 0 at `bottom`, 100 at `top`."""

    size: tuple[int, int]

    @property
    def top(self) -> float:
        return float(_TOP_PX)

    @property
    def bottom(self) -> float:
        return float(self.size[1] - _BOTTOM_PX)

    def y(self, value: float) -> float:
        """Of a value, in pixels."""
        return self.bottom - value / _HIGHEST * (self.bottom - self.top)

    def value(self, y: float) -> float:
        """At a height in pixels."""
        return (self.bottom - y) / (self.bottom - self.top) * _HIGHEST

    def x(self, number: int, count: int) -> float:
        """Middle of bar or point `number`, from 0, of `count`."""
        return _LEFT_PX + (number + 0.5) * (self.size[0] - _RIGHT_PX - _LEFT_PX) / count


@dataclass(frozen=True, slots=True)
class Mark:
    """A bar or a point: what it is called, its value, and where its end lies in pixels."""

    name: str
    value: int
    end: Point


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a chart shows: bars of several colours, or points of one line."""

    kind: Kind
    values: tuple[int, ...]
    colors: tuple[str, ...]
    grid: bool
    step: int


@task("chart")
class Chart(ToolTask[ChartOptions]):
    """Read a value off a chart, with a guide line to the axis.

    Score: the number is right within 2 (reward `numeric`). Style: `direct`.
    """

    metric: ClassVar[str] = "numeric"
    metric_options: ClassVar[Mapping[str, Any]] = {"absolute_tolerance": TOLERANCE}
    tools: ClassVar[tuple[str, ...]] = ("horizontal_line", "vertical_line")

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return ChartOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        _, step, multiple, grid, line_share, two_share = _LEVELS[self.options.difficulty]
        side = self.options.side_px
        axes = Axes((int(rng.integers(side[0], side[1] + 1)), int(rng.integers(side[0], side[1] + 1))))
        count = int(rng.integers(self.options.mark_range[0], self.options.mark_range[1] + 1))
        kind: Kind = "line" if rng.random() < line_share else "bar"
        values = tuple(int(v) * multiple for v in rng.integers(1, _HIGHEST // multiple + 1, size=count))
        colors = tuple(str(c) for c in rng.permutation(list(COLORS))[: count if kind == "bar" else 1])
        drawing = Drawing(kind, values, colors, grid, step)
        picture = _painted(rng, drawing, axes)
        marks = _marks(drawing, axes)
        asked = [marks[int(i)] for i in rng.permutation(count)[: 1 + int(count > 1 and rng.random() < two_share)]]
        question, answer = _ask(asked)
        columns = {"axes": axes, "asked": tuple(asked), "kind": kind, "marks": tuple(marks)}
        return self.made_row(index, split, [picture], question, {"answer": str(answer)}, columns)

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """A line up from the point that is meant, where it is a line chart; a line across at its height; for each, then the answer."""
        seen, size = Seen(geometry_of, frame), size_of(row)
        asked: Sequence[Mark] = row.columns["asked"]
        turns: list[PlannedTurn] = []
        for mark in asked:
            x, y = seen.point(mark.end, size)
            if row.columns["kind"] == "line":
                turns.append(one_call(mark.name, "vertical_line", image=f"img_{len(turns)}", x=x))
            turns.append(one_call(mark.name, "horizontal_line", image=f"img_{len(turns)}", y=y))
        return [*turns, the_answer(row, ", ".join(f"{mark.name} {mark.value}" for mark in asked))]

    def mended_plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """One of the lines goes to the end of another mark, or too far or not far enough, and is drawn again without it."""
        seen, size, rng = Seen(geometry_of, frame), size_of(row), self.mistakes(row)
        plan = self.plan(row, geometry_of, frame)
        place = int(rng.integers(len(plan) - 1))
        (made,) = plan[place].calls
        axis = int(made.tool == "horizontal_line")
        right = next(mark.end[axis] for mark in row.columns["asked"] if mark.name == plan[place].thought)
        off = rng.uniform(_LEAST_MISS_PX, _MOST_MISS_PX)
        places = [mark.end[axis] for mark in row.columns["marks"]] + [right - off, right + off]
        wrong = [at for at in places if abs(at - right) >= _LEAST_MISS_PX and 0 <= at <= size[axis]]
        at = wrong[int(rng.integers(len(wrong)))]
        return mended(row, plan, place, {"xy"[axis]: seen.point((at, at), size)[axis]})


def _marks(drawing: Drawing, axes: Axes) -> list[Mark]:
    count = len(drawing.values)
    names = (
        [f"{color} bar" for color in drawing.colors]
        if drawing.kind == "bar"
        else [f"{drawing.colors[0]} line at {number + 1}" for number in range(count)]
    )
    return [
        Mark(name, value, (axes.x(number, count), axes.y(value)))
        for number, (name, value) in enumerate(zip(names, drawing.values, strict=True))
    ]


def _ask(asked: list[Mark]) -> tuple[str, int]:
    """The question, and its answer; of two marks the larger one comes first."""
    if len(asked) == 1:
        return f"What is the value of the {asked[0].name}?", asked[0].value
    asked.sort(key=lambda mark: -mark.value)
    question = f"How much larger is the {asked[0].name} than the {asked[1].name}?"
    return question, asked[0].value - asked[1].value


def _painted(rng: np.random.Generator, drawing: Drawing, axes: Axes) -> Image.Image:
    """Grid, bars or line, and axes; numbers last, in the picture's own pixels."""
    width, height = axes.size
    ground = tuple(int(v) for v in rng.integers(236, 256, size=3))
    canvas = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), ground)
    pen = ImageDraw.Draw(canvas)

    def px(*numbers: float) -> list[float]:
        return [SUPERSAMPLE * number for number in numbers]

    labels = range(0, _HIGHEST + 1, drawing.step)
    for label in labels:
        y = axes.y(label)
        pen.line(
            px(_LEFT_PX - 3, y, width - _RIGHT_PX if drawing.grid else _LEFT_PX, y),
            fill=(150, 150, 150),
            width=SUPERSAMPLE,
        )
    count = len(drawing.values)
    half = 0.32 * (width - _RIGHT_PX - _LEFT_PX) / count
    ends = [(axes.x(number, count), axes.y(value)) for number, value in enumerate(drawing.values)]
    if drawing.kind == "bar":
        for (x, y), color in zip(ends, drawing.colors, strict=True):
            pen.rectangle(px(x - half, y, x + half, axes.bottom), fill=COLORS[color])
    else:
        fill = COLORS[drawing.colors[0]]
        pen.line([tuple(px(*end)) for end in ends], fill=fill, width=2 * SUPERSAMPLE)
        for x, y in ends:
            pen.ellipse(px(x - 3, y - 3, x + 3, y + 3), fill=fill)
    pen.line(px(_LEFT_PX, axes.top, _LEFT_PX, axes.bottom), fill=(20, 20, 20), width=SUPERSAMPLE)
    pen.line(px(_LEFT_PX, axes.bottom, width - _RIGHT_PX, axes.bottom), fill=(20, 20, 20), width=SUPERSAMPLE)
    picture = canvas.reduce(SUPERSAMPLE)
    _write_numbers(picture, drawing, axes, labels)
    return picture


def _write_numbers(picture: Image.Image, drawing: Drawing, axes: Axes, labels: Sequence[int]) -> None:
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=_FONT_PX)
    for label in labels:
        pen.text((_LEFT_PX - 5, axes.y(label)), str(label), fill=(20, 20, 20), font=font, anchor="rm")
    if drawing.kind == "line":
        count = len(drawing.values)
        for number in range(count):
            pen.text(
                (axes.x(number, count), axes.bottom + 3), str(number + 1), fill=(20, 20, 20), font=font, anchor="mt"
            )
