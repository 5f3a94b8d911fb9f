"""Task `fine_print`: what stands in a small box of a large picture, in print too fine for the model's pixel budget.

What enters: a seed, an index and `FinePrintOptions`. What leaves: a picture of about 400 px a side with coloured boxes, and a question about what is
printed in one of them.

    What shape is in the red box?                                             star
    What is the value in the blue box?                                        47
    Is the value in the red box more than the value in the blue box?          no

Print is a texture of light and dark single pixels that have the ground's colour on average, as in copy protection: a picture shrunk to 4/7 of
its size or less (the tiny model's 224 × 224 px, from 392 px on) shows the boxes and their colours, and inside them the ground alone, to one
or two of 255 levels. In a crop, every pixel is there. Nothing is left to guess from, whatever the model.

Source of the setting: search for details that need zoom, V* (arXiv 2312.14135) and DeepEyes (arXiv 2505.14362).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.scenes import COLORS, SHAPES, draw_background
from mmreason.data.tool_tasks import Corners, DialOptions, Seen, Size, ToolTask, mended, one_call, size_of, the_answer
from mmreason.errors import ConfigError
from mmreason.records import Row

#: By difficulty: boxes, shapes in play (0: numbers instead), digits of a number, side of the print in pixels, things around.
_LEVELS = ((1, 3, 0, 56, 0), (2, 4, 0, 56, 0), (3, 6, 0, 52, 3), (3, 0, 1, 48, 3), (4, 0, 2, 48, 4), (6, 0, 2, 44, 5))
#: From the hardest level on, this share of the questions compares two boxes.
_COMPARED_SHARE = 0.4
#: Levels that light and dark pixels lie above and below the ground, and how soft the edges of print are, in pixels.
_CONTRAST, _EDGE_PX = 90.0, 1.4
#: Frame of a box, and free ground inside it, in pixels.
_FRAME_PX, _INSIDE_PX = 5, 6
#: How large the row for `direct` shows a box.
_DIRECT_ZOOM = 2
#: How far a look may miss, as a share of the box's side, and how often a mistake is a look at another box where there is one.
_MISS_SHARE, _OTHER_BOX_SHARE = (0.6, 1.2), 0.5
_TRIES = 400


class FinePrintOptions(DialOptions):
    """How many boxes, and what is in them. `difficulty` sets what is not set by hand."""

    boxes: int | None = Field(None, ge=1, le=8, description="boxes with print; null = by difficulty")
    side_px: tuple[int, int] = Field(
        (392, 448), description="least and greatest side of the picture; at least 7/4 of what the model sees"
    )

    @property
    def num_boxes(self) -> int:
        return self.boxes or _LEVELS[self.difficulty][0]

    def check(self) -> str | None:
        low, high = self.side_px
        if not 392 <= low <= high <= 4096:
            return f"side_px={list(self.side_px)} must satisfy 392 <= least <= greatest <= 4096"
        return None


@dataclass(frozen=True, slots=True)
class PrintedBox:
    """A box with print in it.

    Attributes:
        color: of its frame.
        box: outer edge of the frame, pixels of the picture.
        content: name of a shape, or a number.
    """

    color: str
    box: Corners
    content: str


@task("fine_print")
class FinePrint(ToolTask[FinePrintOptions]):
    """Read what is printed in a small box, after zooming in.

    Score: exact match. Styles: `direct`, which shows the box alone, enlarged: there it can be read without a tool; `guess`, the answer at once
    below the whole picture, where it cannot be read: that is how a model keeps, or gets, the habit of answering in one turn.
    """

    metric: ClassVar[str] = "exact"
    styles: ClassVar[tuple[str, ...]] = ("direct", "guess")
    tools: ClassVar[tuple[str, ...]] = ("zoom", "crop")

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return FinePrintOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        level = _LEVELS[self.options.difficulty]
        size = tuple(int(v) for v in rng.integers(self.options.side_px[0], self.options.side_px[1] + 1, size=2))
        boxes = _placed(rng, self.options.num_boxes, level, (size[0], size[1]))
        picture = paint(rng, boxes, (size[0], size[1]), level[4])
        question, answer, asked = _ask(rng, boxes, self.options.difficulty)
        columns = {"boxes": boxes, "asked": asked}
        return self.made_row(index, split, [picture], question, {"answer": answer}, columns)

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """For `direct`: the boxes that are asked about, cut out and enlarged."""
        row = self.row(index, split)
        if style != "direct":
            return row
        picture = row.images[0]
        assert isinstance(picture, Image.Image)
        cut = []
        for item in row.columns["asked"]:
            piece = picture.crop(_whole(item.box))
            cut.append(
                piece.resize((piece.width * _DIRECT_ZOOM, piece.height * _DIRECT_ZOOM), Image.Resampling.LANCZOS)
            )
        question = row.messages[0]["content"][-1]["text"]
        return self.made_row(index, split, cut, question, row.target, row.columns)

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """Zoom into each box that is asked about, then answer."""
        seen, size = Seen(geometry_of, frame), size_of(row)
        asked: Sequence[PrintedBox] = row.columns["asked"]
        turns = [one_call(f"{item.color} box", "zoom", image="img_0", box=seen.box(item.box, size)) for item in asked]
        return [*turns, the_answer(row, ", ".join(f"{item.color} box: {item.content}" for item in asked))]

    def mended_plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """One of the looks goes to another box, or beside the right one, and is taken again."""
        seen, size, rng = Seen(geometry_of, frame), size_of(row), self.mistakes(row)
        asked: Sequence[PrintedBox] = row.columns["asked"]
        place = int(rng.integers(len(asked)))
        others = [item.box for item in row.columns["boxes"] if item not in asked]
        beside = _missed(asked[place], asked, size, float(rng.uniform(*_MISS_SHARE)))
        wrong = others if others and rng.random() < _OTHER_BOX_SHARE else beside
        box = seen.box(wrong[int(rng.integers(len(wrong)))], size)
        return mended(row, self.plan(row, geometry_of, frame), place, {"box": box})


def _missed(item: PrintedBox, asked: Sequence[PrintedBox], size: Size, share: float) -> list[Corners]:
    """Boxes of the same size that miss the right one by `share` of its sides, within a picture of `size`."""
    x1, y1, x2, y2 = item.box
    steps = [(dx * share * (x2 - x1), dy * share * (y2 - y1)) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    boxes = [(x1 + dx, y1 + dy, x2 + dx, y2 + dy) for dx, dy in steps]
    return [
        box
        for box in boxes
        if min(box) >= 0
        and box[2] <= size[0]
        and box[3] <= size[1]
        # A look at what is to be looked at anyway would be no mistake.
        and all(max(abs(box[0] - one.box[0]), abs(box[1] - one.box[1])) >= 0.5 * (x2 - x1) for one in asked)
    ]


def _whole(box: Corners) -> tuple[int, int, int, int]:
    return math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])


def _ask(rng: np.random.Generator, boxes: Sequence[PrintedBox], difficulty: int) -> tuple[str, str, list[PrintedBox]]:
    order = [boxes[int(i)] for i in rng.permutation(len(boxes))]
    if difficulty == len(_LEVELS) - 1 and len(order) > 1 and rng.random() < _COMPARED_SHARE:
        first, second = order[:2]
        question = f"Is the value in the {first.color} box more than the value in the {second.color} box?"
        return question, "yes" if int(first.content) > int(second.content) else "no", [first, second]
    asked = order[0]
    what = "What shape is" if asked.content in SHAPES else "What is the value"
    return f"{what} in the {asked.color} box?", asked.content, [asked]


def _placed(
    rng: np.random.Generator, count: int, level: tuple[int, int, int, int, int], size: tuple[int, int]
) -> tuple[PrintedBox, ...]:
    """Boxes apart from each other, each with a colour and a content of its own."""
    _, num_shapes, digits, side, _ = level
    known = list(SHAPES)[:num_shapes] or [str(n) for n in range(10 ** (digits - 1) if digits > 1 else 0, 10**digits)]
    picked = rng.permutation(len(known)) if count <= len(known) else rng.integers(len(known), size=count)
    colors = [list(COLORS)[int(i)] for i in rng.permutation(len(COLORS))[:count]]
    outer = side + 2 * (_FRAME_PX + _INSIDE_PX)
    places: list[Corners] = []
    for _ in range(_TRIES * count):
        if len(places) == count:
            break
        x, y = int(rng.integers(4, size[0] - outer - 3)), int(rng.integers(4, size[1] - outer - 3))
        if all(abs(x - a) >= outer + 4 or abs(y - b) >= outer + 4 for a, b, _, _ in places):
            places.append((x, y, x + outer, y + outer))
    if len(places) < count:
        raise ConfigError(
            f"task.boxes={count}: no room in {size[0]} × {size[1]} px. Ask for fewer, or enlarge task.side_px"
        )
    return tuple(
        PrintedBox(color, box, known[int(pick)]) for color, box, pick in zip(colors, places, picked, strict=False)
    )


def stencil(content: str, side_px: int) -> NDArray[np.float64]:
    """`[side, side]`, 0 to 1: where a shape or a number is printed, with soft edges."""
    mask = Image.new("L", (side_px, side_px), 0)
    pen = ImageDraw.Draw(mask)
    if content in SHAPES:
        low, length = 0.08 * side_px, 0.84 * side_px
        pen.polygon([(low + x * length, low + y * length) for x, y in SHAPES[content]], fill=255)
    else:
        font = ImageFont.load_default(size=side_px * (0.95 if len(content) == 1 else 0.78))
        pen.text((side_px / 2, side_px / 2), content, fill=255, font=font, anchor="mm", stroke_width=1)
    soft = mask.filter(ImageFilter.GaussianBlur(_EDGE_PX))
    return np.asarray(soft, np.float64) / 255


def paint(rng: np.random.Generator, boxes: Sequence[PrintedBox], size: tuple[int, int], num_things: int) -> Image.Image:
    canvas = draw_background(rng, *size)
    pen = ImageDraw.Draw(canvas)
    for _ in range(num_things):
        _thing(rng, pen, size)
    for item in boxes:
        x1, y1, x2, y2 = item.box
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[item.color])
        ground = int(rng.integers(112, 144))
        inside = (x1 + _FRAME_PX, y1 + _FRAME_PX, x2 - 1 - _FRAME_PX, y2 - 1 - _FRAME_PX)
        pen.rectangle(inside, fill=(ground, ground, ground))
    pixels = np.array(canvas, np.float64)
    for item in boxes:
        x, y = (round(v) + _FRAME_PX + _INSIDE_PX for v in item.box[:2])
        side = round(item.box[2] - item.box[0]) - 2 * (_FRAME_PX + _INSIDE_PX)
        pixels[y : y + side, x : x + side] += printed(item.content, side)[..., np.newaxis]
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def printed(content: str, side_px: int) -> NDArray[np.float64]:
    """`[side, side]`: what print adds to the ground; neighbouring pixels cancel out."""
    rows, columns = np.mgrid[0:side_px, 0:side_px]
    return np.asarray(_CONTRAST * (1.0 - 2.0 * ((rows + columns) % 2)) * stencil(content, side_px))


def _thing(rng: np.random.Generator, pen: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """A plain shape that has nothing to do with the question."""
    color, shape = (str(rng.choice(list(names))) for names in (COLORS, SHAPES))
    side = float(rng.uniform(40, 100))
    x, y = rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side)
    pen.polygon([(x + px * side, y + py * side) for px, py in SHAPES[shape]], fill=COLORS[color])
