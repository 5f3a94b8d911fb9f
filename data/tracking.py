"""Task `tracking`: follow a star under one of several cups that change places, frame after frame.

What enters: a seed, an index and `TrackingOptions`. What leaves: a first picture that shows which cup the star is under, frames that the tool
`select_frames` brings up (`columns["hidden"]`), and the number of the cup, counted from the left, under which it ends. In each frame two cups
change places, or none does.

    Which cup has the star after the last frame?   2
    Which cup has the star after frame 3?          1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.scenes import COLORS, SHAPES, SUPERSAMPLE
from mmreason.data.tool_tasks import DialOptions, ToolTask, one_call, the_answer
from mmreason.records import Row

#: By difficulty: cups, frames (least, most), share of frames without a change, share of questions about a frame before the last.
_LEVELS = (
    (2, (1, 2), 0.0, 0.0),
    (3, (1, 3), 0.0, 0.0),
    (3, (2, 4), 0.1, 0.2),
    (4, (3, 5), 0.1, 0.3),
    (4, (4, 6), 0.2, 0.3),
    (5, (5, 8), 0.2, 0.4),
)
#: Frames that one call shows.
FRAMES_A_CALL = 4
#: Width of a cup's place, and height of a frame, in pixels.
_PLACE_PX, _HEIGHT_PX = 42, 84

Swap = tuple[int, int] | None


class TrackingOptions(DialOptions):
    """How many cups and frames. `difficulty` sets what is not set by hand."""

    cups: int | None = Field(None, ge=2, le=6, description="cups in a row; null = by difficulty")
    frames: tuple[int, int] | None = Field(None, description="least and most hidden frames; null = by difficulty")

    @property
    def num_cups(self) -> int:
        return self.cups or _LEVELS[self.difficulty][0]

    @property
    def frame_range(self) -> tuple[int, int]:
        return self.frames or _LEVELS[self.difficulty][1]

    def check(self) -> str | None:
        low, high = self.frame_range
        if not 1 <= low <= high <= 16:
            return f"frames=[{low}, {high}] must satisfy 1 <= least <= most <= 16"
        return None


@task("tracking")
class Tracking(ToolTask[TrackingOptions]):
    """Follow a hidden star through the frames of a sequence.

    Score: exact match. Style: `direct`, which shows all frames that matter: there the answer can be told without a tool.
    """

    metric: ClassVar[str] = "exact"
    tools: ClassVar[tuple[str, ...]] = ("select_frames",)

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return TrackingOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        num_cups, (low, high) = self.options.num_cups, self.options.frame_range
        _, _, still_share, early_share = _LEVELS[self.options.difficulty]
        num_frames = int(rng.integers(low, high + 1))
        swaps = tuple(_swap(rng, num_cups, still_share) for _ in range(num_frames))
        start = int(rng.integers(num_cups))
        last = int(rng.integers(1, num_frames)) if num_frames > 1 and rng.random() < early_share else num_frames
        when = "the last frame" if last == num_frames else f"frame {last}"
        ground = tuple(int(v) for v in rng.integers(214, 250, size=3))
        color = COLORS[str(rng.choice(list(COLORS)))]
        names = [f"frame {number + 1}" for number in range(num_frames)]
        columns = {
            "hidden": {
                name: paint_cups(num_cups, color, ground, swap=swap) for name, swap in zip(names, swaps, strict=True)
            },
            "swaps": swaps,
            "start": start,
            "last": last,
        }
        target = {
            "answer": str(followed(start, swaps[:last]) + 1),
            "pages": names[:last],
        }
        picture = paint_cups(num_cups, color, ground, star=start)
        question = f"Which cup has the star after {when}?"
        return self.made_row(index, split, [picture], question, target, columns)

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """For `direct`: the first picture and all frames up to the one that is asked about."""
        row = self.row(index, split)
        if style != "direct":
            return row
        hidden = list(row.columns["hidden"].values())[: row.columns["last"]]
        pictures = [image for image in (*row.images, *hidden) if isinstance(image, Image.Image)]
        return self.made_row(index, split, pictures, row.messages[0]["content"][-1]["text"], row.target, row.columns)

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """Look at the frames in order, a few a call, and say after each call where the star is."""
        del geometry_of, frame
        swaps, last, here = row.columns["swaps"], row.columns["last"], row.columns["start"]
        turns: list[PlannedTurn] = []
        thought = f"cup {here + 1}"
        for first in range(0, last, FRAMES_A_CALL):
            numbers = list(range(first + 1, min(first + FRAMES_A_CALL, last) + 1))
            turns.append(one_call(thought, "select_frames", frames=numbers))
            places = []
            for number in numbers:
                here = followed(here, swaps[number - 1 : number])
                places.append(f"frame {number} cup {here + 1}")
            thought = ", ".join(places)
        return [*turns, the_answer(row, thought)]


def _swap(rng: np.random.Generator, num_cups: int, still_share: float) -> Swap:
    if rng.random() < still_share:
        return None
    first, second = sorted(int(i) for i in rng.permutation(num_cups)[:2])
    return first, second


def followed(start: int, swaps: Sequence[Swap]) -> int:
    """Where the cup at place `start`, from 0, ends."""
    here = start
    for swap in swaps:
        if swap is not None and here in swap:
            here = swap[1] if here == swap[0] else swap[0]
    return here


def paint_cups(
    num_cups: int, color: tuple[int, int, int], ground: tuple[int, ...], *, star: int | None = None, swap: Swap = None
) -> Image.Image:
    """Cups in a row; a star under one, the cup lifted; or an arrow over two that change places."""
    size = (num_cups * _PLACE_PX, _HEIGHT_PX)
    canvas = Image.new("RGB", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), ground)
    pen = ImageDraw.Draw(canvas)
    for place in range(num_cups):
        _cup(pen, place, color, lifted=place == star)
    if star is not None:
        x, y, side = (star + 0.5) * _PLACE_PX, _HEIGHT_PX - 14, 18
        points = [(x + (px - 0.5) * side, y + (py - 0.5) * side) for px, py in SHAPES["star"]]
        pen.polygon([(SUPERSAMPLE * a, SUPERSAMPLE * b) for a, b in points], fill=(20, 20, 20))
    if swap is not None:
        _arrow(pen, *swap)
    return canvas.reduce(SUPERSAMPLE)


def _cup(pen: ImageDraw.ImageDraw, place: int, color: tuple[int, int, int], *, lifted: bool) -> None:
    x, top = (place + 0.5) * _PLACE_PX, 20 if lifted else 40
    points = [(x - 10, top), (x + 10, top), (x + 15, top + 36), (x - 15, top + 36)]
    pen.polygon(
        [(SUPERSAMPLE * a, SUPERSAMPLE * b) for a, b in points], fill=color, outline=(20, 20, 20), width=SUPERSAMPLE
    )


def _arrow(pen: ImageDraw.ImageDraw, first: int, second: int) -> None:
    """From the top of one cup to that of the other, with two heads."""
    left, right, high, low = (first + 0.5) * _PLACE_PX, (second + 0.5) * _PLACE_PX, 12.0, 34.0
    corners = [(left, low), (left, high), (right, high), (right, low)]
    pen.line([(SUPERSAMPLE * a, SUPERSAMPLE * b) for a, b in corners], fill=(20, 20, 20), width=3 * SUPERSAMPLE)
    for x in (left, right):
        head = [(x - 6, low - 6), (x + 6, low - 6), (x, low + 3)]
        pen.polygon([(SUPERSAMPLE * a, SUPERSAMPLE * b) for a, b in head], fill=(20, 20, 20))
