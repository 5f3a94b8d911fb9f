"""Marks on pictures: adding one, moving one, and taking them along into a crop or a turned picture.

What enters: a picture and a mark, or a map between two pictures. What leaves: new marks; a picture is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmreason.agent.affine import Affine, around
from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.tools import ToolError


def with_mark(picture: Picture, mark: Mark, label: str, limits: Limits) -> NewPicture:
    """The picture with one mark more, or with the mark of that label moved.

    Args:
        picture: stays as it is.
        mark: without text; the label becomes its text.
        label: its name; without one the mark is new, and has no text.
        limits: of the number of marks.

    Raises:
        ToolError: there are too many marks.
    """
    marks = dict(picture.marks)
    key = label or _free_name(mark.kind, marks)
    if key not in marks and len(marks) >= limits.max_marks:
        raise ToolError(
            f"{picture.id} has {len(marks)} marks, and more are not drawn: draw on another picture, or move a mark by "
            f"using its label again ({', '.join(list(marks)[:3])}, ...)"
        )
    marks[key] = Mark(mark.kind, mark.points, label)
    return NewPicture(picture.base, picture.id, marks=marks, name=picture.name)


def _free_name(kind: str, marks: Mapping[str, Mark]) -> str:
    return next(name for name in (f"{kind} {number}" for number in range(1, len(marks) + 2)) if name not in marks)


def carried(parent: Picture, to_child: Affine, size: tuple[int, int]) -> dict[str, Mark]:
    """Marks of a picture on another that was made from it; those that are not in it are left out.

    Args:
        parent: the picture with the marks.
        to_child: from the parent's pixels to the child's.
        size: `(width, height)` of the child.
    """
    found = {name: _moved(mark, to_child, parent.size) for name, mark in parent.marks.items()}
    return {name: mark for name, mark in found.items() if _is_inside(mark, size)}


def _moved(mark: Mark, to_child: Affine, size: tuple[int, int]) -> Mark:
    points = tuple(to_child(point) for point in mark.points)
    upright = to_child.b == 0.0 and to_child.d == 0.0
    quarter = to_child.a == 0.0 and to_child.e == 0.0
    if upright or mark.kind in ("line", "path", "point", "text"):
        return Mark(mark.kind, points, mark.text)
    if mark.kind == "box":
        (x1, y1), (x2, y2) = mark.points
        corners = tuple(to_child(corner) for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
        if quarter:
            left, top, right, bottom = around(corners)
            return Mark("box", ((left, top), (right, bottom)), mark.text)
        return Mark("path", (*corners, corners[0]), mark.text)
    if quarter:
        return Mark("vertical" if mark.kind == "horizontal" else "horizontal", points, mark.text)
    x, y = mark.points[0]
    ends = ((0.0, y), (size[0], y)) if mark.kind == "horizontal" else ((x, 0.0), (x, size[1]))
    return Mark("line", tuple(to_child(end) for end in ends), mark.text)


def _is_inside(mark: Mark, size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = around(mark.points)
    across, down = x2 >= 0 and x1 <= size[0], y2 >= 0 and y1 <= size[1]
    if mark.kind == "horizontal":
        return down
    return across if mark.kind == "vertical" else across and down
