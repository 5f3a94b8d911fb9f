"""Task `pages`: find the page that a question means by searching, then the cell of its table.

What enters: a seed, an index and `PagesOptions`. What leaves: a question without a picture; pages that the tool `search` brings up (their pictures in
`columns["hidden"]`, the text of their index in `columns["pages"]`), the right ones in `target["pages"]`, and a whole number. The index knows titles, rows
and columns, not the values: those stand on the pages alone.

    What is the value of the small star on the page red fish?                                  47
    How much larger is the small star on the page red fish than on the page blue boat?         12

Source of the setting: VRAG-RL (arXiv 2505.22019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.scenes import COLORS, SHAPES
from mmreason.data.tool_tasks import Corners, DialOptions, Seen, ToolTask, one_call, the_answer
from mmreason.records import Row

#: What titles, rows and columns are called; no word is in two of these lists, so that a title finds its page.
_TITLE_WORDS = ("fish", "boat", "house", "tree", "cup", "sign")
_COLUMN_WORDS = ("small", "large", "top", "bottom", "left", "right")
#: By difficulty: pages, rows and columns of a table, letters in pixels, whether titles share words, share of questions about two pages.
_LEVELS = (
    (2, 1, 2, 14, False, 0.0),
    (3, 2, 2, 14, False, 0.0),
    (4, 3, 2, 13, False, 0.0),
    (5, 3, 3, 12, True, 0.0),
    (6, 4, 4, 12, True, 0.0),
    (8, 5, 5, 12, True, 0.4),
)
#: From this many cells on, the plan cuts the cell's row out of the table.
_MANY_CELLS = 16
#: A cell's width in letters and its height in lines; free space around, in pixels.
_CELL_LETTERS, _CELL_LINES, _MARGIN_PX = 4.6, 1.7, 8


class PagesOptions(DialOptions):
    """How many pages, and how large their tables are. `difficulty` sets what is not set by hand."""

    pages: int | None = Field(None, ge=2, le=24, description="pages to search; null = by difficulty")
    rows: int | None = Field(None, ge=1, le=6, description="rows of a table; null = by difficulty")
    columns: int | None = Field(None, ge=1, le=6, description="columns of a table; null = by difficulty")

    @property
    def counts(self) -> tuple[int, int, int]:
        """Pages, rows, columns."""
        pages, rows, columns, *_ = _LEVELS[self.difficulty]
        return self.pages or pages, self.rows or rows, self.columns or columns


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its table.

    Attributes:
        title: `red fish`; no two pages have the same.
        rows, columns: what they are called.
        values: `values[row][column]`, 0 to 99.
        font_px: height of letters.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    font_px: int

    @property
    def text(self) -> str:
        """What the index knows."""
        return " ".join((self.title, *self.rows, *self.columns))

    @property
    def cell_px(self) -> tuple[int, int]:
        """Width and height of a cell."""
        return round(_CELL_LETTERS * self.font_px), round(_CELL_LINES * self.font_px)

    @property
    def size(self) -> tuple[int, int]:
        """Of the picture: names take the first column and the first row, the title a line above."""
        width, height = self.cell_px
        return width * (len(self.columns) + 1) + 2 * _MARGIN_PX, height * (len(self.rows) + 2) + 2 * _MARGIN_PX

    def cell(self, row: int, column: int) -> Corners:
        """Box of a cell in pixels; column -1 holds the names of the rows, row -1 those of the columns."""
        width, height = self.cell_px
        x, y = _MARGIN_PX + (column + 1) * width, _MARGIN_PX + (row + 2) * height
        return x, y, x + width, y + height

    def band(self, row: int) -> Corners:
        """Box of a whole row with its name."""
        first, last = self.cell(row, -1), self.cell(row, len(self.columns) - 1)
        return first[0], first[1], last[2], last[3]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: names of the pages, and row and column of the cell on each."""

    pages: tuple[str, ...]
    row: int
    column: int


@task("pages")
class Pages(ToolTask[PagesOptions]):
    """Find the right page by searching, then read a cell of its table.

    Score: exact match. Style: `direct`, which shows the right pages: there the answer can be read without a tool.
    """

    metric: ClassVar[str] = "exact"
    tools: ClassVar[tuple[str, ...]] = ("search", "crop", "zoom")

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return PagesOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        pages = _drawn(rng, self.options)
        names = [f"page {number + 1}" for number in range(len(pages))]
        two = rng.random() < _LEVELS[self.options.difficulty][5]
        picked = [int(i) for i in rng.permutation(len(pages))[: 2 if two else 1]]
        row, column = int(rng.integers(len(pages[0].rows))), int(rng.integers(len(pages[0].columns)))
        picked.sort(key=lambda number: -pages[number].values[row][column])
        first = pages[picked[0]]
        cell = f"the {first.columns[column]} {first.rows[row]} on the page"
        if two:
            second = pages[picked[1]]
            question = f"How much larger is {cell} {first.title} than on the page {second.title}?"
            answer = first.values[row][column] - second.values[row][column]
        else:
            question, answer = f"What is the value of {cell} {first.title}?", first.values[row][column]
        asked = Asked(tuple(names[number] for number in picked), row, column)
        target = {"answer": str(answer), "pages": list(asked.pages)}
        columns = {
            "pages": {name: page.text for name, page in zip(names, pages, strict=True)},
            "hidden": {name: paint_page(page) for name, page in zip(names, pages, strict=True)},
            "tables": dict(zip(names, pages, strict=True)),
            "asked": asked,
        }
        return self.made_row(index, split, [], question, target, columns)

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """For `direct`: the right pages are shown."""
        row = self.row(index, split)
        if style != "direct":
            return row
        shown = [row.columns["hidden"][name] for name in row.columns["asked"].pages]
        return self.made_row(index, split, shown, row.messages[0]["content"][-1]["text"], row.target, row.columns)

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """Search each page by its title, cut the row out of a large table, answer."""
        seen, asked = Seen(geometry_of, frame), row.columns["asked"]
        tables: Mapping[str, Page] = row.columns["tables"]
        turns: list[PlannedTurn] = []
        read: list[str] = []
        for name in asked.pages:
            page = tables[name]
            turns.append(one_call(page.title, "search", query=page.title))
            if len(page.rows) * len(page.columns) >= _MANY_CELLS:
                # Every turn makes one picture, so the newest has the number of the turn.
                box = seen.box(page.band(asked.row), page.size)
                turns.append(one_call(page.rows[asked.row], "crop", image=f"img_{len(turns) - 1}", box=box))
            read.append(f"{page.title} {page.values[asked.row][asked.column]}")
        return [*turns, the_answer(row, ", ".join(read))]


def _drawn(rng: np.random.Generator, options: PagesOptions) -> list[Page]:
    """Pages with the same rows and columns: nothing but the title tells which one is meant."""
    num_pages, num_rows, num_columns = options.counts
    *_, font_px, shared, _ = _LEVELS[options.difficulty]
    rows = tuple(str(word) for word in rng.permutation(list(SHAPES))[:num_rows])
    columns = tuple(str(word) for word in rng.permutation(list(_COLUMN_WORDS))[:num_columns])
    titles = _titles(rng, num_pages, shared)
    return [
        Page(
            title,
            rows,
            columns,
            tuple(tuple(int(v) for v in line) for line in rng.integers(0, 100, size=(num_rows, num_columns))),
            font_px,
        )
        for title in titles
    ]


def _titles(rng: np.random.Generator, count: int, shared: bool) -> list[str]:
    """Different titles; without `shared` words as far as there are enough of them."""
    colors = [str(name) for name in rng.permutation(list(COLORS))]
    words = [str(name) for name in rng.permutation(list(_TITLE_WORDS))]
    if not shared and count <= len(words):
        return [f"{color} {word}" for color, word in zip(colors[:count], words[:count], strict=True)]
    # Few words for many pages: each word of a title stands on several pages.
    side = next(n for n in range(2, len(words) + 1) if n * n >= count)
    every = [f"{color} {word}" for color in colors[:side] for word in words[:side]]
    return [every[int(i)] for i in rng.permutation(len(every))[:count]]


def paint_page(page: Page) -> Image.Image:
    """The page: its title, the names of rows and columns, a value in each cell."""
    picture = Image.new("RGB", page.size, (252, 252, 248))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=page.font_px)
    ink = (20, 20, 20)
    pen.text((_MARGIN_PX, _MARGIN_PX), page.title, fill=ink, font=font)
    for row in range(-1, len(page.rows)):
        for column in range(-1, len(page.columns)):
            x1, y1, x2, y2 = page.cell(row, column)
            if (row, column) == (-1, -1):
                continue
            text = page.columns[column] if row < 0 else page.rows[row] if column < 0 else str(page.values[row][column])
            pen.rectangle(
                (x1, y1, x2, y2), outline=(150, 150, 150), fill=(232, 238, 246) if row < 0 or column < 0 else None
            )
            pen.text(((x1 + x2) / 2, (y1 + y2) / 2), text, fill=ink, font=font, anchor="mm")
    return picture
