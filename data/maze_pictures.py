"""Mazes: regions of cells joined without loops, each with one exit, and their pictures.

What enters: a generator of random numbers, the number of cells a side and of exits. What leaves: a `Maze` with exact walls and ways in pixels,
and its picture.

Legend: cells are `(column, row)` from the top left, `n` a side; coordinates are pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mmreason.data.scenes import COLORS, SHAPES, SUPERSAMPLE

Cell = tuple[int, int]
Point = tuple[float, float]
#: `(x1, y1, x2, y2)`, ends of a straight wall.
Wall = tuple[float, float, float, float]

#: White space around the outer wall, in pixels.
MARGIN_PX = 4.0
#: Radius of an exit and of the start, as a share of a cell's side.
_MARK_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Maze:
    """A maze whose cells fall into regions without loops, so that there is one way between two cells of a region and none to another.

    Attributes:
        n: cells a side.
        cell_px: side of a cell.
        joined: pairs of neighbouring cells without a wall between them.
        exits: colour -> cell; one in each region.
        start: where one begins.
        way: the cells from the start to the exit of its region, both included.
    """

    n: int
    cell_px: float
    joined: frozenset[frozenset[Cell]]
    exits: dict[str, Cell]
    start: Cell
    way: tuple[Cell, ...]

    @property
    def goal(self) -> str:
        """Colour of the exit that can be reached."""
        return next(color for color, cell in self.exits.items() if cell == self.way[-1])

    @property
    def corners(self) -> tuple[Cell, ...]:
        """Start, the cells where the way turns, and the exit."""
        turns = [
            here
            for before, here, after in zip(self.way, self.way[1:], self.way[2:], strict=False)
            if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
        ]
        return (self.way[0], *turns, self.way[-1])

    @property
    def side_px(self) -> int:
        """Of the picture."""
        return round(self.n * self.cell_px + 2 * MARGIN_PX)

    def center(self, cell: Cell) -> Point:
        """Middle of a cell."""
        return MARGIN_PX + (cell[0] + 0.5) * self.cell_px, MARGIN_PX + (cell[1] + 0.5) * self.cell_px

    def walls(self) -> list[Wall]:
        """The outer wall, and one piece between any two neighbours that are not joined."""
        low, high = MARGIN_PX, MARGIN_PX + self.n * self.cell_px
        found: list[Wall] = [
            (low, low, high, low),
            (high, low, high, high),
            (low, high, high, high),
            (low, low, low, high),
        ]
        for x in range(self.n):
            for y in range(self.n):
                left, top = MARGIN_PX + x * self.cell_px, MARGIN_PX + y * self.cell_px
                right, bottom = left + self.cell_px, top + self.cell_px
                if x + 1 < self.n and frozenset(((x, y), (x + 1, y))) not in self.joined:
                    found.append((right, top, right, bottom))
                if y + 1 < self.n and frozenset(((x, y), (x, y + 1))) not in self.joined:
                    found.append((left, bottom, right, bottom))
        return found


def draw_maze(
    rng: np.random.Generator, n: int, colors: Sequence[str], turns: tuple[int, int], cell_px: float
) -> Maze | None:
    """A maze with one exit of each colour whose way has `turns` (least, most) straight pieces; `None` if this one has no such way."""
    cells = [(x, y) for x in range(n) for y in range(n)]
    seeds = [cells[int(i)] for i in rng.permutation(len(cells))[: len(colors)]]
    joined = _grown(rng, n, seeds)
    exits = dict(zip(colors, seeds, strict=True))
    ways = [
        maze
        for goal in seeds
        for way in _ways(joined, goal)
        if turns[0] <= len((maze := Maze(n, cell_px, joined, exits, way[0], way)).corners) - 1 <= turns[1]
    ]
    return ways[int(rng.integers(len(ways)))] if ways else None


def neighbours(cell: Cell, n: int) -> list[Cell]:
    """The two to four cells beside one."""
    x, y = cell
    around = [(x + 1, y), (x, y + 1), (x - 1, y), (x, y - 1)]
    return [(a, b) for a, b in around if 0 <= a < n and 0 <= b < n]


def _grown(rng: np.random.Generator, n: int, seeds: Sequence[Cell]) -> frozenset[frozenset[Cell]]:
    """Trees that grow from the seeds, deep first, until no cell is free."""
    taken, joined = set(seeds), set()
    stacks = [[seed] for seed in seeds]
    while any(stacks):
        stack = stacks[int(rng.choice([i for i, one in enumerate(stacks) if one]))]
        free = [cell for cell in neighbours(stack[-1], n) if cell not in taken]
        if not free:
            stack.pop()
            continue
        new = free[int(rng.integers(len(free)))]
        joined.add(frozenset((stack[-1], new)))
        taken.add(new)
        stack.append(new)
    return frozenset(joined)


def _ways(joined: frozenset[frozenset[Cell]], goal: Cell) -> list[tuple[Cell, ...]]:
    """From every other cell of the goal's region, the way to it; in a fixed order."""
    beside: dict[Cell, list[Cell]] = {}
    for pair in joined:
        a, b = sorted(pair)
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)
    found: dict[Cell, tuple[Cell, ...]] = {goal: (goal,)}
    open_cells = [goal]
    while open_cells:
        here = open_cells.pop()
        for cell in beside.get(here, []):
            if cell not in found:
                found[cell] = (cell, *found[here])
                open_cells.append(cell)
    return [way for cell, way in sorted(found.items()) if cell != goal]


def paint_maze(rng: np.random.Generator, maze: Maze) -> Image.Image:
    """Black walls on light ground, a circle for each exit, a black star at the start."""
    side = maze.side_px
    ground = tuple(int(v) for v in rng.integers(228, 256, size=3))
    canvas = Image.new("RGB", (side * SUPERSAMPLE, side * SUPERSAMPLE), ground)
    pen = ImageDraw.Draw(canvas)
    width = max(2.0, maze.cell_px / 12) * SUPERSAMPLE
    for x1, y1, x2, y2 in maze.walls():
        a, b, c, d = (SUPERSAMPLE * v for v in (x1, y1, x2, y2))
        pen.rectangle((a - width / 2, b - width / 2, c + width / 2, d + width / 2), fill=(20, 20, 20))
    for color, cell in maze.exits.items():
        _mark(pen, maze, cell, "circle", COLORS[color])
    _mark(pen, maze, maze.start, "star", (20, 20, 20))
    return canvas.reduce(SUPERSAMPLE)


def _mark(pen: ImageDraw.ImageDraw, maze: Maze, cell: Cell, shape: str, fill: tuple[int, int, int]) -> None:
    (x, y), radius = maze.center(cell), _MARK_SHARE * maze.cell_px
    corners = [(x + (2 * px - 1) * radius, y + (2 * py - 1) * radius) for px, py in SHAPES[shape]]
    pen.polygon([(SUPERSAMPLE * a, SUPERSAMPLE * b) for a, b in corners], fill=fill)
