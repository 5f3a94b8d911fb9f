"""Reward `maze_path`: the lines that were drawn lead from the start to the goal and touch no wall."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.records import ImageGeometry
from mmreason.reward_kit.examples import Example, add_examples
from mmreason.rewards.drawn_lines import continuous, crosses, lines_of_last_picture, passes
from mmreason.rewards.tool_calls import Turns
from mmreason.scoring import reward

_MAX_WALLS, _MAX_PLACES = 2000, 2000


@reward(range=(0.0, 1.0), source="checker of drawn ways after the maze setting of ViLaSR (arXiv 2506.09965)")
def maze_path(
    turns: Turns,
    target: Mapping[str, Any],
    geometry: tuple[ImageGeometry, ...],
    box_frame: Frame,
    *,
    partial: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0,
) -> float | None:
    """1 for a drawn way from start to goal that touches no wall; less for one that has not arrived.

    Formula: let the path be the lines of `draw_line` on the last picture that one was drawn on, in the order in which their labels first
    appeared. 0 if there is none, or one cannot be read, or the first does not begin within `reach` of the start, or one does not begin
    within `reach` of the end of the one before, or any line or gap touches a wall. Otherwise 1 if the last ends within `reach` of
    the goal, the gap to it touching no wall; else `partial * k / K`, `k` being the last of the K places of the way, counted from 0 at the start, that the path
    comes within `reach` of. Range 0..1.

    Args:
        turns: with the calls.
        target: `{"maze": {"way": [[x, y], ...], "walls": [[x1, y1, x2, y2], ...], "reach_px": number}}` in pixels of the first
            picture; the way goes from the start to the goal.
        geometry: of the row's pictures.
        box_frame: frame in which the model writes points.
        partial: most that a way that has not arrived can earn.

    Returns:
        The reward; `None` if the target has no maze.
    """
    maze = _Wanted.of(target.get("maze"))
    if maze is None or not geometry:
        return None
    lines = lines_of_last_picture(turns, geometry, box_frame)
    path = continuous(lines, maze.way[0], maze.reach_px)
    if path is None or not len(path) or crosses(path, maze.walls):
        return 0.0
    gap = np.stack([path[-1, 1], maze.way[-1]])[np.newaxis]
    if float(np.hypot(*(gap[0, 1] - gap[0, 0]))) <= maze.reach_px and not crosses(gap, maze.walls):
        return 1.0
    reached = np.flatnonzero(passes(path, maze.way, maze.reach_px))
    return partial * int(reached[-1]) / (len(maze.way) - 1) if len(reached) else 0.0


@dataclass(frozen=True)
class _Wanted:
    """`target["maze"]`, checked: `[P, 2]` places, `[W, 4]` walls, pixels."""

    way: NDArray[np.float64]
    walls: NDArray[np.float64]
    reach_px: float

    @classmethod
    def of(cls, given: object) -> _Wanted | None:
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise ValueError(f"target['maze']={given!r:.80} is no object with way, walls and reach_px")
        way, walls = _array(given, "way", 2, _MAX_PLACES), _array(given, "walls", 4, _MAX_WALLS)
        reach = given.get("reach_px")
        if len(way) < 2 or isinstance(reach, bool) or not isinstance(reach, (int, float)) or not 0 < reach < 1e6:
            raise ValueError("target['maze'] needs a way of two places or more, and reach_px above 0")
        return cls(way, walls, float(reach))


def _array(given: Mapping[str, Any], key: str, width: int, most: int) -> NDArray[np.float64]:
    rows = given.get(key)
    if not isinstance(rows, (list, tuple)) or len(rows) > most:
        raise ValueError(f"target['maze'][{key!r}] must be a list of at most {most} rows")
    try:
        array = np.asarray(rows, np.float64).reshape(len(rows), -1) if rows else np.zeros((0, width))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"target['maze'][{key!r}] must hold rows of {width} numbers") from None
    if array.shape[1] != width or not np.isfinite(array).all():
        raise ValueError(f"target['maze'][{key!r}] must hold rows of {width} finite numbers")
    return array


def _drawn(*lines: tuple[list[int], list[int]]) -> str:
    """A completion whose calls draw these lines, as `mmreason reward check` plays it."""
    calls = [
        {"name": "draw_line", "arguments": {"image": f"img_{n}", "start": start, "end": end, "label": str(n)}}
        for n, (start, end) in enumerate(lines)
    ]
    return "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls) + "<answer>red</answer>"


# A wall between two halves with a gap at the right: the way goes round it. The example's picture is 400 × 300 px, points count 0..1000.
_LEFT, _RIGHT, _ABOVE, _BELOW = 125, 875, 250, 750
add_examples(
    maze_path,
    Example(
        "a way round a wall",
        {
            "maze": {
                "way": [[50.0, 75.0], [200.0, 75.0], [350.0, 75.0], [350.0, 225.0], [200.0, 225.0], [50.0, 225.0]],
                "walls": [[0.0, 150.0, 300.0, 150.0], [0.0, 0.0, 400.0, 0.0], [400.0, 0.0, 400.0, 300.0]],
                "reach_px": 30.0,
            }
        },
        right=(
            _drawn(
                ([_LEFT, _ABOVE], [_RIGHT, _ABOVE]),
                ([_RIGHT, _ABOVE], [_RIGHT, _BELOW]),
                ([_RIGHT, _BELOW], [_LEFT, _BELOW]),
            ),
        ),
        wrong=(
            _drawn(([_LEFT, _ABOVE], [_LEFT, _BELOW])),
            _drawn(([_LEFT, _ABOVE], [_RIGHT, _ABOVE])),
            _drawn(([_RIGHT, _BELOW], [_LEFT, _BELOW])),
            _drawn(([_LEFT, _ABOVE], [_RIGHT, _ABOVE]), ([_RIGHT, _BELOW], [_LEFT, _BELOW])),
        ),
        question="Which circle can you go to from the black star?",
        whole_text=True,
    ),
)
