"""`mmreason data preview TASK`: a contact sheet of rows with the answers drawn.

What enters: a task name, its options and a seed. What leaves: one PNG that shows what the model will be asked.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import TaskConfig
from mmreason.data.base import Split, build_task
from mmreason.errors import ConfigError
from mmreason.records import Row
from mmreason.tools.draw import draw_boxes

#: Size of one cell's picture and caption in pixels.
CELL_PX, CAPTION_PX, MARGIN_PX = 200, 62, 8


def question_of(row: Row) -> str:
    """The text of the last message."""
    content = row.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def answer_of(row: Row) -> str:
    """The target in words."""
    if "boxes" in row.target:
        boxes = ", ".join("[" + ", ".join(f"{v:.0f}" for v in box) + "]" for box in row.target["boxes"])
        return f"{', '.join(map(str, row.target.get('labels', [])))} {boxes}".strip()
    return str(row.target.get("answer", row.target.get("caption", "")))


def _cell(row: Row) -> Image.Image:
    """One picture with its true boxes, its question and its answer.

    Raises:
        ConfigError: the row has no picture, or names a file instead of holding one.
    """
    picture = row.images[0] if row.images else None
    if not isinstance(picture, Image.Image):
        found = "no picture" if picture is None else f"the path {str(picture)!r}"
        raise ConfigError(
            f"row '{row.id}' of task '{row.dataset}' has {found}: a preview draws rows that hold a PIL picture in images"
        )
    scale = CELL_PX / max(picture.size)
    shown = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    if "boxes" in row.target:
        scaled = [[v * scale for v in box] for box in row.target["boxes"]]
        shown = draw_boxes(shown, Boxes.of(scaled, Frame.original_px), color="#00c853")
    cell = Image.new("RGB", (CELL_PX, CELL_PX + CAPTION_PX), "white")
    cell.paste(shown, ((CELL_PX - shown.width) // 2, (CELL_PX - shown.height) // 2))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=12)
    lines = [*textwrap.wrap(question_of(row), 32)[:2], *textwrap.wrap("= " + answer_of(row), 32)[:2]]
    for number, line in enumerate(lines):
        is_answer = number >= min(2, len(textwrap.wrap(question_of(row), 32)))
        draw.text((2, CELL_PX + 2 + 14 * number), line, fill="#00701a" if is_answer else "black", font=font)
    return cell


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
    cells = [_cell(source.row(index, split)) for index in range(count)]
    columns = min(5, count)
    rows = -(-count // columns)
    step_x, step_y = CELL_PX + MARGIN_PX, CELL_PX + CAPTION_PX + MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + MARGIN_PX, rows * step_y + MARGIN_PX), "#d8d8d8")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (MARGIN_PX + (number % columns) * step_x, MARGIN_PX + (number // columns) * step_y))
    path = Path(out_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path
