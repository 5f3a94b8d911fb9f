"""Task `maze`: which exit a way through walls leads to; the way is to be drawn.

What enters: a seed, an index and `MazeOptions`. What leaves: a maze whose exits lie in regions of their own, a question about the star's region, and a
target that also holds walls and the way in pixels, so that `maze_path` can check the lines that were drawn.

    Which circle can you go to from the black star?                         red
    Is there a path from the black star to the red circle?                  no
    How many times does the path from the black star to the red circle turn?  3

Source of the setting: the mazes of ViLaSR (arXiv 2506.09965), drawn and checked in a way of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.maze_pictures import Cell, Maze, draw_maze, paint_maze
from mmreason.data.scenes import COLORS, EASY_COLORS
from mmreason.data.tool_tasks import DialOptions, Seen, ToolTask, mended, one_call, size_of, the_answer
from mmreason.errors import ConfigError
from mmreason.records import Row

#: By difficulty: cells a side, exits, straight pieces of the way (least, most).
_LEVELS = ((3, 2, 1, 2), (4, 2, 1, 3), (5, 3, 2, 4), (6, 3, 3, 5), (7, 4, 3, 7), (8, 4, 4, 9))
#: Share of each question by difficulty.
_KINDS: tuple[dict[str, float], ...] = (
    {"which": 1.0},
    {"which": 0.7, "can": 0.3},
    {"which": 0.6, "can": 0.3, "turns": 0.1},
    {"which": 0.5, "can": 0.3, "turns": 0.2},
    {"which": 0.5, "can": 0.25, "turns": 0.25},
    {"which": 0.5, "can": 0.25, "turns": 0.25},
)
#: How near, in cells, the ends of drawn lines have to be to the start, to each other and to the goal.
REACH_CELLS = 0.4
_SIDE_PX = 112
#: Mazes drawn for one row before the options are called impossible.
_TRIES = 500


class MazeOptions(DialOptions):
    """How large the maze is. `difficulty` sets what is not set by hand."""

    cells: int | None = Field(None, ge=3, le=12, description="cells a side; null = by difficulty")
    exits: int | None = Field(None, ge=2, le=5, description="exits, one of which can be reached; null = by difficulty")
    pieces: tuple[int, int] | None = Field(
        None, description="least and most straight pieces of the way; null = by difficulty"
    )
    cell_px: float | None = Field(
        None, ge=16.0, le=64.0, description="side of a cell in pixels; null = at least 26, more in small mazes"
    )

    @property
    def num_cells(self) -> int:
        return self.cells or _LEVELS[self.difficulty][0]

    @property
    def num_exits(self) -> int:
        return self.exits or _LEVELS[self.difficulty][1]

    @property
    def piece_range(self) -> tuple[int, int]:
        return self.pieces or _LEVELS[self.difficulty][2:]

    @property
    def cell_side_px(self) -> float:
        return self.cell_px or max(26.0, (_SIDE_PX - 8) / self.num_cells)

    def check(self) -> str | None:
        low, high = self.piece_range
        if not 1 <= low <= high <= 16:
            return f"pieces=[{low}, {high}] must satisfy 1 <= least <= most <= 16"
        return None


@task("maze")
class MazeTask(ToolTask[MazeOptions]):
    """Find out where the ways of a maze lead, by drawing one.

    Score: exact match. The reward `maze_path` judges the lines that were drawn, from `target["maze"]`; a question whose answer is no has none.
    Style: `direct`.
    """

    metric: ClassVar[str] = "exact"
    tools: ClassVar[tuple[str, ...]] = ("draw_line",)

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return MazeOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        maze = self._maze(rng)
        question, answer = _ask(rng, maze, _KINDS[self.options.difficulty])
        target: dict[str, Any] = {"answer": answer}
        if answer != "no":
            target["maze"] = {
                "way": [list(maze.center(cell)) for cell in maze.way],
                "reach_px": REACH_CELLS * maze.cell_px,
                "walls": [list(wall) for wall in maze.walls()],
            }
        return self.made_row(index, split, [paint_maze(rng, maze)], question, target, {"solution": maze})

    def _maze(self, rng: np.random.Generator) -> Maze:
        options = self.options
        for _ in range(_TRIES):
            colors = [str(name) for name in rng.permutation(list(COLORS)[:EASY_COLORS])[: options.num_exits]]
            maze = draw_maze(rng, options.num_cells, colors, options.piece_range, options.cell_side_px)
            if maze is not None:
                return maze
        raise ConfigError(
            f"task.pieces={list(options.piece_range)}: none of {_TRIES} mazes of {options.num_cells} cells a side with "
            f"{options.num_exits} exits had such a way. Ask for fewer pieces, fewer exits, or more cells."
        )

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """One line for each straight piece of the way, each on the picture that the one before has made."""
        maze: Maze = row.columns["solution"]
        seen, size = Seen(geometry_of, frame), size_of(row)
        points = [seen.point(maze.center(cell), size) for cell in maze.corners]
        turns = [
            one_call("", "draw_line", image=f"img_{number}", start=start, end=end, label=str(number + 1))
            for number, (start, end) in enumerate(pairwise(points))
        ]
        return [*turns, the_answer(row, f"{maze.goal} circle")]

    def mended_plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """One of the lines goes wrong, and is moved by drawing its label again."""
        maze: Maze = row.columns["solution"]
        seen, size, rng = Seen(geometry_of, frame), size_of(row), self.mistakes(row)
        place = int(rng.integers(len(maze.corners) - 1))
        wrong = _wrong_lines(maze, place)
        start, end = (seen.point(maze.center(cell), size) for cell in wrong[int(rng.integers(len(wrong)))])
        return mended(row, self.plan(row, geometry_of, frame), place, {"start": start, "end": end})


def _wrong_lines(maze: Maze, place: int) -> list[tuple[Cell, Cell]]:
    """Lines that one may take for straight piece `place` of the way; each is off by a cell or more at one end or both.

    A cell too short or too long, in a wrong direction, through the cells beside, and, for the last piece, to another exit.
    """
    start, end = maze.corners[place : place + 2]
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])
    along = (end[0] - start[0]) // length, (end[1] - start[1]) // length
    beside = along[1], along[0]

    def moved(cell: Cell, step: Cell, times: int) -> Cell:
        return cell[0] + step[0] * times, cell[1] + step[1] * times

    lines = [(start, moved(start, along, length + more)) for more in (-1, 1) if length + more > 0]
    lines += [(start, moved(start, step, sign * length)) for step, sign in ((beside, 1), (beside, -1), (along, -1))]
    lines += [(moved(start, beside, sign), moved(end, beside, sign)) for sign in (1, -1)]
    if place == len(maze.corners) - 2:
        lines += [(start, cell) for cell in maze.exits.values() if cell != end]
    return [line for line in lines if all(0 <= v < maze.n for cell in line for v in cell)]


def _ask(rng: np.random.Generator, maze: Maze, weights: dict[str, float]) -> tuple[str, str]:
    kind = str(rng.choice(list(weights), p=list(weights.values())))
    if kind == "can":
        right = rng.random() < 0.5
        others = [color for color in maze.exits if color != maze.goal]
        asked = maze.goal if right else others[int(rng.integers(len(others)))]
        return f"Is there a path from the black star to the {asked} circle?", "yes" if right else "no"
    if kind == "turns":
        question = f"How many times does the path from the black star to the {maze.goal} circle turn?"
        return question, str(len(maze.corners) - 2)
    return "Which circle can you go to from the black star?", maze.goal
