"""Tool `measure`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from mmreason.agent.affine import Point as Place
from mmreason.agent.images import Picture
from mmreason.agent.tools import Point, ToolError, tool


@tool(isolated=False)  # a few numbers
def measure(
    image: Picture,
    what: Literal["distance", "angle", "area"],
    points: Annotated[list[Point], Field(min_length=2, max_length=32)],
) -> str:
    """Measure a distance, an angle or an area in a picture, in its pixels.

    Args:
        image: where the points lie.
        what: distance along the points, angle at the second of three points, or area inside the points.
        points: two or more for a distance, three for an angle, three or more for an area.
    """
    least = {"distance": 2, "angle": 3, "area": 3}[what]
    if len(points) < least or (what == "angle" and len(points) != 3):
        wanted = "exactly 3" if what == "angle" else f"at least {least}"
        raise ToolError(
            f"measure: an {what} needs {wanted} points, not {len(points)}".replace("an distance", "a distance")
        )
    if what == "distance":
        return f"distance {_short(sum(math.dist(a, b) for a, b in pairwise(points)))} px"
    if what == "area":
        return f"area {_short(area(points))} px"
    first, corner, last = points
    if corner in (first, last):
        raise ToolError("measure: an angle needs a second point that is neither the first nor the third")
    return f"angle {_short(angle(first, corner, last))} degrees"


def area(points: Sequence[Place]) -> float:
    """Area of a polygon by the shoelace formula; of a bow tie, that of one wing minus the other."""
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True))) / 2


def angle(first: Place, corner: Place, last: Place) -> float:
    """Angle at a corner in degrees, 0..180."""
    ax, ay = first[0] - corner[0], first[1] - corner[1]
    bx, by = last[0] - corner[0], last[1] - corner[1]
    return math.degrees(abs(math.atan2(ax * by - ay * bx, ax * bx + ay * by)))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
