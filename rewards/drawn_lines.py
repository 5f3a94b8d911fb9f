"""The lines that an agent drew: which of them the last picture shows, and whether they go from place to place through no wall.

What enters: the turns of a rollout, with arguments as the model wrote them, and the geometry of the row's first picture. What leaves: lines in
pixels of that picture, in the order in which their labels were first drawn; a line under a label that is there already takes its place.

Shapes: S straight pieces of a path `[S, 2, 2]` (ends, x and y), W walls `[W, 4]` (`x1, y1, x2, y2`), P places `[P, 2]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmreason.agent.limits import Limits
from mmreason.agent.plain_text import plain_text
from mmreason.boxes import Boxes, Frame
from mmreason.records import ImageGeometry, Turn

FloatArray = NDArray[np.float64]
#: Ends `(x1, y1, x2, y2)` of a line; None where they could not be read.
Line = tuple[float, float, float, float] | None

LINE_TOOL = "draw_line"
#: Tools whose pictures have the pixels of the picture that they were given, with more marks on them.
MARKING_TOOLS = frozenset({LINE_TOOL, "draw_box", "draw_point", "label", "horizontal_line", "vertical_line"})
#: As tools read labels: two that they take for the same are the same here.
MAX_LABEL_CHARS = Limits().max_label_chars
#: Written numbers beyond this are no coordinates.
_MAX_WRITTEN = 1e6


def lines_of_last_picture(turns: tuple[Turn, ...], geometry: tuple[ImageGeometry, ...], frame: Frame) -> list[Line]:
    """Lines on the last picture that a line was drawn on, if it goes back to the row's first picture unchanged in size.

    Args:
        turns: of the rollout.
        geometry: of the row's pictures; at least one.
        frame: in which the model writes points.

    Returns:
        In pixels of the first picture (`original_px`); empty if no line was drawn.
    """
    num_pictures = len(geometry)
    drawn: dict[str, dict[str, Line]] = {"img_0": {}}
    last: dict[str, Line] = {}
    for number, turn in enumerate(turns):
        if turn.tool is None or not turn.ok or turn.num_images < 1:
            continue
        new = f"img_{num_pictures}"
        num_pictures += turn.num_images
        source = turn.arguments.get("image")
        if turn.tool not in MARKING_TOOLS or not isinstance(source, str) or source not in drawn:
            continue
        drawn[new] = dict(drawn[source])
        label = turn.arguments.get("label")
        text = plain_text(label, MAX_LABEL_CHARS) if isinstance(label, str) else ""
        # Without a label nothing is replaced.
        key = f"label {text}" if text else f"line {number}"
        if turn.tool == LINE_TOOL:
            drawn[new][key] = _line(turn.arguments, geometry[0], frame)
            last = drawn[new]
        else:
            drawn[new].pop(key, None)
    return list(last.values())


def _line(arguments: Mapping[str, Any], geometry: ImageGeometry, frame: Frame) -> Line:
    numbers = [*_numbers(arguments.get("start")), *_numbers(arguments.get("end"))]
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = (float(v) for v in Boxes.of([numbers], frame).to(Frame.original_px, geometry).xyxy[0])
    return x1, y1, x2, y2


def _numbers(point: object) -> list[float]:
    """The two numbers of a written point; empty if it is none."""
    if not isinstance(point, (list, tuple)) or len(point) != 2:
        return []
    numbers = [v for v in point if isinstance(v, (int, float)) and not isinstance(v, bool)]
    legal = len(numbers) == 2 and all(math.isfinite(v) and abs(v) <= _MAX_WRITTEN for v in numbers)
    return [float(v) for v in numbers] if legal else []


def continuous(lines: list[Line], start: ArrayLike, reach_px: float) -> FloatArray | None:
    """The path from `start` along the lines, with the gaps that may lie between them.

    Args:
        lines: in order, each from its start to its end.
        start: `[2]`, where the first has to begin.
        reach_px: longest gap.

    Returns:
        `[S, 2, 2]` pieces, gaps included; None if a line could not be read, or a gap is too long.
    """
    here = np.asarray(start, np.float64)
    pieces: list[FloatArray] = []
    for line in lines:
        if line is None:
            return None
        begin, end = np.array(line[:2]), np.array(line[2:])
        if float(np.hypot(*(begin - here))) > reach_px:
            return None
        pieces += [np.stack([here, begin]), np.stack([begin, end])]
        here = end
    return np.stack(pieces) if pieces else np.zeros((0, 2, 2))


def _side(origin: FloatArray, end: FloatArray, point: FloatArray) -> FloatArray:
    """Sign of the side of the line from `origin` to `end` on which a point lies; arrays `[..., 2]`."""
    along, beside = end - origin, point - origin
    return np.asarray(np.sign(along[..., 0] * beside[..., 1] - along[..., 1] * beside[..., 0]))


def crosses(path: FloatArray, walls: FloatArray) -> bool:
    """Whether any of the pieces `[S, 2, 2]` touches any of the walls `[W, 4]`."""
    if not len(path) or not len(walls):
        return False
    a, b = path[:, np.newaxis, 0], path[:, np.newaxis, 1]
    c, d = walls[np.newaxis, :, :2], walls[np.newaxis, :, 2:]
    parted = (_side(a, b, c) * _side(a, b, d) > 0) | (_side(c, d, a) * _side(c, d, b) > 0)
    # Pieces and walls on one line touch only where their boxes do.
    apart = (np.maximum(a, b) < np.minimum(c, d)) | (np.maximum(c, d) < np.minimum(a, b))
    return bool((~parted & ~apart.any(axis=-1)).any())


def passes(path: FloatArray, places: FloatArray, reach_px: float) -> NDArray[np.bool_]:
    """`[P]`: whether a path `[S, 2, 2]` comes as near as `reach_px` to each of the places `[P, 2]`."""
    if not len(path):
        return np.zeros(len(places), np.bool_)
    a, along = path[:, np.newaxis, 0], (path[:, 1] - path[:, 0])[:, np.newaxis]
    length2 = (along**2).sum(axis=-1)
    share = ((places[np.newaxis] - a) * along).sum(axis=-1) / np.where(length2 > 0, length2, 1.0)
    foot = a + np.clip(share, 0.0, 1.0)[..., np.newaxis] * along
    distance = np.hypot(*np.moveaxis(places[np.newaxis] - foot, -1, 0))
    return np.asarray((distance <= reach_px).any(axis=0))
