"""Drawing on pictures: labelled boxes, and sheets of captioned pictures. Pillow only.

What enters: a picture and boxes in *its own* pixels (`mmreason.boxes` converts from any other frame).
What leaves: a new RGB picture; the one given is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

#: True boxes are solid green, predicted ones dashed orange: told apart by line style as well as by colour.
TRUE_COLOR = "#12a150"
PREDICTED_COLOR = "#f97316"

Point = tuple[float, float]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """One box to draw.

    Attributes:
        xyxy: `(x1, y1, x2, y2)` in pixels of the picture; corners in any order, parts outside are cut off.
        label: short text put at the box, may be empty.
        color: any Pillow colour.
        dashed: draw a dashed outline, used for predictions.
    """

    xyxy: tuple[float, float, float, float]
    label: str = ""
    color: str = TRUE_COLOR
    dashed: bool = False


def draw_boxes(image: Image.Image, boxes: Sequence[LabelledBox], scale: float | None = None) -> Image.Image:
    """Return a copy of the picture, enlarged by `scale`, with the boxes drawn over it.

    Args:
        image: the picture.
        boxes: boxes in pixels of `image`; one with a non-finite number is left out.
        scale: enlargement of the copy; `None` enlarges small pictures to about 320 px.
    """
    if scale is None:
        scale = float(max(1, round(320 / max(image.size))))
    canvas = _on_white(image)
    if scale != 1.0:
        size = (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale)))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(max(canvas.size) / 200))
    font = _font(max(10, round(max(canvas.size) / 26)))
    drawn = [box for box in boxes if all(math.isfinite(value) for value in box.xyxy)]
    for box in drawn:
        _outline(pen, _corners(box, scale, canvas.size, width), box, width)
    for box in drawn:  # labels last, so that no outline crosses a text
        if box.label:
            _label(pen, _corners(box, scale, canvas.size, width), box, font, canvas.size)
    return canvas


def contact_sheet(
    pictures: Sequence[tuple[Image.Image, str]],
    columns: int = 4,
    cell_px: int = 320,
    background: str = "white",
) -> Image.Image:
    """Lay pictures out in a grid, each above its caption.

    Args:
        pictures: `(picture, caption)` pairs; captions are wrapped and cut after six lines.
        columns: pictures per row of the sheet.
        cell_px: side of the square that each picture is fitted into, in pixels.
        background: colour between the pictures.

    Raises:
        ValueError: no pictures, or `columns` or `cell_px` below 1.
    """
    if not pictures or columns < 1 or cell_px < 1:
        raise ValueError(
            f"nothing to lay out: {len(pictures)} pictures, columns={columns}, cell_px={cell_px}"
        )
    font = _font(max(11, cell_px // 22))
    gap = max(6, cell_px // 32)
    captions = [_wrap(caption, font, cell_px) for _, caption in pictures]
    line_px = round(font.getbbox("Ag")[3] * 1.25)
    caption_px = max(len(lines) for lines in captions) * line_px
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (columns * (cell_px + gap) + gap, rows * (cell_px + caption_px + 2 * gap) + gap)
    sheet = Image.new("RGB", size, background)
    pen = ImageDraw.Draw(sheet)
    for index, ((picture, _), lines) in enumerate(zip(pictures, captions, strict=True)):
        left = gap + (index % columns) * (cell_px + gap)
        top = gap + (index // columns) * (cell_px + caption_px + 2 * gap)
        fitted = _fit(_on_white(picture), cell_px)
        sheet.paste(fitted, (left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2))
        for number, line in enumerate(lines):
            pen.text((left, top + cell_px + gap // 2 + number * line_px), line, fill="#222222", font=font)
    return sheet


def _on_white(image: Image.Image) -> Image.Image:
    """RGB copy, transparent parts on white."""
    if "A" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _fit(image: Image.Image, side_px: int) -> Image.Image:
    ratio = side_px / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.BICUBIC if ratio > 1 else Image.Resampling.LANCZOS)


@lru_cache(maxsize=16)
def _font(size_px: int) -> Font:
    return ImageFont.load_default(size=size_px)


def _corners(
    box: LabelledBox, scale: float, size: tuple[int, int], width: int
) -> tuple[float, float, float, float]:
    """Ordered corners on the canvas, kept inside it so that every outline stays visible."""
    x1, x2 = sorted((box.xyxy[0] * scale, box.xyxy[2] * scale))
    y1, y2 = sorted((box.xyxy[1] * scale, box.xyxy[3] * scale))
    right, bottom = size[0] - 1 - width // 2, size[1] - 1 - width // 2
    low = width // 2

    def inside(value: float, high: int) -> float:
        return min(max(value, low), max(low, high))

    return inside(x1, right), inside(y1, bottom), inside(x2, right), inside(y2, bottom)


def _outline(
    pen: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], box: LabelledBox, width: int
) -> None:
    x1, y1, x2, y2 = corners
    if not box.dashed:
        pen.rectangle(corners, outline=box.color, width=width)
        return
    sides = (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1)))
    for start, end in sides:
        for piece in _dashes(start, end, dash_px=4.0 * width):
            pen.line(piece, fill=box.color, width=width)


def _dashes(start: Point, end: Point, dash_px: float) -> Iterator[tuple[Point, Point]]:
    """Pieces of a dashed line: a dash at both ends, gaps at most as long as a dash."""
    length = math.dist(start, end)
    count = max(1, 2 * round(length / (2 * dash_px)) + 1)

    def along(share: float) -> Point:
        return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share

    for index in range(0, count, 2):
        yield along(index / count), along((index + 1) / count)


def _label(
    pen: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    box: LabelledBox,
    font: Font,
    size: tuple[int, int],
) -> None:
    """Text on a plate of the box's colour, above the box or, where there is no room, inside it."""
    label = box.label if len(box.label) <= 48 else box.label[:47] + "…"
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(corners[0], max(0, size[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    pen.rectangle((x, y, x + width, y + height), fill=box.color)
    pen.text((x + 3 - left, y + 2 - top), label, fill="white", font=font)


def _wrap(text: str, font: Font, width_px: int, max_lines: int = 6) -> list[str]:
    """Break text into lines that fit `width_px`; a word that is too long is cut."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width_px and len(word) > 1:
                word = word[: max(1, int(len(word) * width_px / font.getlength(word)) - 1)] + "…"
            candidate = f"{line} {word}".strip()
            if line and font.getlength(candidate) > width_px:
                lines.append(line)
                line = word
            else:
                line = candidate
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]
    return lines
