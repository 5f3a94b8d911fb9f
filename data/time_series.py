"""Task `time_series`: a line plot as a picture, and the class of its course (TimeMaster, arXiv 2506.13705).

What enters: a seed, an index and `TimeSeriesOptions`. What leaves: a small plot drawn here, a question that lists the classes, and
the right one. The answer stands in `<class>`; with the option `extension`, one sentence on what comes next follows in
`<extension>`.

Legend of shapes: N points of a series; times and heights are `[N]`, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.scenes import COLORS, SUPERSAMPLE
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Series = NDArray[np.float64]

#: Points that the style `look` reads off a plot.
NUM_READ = 8
#: Free space around the plot, and the space of the axes, in pixels.
_MARGIN_PX, _AXIS_PX = 4, 8


def _rise(time: Series, rng: np.random.Generator) -> Series:
    return time


def _fall(time: Series, rng: np.random.Generator) -> Series:
    return 1.0 - time


def _wave(time: Series, rng: np.random.Generator) -> Series:
    """Two to five whole periods of the same height."""
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(2, 5) * time + rng.random())))


def _flat(time: Series, rng: np.random.Generator) -> Series:
    return np.full_like(time, rng.uniform(0.2, 0.8))


def _step(time: Series, rng: np.random.Generator) -> Series:
    """Flat, then flat at another height."""
    high = time > rng.uniform(0.3, 0.7)
    return np.where(high, 1.0, 0.0) if rng.random() < 0.5 else np.where(high, 0.0, 1.0)


def _spike(time: Series, rng: np.random.Generator) -> Series:
    """Flat but for one narrow peak or dip."""
    peak = np.exp(-0.5 * ((time - rng.uniform(0.2, 0.8)) / 0.02) ** 2)
    return np.asarray(peak if rng.random() < 0.5 else 1.0 - peak)


def _hill(time: Series, rng: np.random.Generator) -> Series:
    """Up, then down again, once."""
    return np.asarray(np.sin(np.pi * time) ** 1.5)


def _fading(time: Series, rng: np.random.Generator) -> Series:
    """A wave that dies away."""
    return np.asarray(0.5 + 0.5 * np.exp(-3.5 * time) * np.sin(2 * np.pi * (rng.uniform(3, 6) * time + rng.random())))


#: Class -> its course and what it lets one expect. The dial adds the later ones.
CLASSES: Mapping[str, tuple[Callable[[Series, np.random.Generator], Series], str]] = {
    "rise": (_rise, "It will be higher next."),
    "fall": (_fall, "It will be lower next."),
    "wave": (_wave, "It will go up and down again."),
    "flat": (_flat, "It will stay where it is."),
    "step": (_step, "It will stay at the new height."),
    "spike": (_spike, "It will stay where it was before."),
    "hill": (_hill, "It is back where it was and will stay low."),
    "fading": (_fading, "It will come to rest."),
}


class TimeSeriesOptions(TaskOptions):
    """Which classes, and how noisy. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: number of classes, noise, drawing")
    classes: tuple[str, ...] | None = Field(None, description=f"classes in play; known: {', '.join(CLASSES)}")
    noise: float | None = Field(
        None, ge=0.0, le=0.12, description="standard deviation as a share of the height; null = by difficulty"
    )
    extension: bool = Field(
        False, description="also ask for one sentence on what comes next, in <extension>; see reward.format.tags"
    )
    side_px: tuple[int, int] = Field((98, 126), description="least and greatest side of the picture in pixels")

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes or tuple(CLASSES)[: (4, 6, 8, 8)[self.difficulty]]

    @property
    def noise_share(self) -> float:
        return (0.01, 0.03, 0.05, 0.09)[self.difficulty] if self.noise is None else self.noise

    def check(self) -> str | None:
        unknown = [name for name in self.names if name not in CLASSES]
        if unknown:
            return f"classes: unknown {', '.join(unknown)}. Known: {', '.join(CLASSES)}"
        if len(set(self.names)) < max(2, len(self.names)):
            return f"classes={list(self.names)}: name at least two, each once"
        if not 84 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 84 <= least <= greatest <= 2048"
        return None


@task("time_series")
class TimeSeries(Task[TimeSeriesOptions]):
    """Name the class of a plotted series.

    Score: exact match of the class. Styles: `direct`, `look` (eight heights from left to right, 0 to 100, then the class).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "exact"
    format_options: ClassVar[Mapping[str, Any]] = {"tags": ["think", "class"]}

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return TimeSeriesOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        names = [str(name) for name in rng.permutation(self.options.names)]
        name = names[int(rng.integers(len(names)))]
        time, heights = draw_series(rng, name, self.options.noise_share)
        width, height = (int(v) for v in rng.integers(self.options.side_px[0], self.options.side_px[1] + 1, size=2))
        question = f"Which class is it: {', '.join(names)}?"
        if self.options.extension:
            question += " What is next?"
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
            images=(plot(rng, time, heights, width, height, plain=self.options.difficulty == 0),),
            target={"answer": name, "choices": names},
            dataset=self.name,
            columns={"heights": heights, "extension": CLASSES[name][1]},
        )

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        heights: Series = row.columns["heights"]
        places = np.linspace(0, len(heights) - 1, NUM_READ).round().astype(int)
        told = ", ".join(str(round(100 * float(heights[place]))) for place in places) if style == "look" else ""
        text = f"<think>{told}</think><class>{row.target['answer']}</class>"
        return f"{text}<extension>{row.columns['extension']}</extension>" if self.options.extension else text


def draw_series(rng: np.random.Generator, name: str, noise_share: float) -> tuple[Series, Series]:
    """Times and heights `[N]` of one series of a class, both within 0..1.

    The course takes at least 55 % of the height, so that noise is never mistaken for it; a flat one takes none.
    """
    time = np.linspace(0.0, 1.0, int(rng.integers(60, 121)))
    course = CLASSES[name][0](time, rng)
    span = rng.uniform(0.55, 0.75)
    if name == "flat":
        heights = course
    else:  # a course may not use all of 0..1 (a wave that dies away in its first quarter), its share of the height does
        heights = rng.uniform(0.12, 0.88 - span) + span * (course - course.min()) / np.ptp(course)
    noisy = heights + rng.normal(0.0, noise_share, len(time))
    return time, np.clip(noisy, 0.0, 1.0)


def plot(
    rng: np.random.Generator, time: Series, heights: Series, width: int, height: int, *, plain: bool
) -> Image.Image:
    """Draw a series as a line with axes: light or dark paper, some with a grid (not if `plain`)."""
    dark = not plain and rng.random() < 0.3
    paper, ink, faint = (
        ((24, 26, 32), (200, 200, 205), (58, 60, 70)) if dark else ((252, 252, 250), (40, 40, 40), (222, 222, 222))
    )
    scale = SUPERSAMPLE
    image = Image.new("RGB", (width * scale, height * scale), paper)
    draw = ImageDraw.Draw(image)
    left, top = (_MARGIN_PX + _AXIS_PX) * scale, _MARGIN_PX * scale
    right, bottom = (width - _MARGIN_PX) * scale, (height - _MARGIN_PX - _AXIS_PX) * scale
    if not plain and rng.random() < 0.5:
        for share in (0.25, 0.5, 0.75):
            draw.line([(left, top + share * (bottom - top)), (right, top + share * (bottom - top))], faint, scale)
            draw.line([(left + share * (right - left), top), (left + share * (right - left), bottom)], faint, scale)
    draw.line([(left, top), (left, bottom), (right, bottom)], ink, scale)
    for share in np.linspace(0, 1, 5):
        x, y = left + share * (right - left), bottom - share * (bottom - top)
        draw.line([(x, bottom), (x, bottom + 3 * scale)], ink, scale)
        draw.line([(left - 3 * scale, y), (left, y)], ink, scale)
    strength = 1.0 if dark else 0.8
    color = tuple(int(strength * part) for part in list(COLORS.values())[int(rng.integers(len(COLORS)))])
    points = [(left + t * (right - left), bottom - h * (bottom - top)) for t, h in zip(time, heights, strict=True)]
    draw.line(points, color, int(rng.integers(4, 7)), joint="curve")
    return image.reduce(scale)
