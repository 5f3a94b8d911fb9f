"""`mmreason data preview TASK`: a contact sheet of rows with the answers drawn.

What enters: a task name, its options and a seed. What leaves: one PNG that shows what the model will be asked.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import TaskConfig
from mmreason.data.base import Split, build_task
from mmreason.errors import ConfigError
from mmreason.labelled_boxes import images_of_boxes, write_target_boxes
from mmreason.prompt_boxes import BOXES_PART
from mmreason.records import ImageGeometry, Row
from mmreason.tools.draw import draw_boxes

#: Size of one cell's picture, of a line of text under it, and of the gaps, in pixels.
CELL_PX, LINE_PX, MARGIN_PX = 200, 14, 8
#: Least and most lines of text under a picture, the answer's included; what does not fit is left out.
CAPTION_LINES, MAX_CAPTION_LINES = 4, 16
#: Characters of one line.
_LINE_CHARS = 32


def question_of(row: Row) -> str:
    """The text of the last message; boxes in it, which the picture shows, are counted."""
    content = row.messages[-1]["content"]
    if isinstance(content, str):
        return content
    told = [f"({len(part['boxes'])} boxes)" if part["type"] == BOXES_PART else part.get("text", "") for part in content]
    return "".join(told).strip()


def answer_of(row: Row) -> str:
    """The target in words."""
    if "span" in row.target:
        return f"{row.target['span']} (was: {row.target.get('original_span')})"
    if "boxes" in row.target:
        boxes = write_target_boxes(row.target, _sizes(row), Frame.original_px)
        return f"{', '.join(map(str, row.target.get('labels', [])))} {boxes}".strip()
    return str(row.target.get("answer", row.target.get("caption", "")))


def _lines(row: Row) -> tuple[list[str], list[str]]:
    """Question and answer in lines; no question where it stands in the place of a picture."""
    question = textwrap.wrap(question_of(row), _LINE_CHARS) if row.images or row.columns.get("hidden") else []
    return question, textwrap.wrap("= " + answer_of(row), _LINE_CHARS)[:2]


def _cell(row: Row, num_lines: int = CAPTION_LINES) -> Image.Image:
    """The pictures of a row with their true boxes, its question and its answer; a question without picture is written large.

    Args:
        row: the row.
        num_lines: lines of text under the pictures.

    Raises:
        ConfigError: the row names a file instead of holding a picture.
    """
    cell = Image.new("RGB", (CELL_PX, CELL_PX + _caption_px(num_lines)), "white")
    # One picture fills the cell; up to four stand two by two, in reading order. Pages and frames that tools bring up come last.
    pictures = [*_pictures(row), *row.columns.get("hidden", {}).values()] or [_written(question_of(row))]
    across = math.ceil(math.sqrt(len(pictures)))
    side = CELL_PX // across
    for number, picture in enumerate(pictures):
        shown = _shown(row, number, picture, side)
        left, top = number % across * side, number // across * side
        cell.paste(shown, (left + (side - shown.width) // 2, top + (side - shown.height) // 2))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=12)
    question, answer = _lines(row)
    question = question[: num_lines - len(answer)]
    for number, line in enumerate([*question, *answer]):
        color = "black" if number < len(question) else "#00701a"
        draw.text((2, CELL_PX + 2 + LINE_PX * number), line, fill=color, font=font)
    return cell


def _caption_px(num_lines: int) -> int:
    return LINE_PX * num_lines + 6


def _pictures(row: Row) -> list[Image.Image]:
    for picture in row.images:
        if not isinstance(picture, Image.Image):
            raise ConfigError(
                f"row '{row.id}' of task '{row.dataset}' has the path {str(picture)!r}: a preview draws rows that hold a "
                "PIL picture in images"
            )
    return [picture for picture in row.images if isinstance(picture, Image.Image)]


def _sizes(row: Row) -> tuple[ImageGeometry, ...]:
    """Geometry of pictures that nothing resizes; patches do not matter here."""
    return tuple(ImageGeometry(picture.size, picture.size, 1, 1) for picture in _pictures(row))


def _shown(row: Row, number: int, picture: Image.Image, side_px: int) -> Image.Image:
    """Picture `number` at the size of its place: boxes of the question dashed and numbered, true boxes over them."""
    scale = (side_px - 2) / max(picture.size)
    shown = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)

    def scaled(boxes: Sequence[Sequence[float]]) -> Boxes:
        return Boxes.of([[v * scale for v in box] for box in boxes], Frame.original_px)

    content = row.messages[-1]["content"]
    for part in [] if isinstance(content, str) else content:
        if part["type"] == BOXES_PART and part.get("image_index", 0) == number:
            names = [str(place + 1) for place in range(len(part["boxes"]))]
            shown = draw_boxes(shown, scaled(part["boxes"]), names, color="#455a64", dashed=True)
    placed = zip(row.target.get("boxes", []), images_of_boxes(row.target), strict=True)
    here = [box for box, image in placed if image == number]
    return draw_boxes(shown, scaled(here), color="#00c853") if here else shown


def _written(question: str) -> Image.Image:
    """A question as a picture of a cell's size, in letters as large as fit."""
    picture = Image.new("RGB", (CELL_PX, CELL_PX), "#f6f3e8")
    for size_px in (22, 18, 14, 11):
        lines = textwrap.wrap(question, int(1.75 * CELL_PX / size_px), break_long_words=True)
        if len(lines) * 1.3 * size_px <= CELL_PX - 16:
            break
    font = ImageFont.load_default(size=size_px)
    ImageDraw.Draw(picture).multiline_text((8, 8), "\n".join(lines), fill="black", font=font, spacing=0.3 * size_px)
    return picture


def write_contact_sheet(
    task_name: str,
    out_path: str | Path,
    count: int = 20,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    split: Split = "train",
) -> Path:
    """Draw `count` rows of a task into one PNG and return its path.

    Raises:
        PluginError: no such task. ConfigError: a wrong option or count.
    """
    if not 1 <= count <= 400:
        raise ConfigError(f"--count {count}: give a number from 1 to 400")
    source = build_task(TaskConfig(name=task_name, **(options or {})), seed)
    made = [source.row(index, split) for index in range(count)]
    needed = max(sum(map(len, _lines(row))) for row in made)
    num_lines = min(max(needed, CAPTION_LINES), MAX_CAPTION_LINES)
    cells = [_cell(row, num_lines) for row in made]
    columns = min(5, count)
    rows = -(-count // columns)
    step_x, step_y = CELL_PX + MARGIN_PX, CELL_PX + _caption_px(num_lines) + MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + MARGIN_PX, rows * step_y + MARGIN_PX), "#d8d8d8")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (MARGIN_PX + (number % columns) * step_x, MARGIN_PX + (number // columns) * step_y))
    path = Path(out_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path
