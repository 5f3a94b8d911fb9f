"""Drawing labelled boxes on a picture, with Pillow only.

What enters: a picture and boxes in *its own* pixels (`mmreason.boxes` converts from any other frame). What
leaves: a new RGB picture of the same size; the one given is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from mmreason.boxes import Boxes, Frame
from mmreason.errors import BoxError

#: True boxes are solid green; predicted ones are drawn with `dashed`, told apart by line style as well.
TRUE_COLOR = "#0f9d4a"
#: Characters of a label that are drawn.
MAX_LABEL_CHARS = 48

Point = tuple[float, float]
Corners = tuple[float, float, float, float]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_boxes(
    image: Image.Image,
    boxes: Boxes,
    labels: Sequence[str] = (),
    color: str = TRUE_COLOR,
    dashed: bool = False,
) -> Image.Image:
    """Return an RGB copy of the picture with the boxes drawn over it; lines and text grow with its size.

    Args:
        image: the picture; transparent parts become white.
        boxes: N boxes in `original_px` of `image`, corners in any order. What lies outside is moved to the
            border, so that every outline can be seen.
        labels: text for each box, drawn on a plate at its top; fewer than N leave the rest without one.
        color: any Pillow colour.
        dashed: dashed outlines, used for predictions.

    Raises:
        BoxError: the boxes are in another frame than `original_px`.
    """
    if boxes.frame is not Frame.original_px:
        raise BoxError(f"boxes to draw must be in original_px of the picture, not {boxes.frame.value}: use .to()")
    canvas = _on_white(image)
    pen = ImageDraw.Draw(canvas)
    width = line_width(canvas.size)
    placed = [_inside(box, canvas.size, width) for box in boxes.ordered().xyxy.tolist()]
    for corners in placed:
        if dashed:
            _dashed_outline(pen, corners, color, width)
        else:
            pen.rectangle(corners, outline=color, width=width)
    font = font_for(canvas.size)
    for corners, label in zip(placed, labels, strict=False):  # after all outlines, so that none crosses a text
        if label:
            plate(pen, corners, label, color, font, canvas.size)
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def line_width(size: tuple[int, int]) -> int:
    """Width of lines in a picture of this size, in pixels."""
    return max(1, round(max(size) / 150))


def font_for(size: tuple[int, int]) -> Font:
    """The font for a picture of this size: the one that Pillow brings along, the same on every machine."""
    return _font(max(9, round(max(size) / 24)))


@lru_cache(maxsize=16)
def _font(size_px: int) -> Font:
    return ImageFont.load_default(size=size_px)


def _inside(box: Sequence[float], size: tuple[int, int], width: int) -> Corners:
    """The box moved and cut to lie wholly on the canvas, half a line width from its edge."""
    low = width // 2

    def kept(value: float, length: int) -> float:
        return min(max(value, low), max(low, length - 1 - low))

    return kept(box[0], size[0]), kept(box[1], size[1]), kept(box[2], size[0]), kept(box[3], size[1])


def _dashed_outline(pen: ImageDraw.ImageDraw, corners: Corners, color: str, width: int) -> None:
    x1, y1, x2, y2 = corners
    sides = (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1)))
    for start, end in sides:
        for piece in _dashes(start, end, dash_px=4.0 * width):
            pen.line(piece, fill=color, width=width)


def _dashes(start: Point, end: Point, dash_px: float) -> Iterator[tuple[Point, Point]]:
    """Pieces of a dashed line: dashes and gaps of one length, a dash at both ends."""
    count = 2 * round(math.dist(start, end) / (2 * dash_px)) + 1

    def along(share: float) -> Point:
        return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share

    for index in range(0, count, 2):
        yield along(index / count), along((index + 1) / count)


def plate(
    pen: ImageDraw.ImageDraw, corners: Corners, label: str, color: str, font: Font, size: tuple[int, int]
) -> None:
    """Text on a plate of the box's colour, above the box or, where there is no room, inside it."""
    text = label if len(label) <= MAX_LABEL_CHARS else label[: MAX_LABEL_CHARS - 1] + "…"
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(corners[0], max(0, size[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)
