"""Tool `rotate`."""

from __future__ import annotations

import math
from typing import Annotated

from PIL import Image
from pydantic import Field

from mmreason.agent.affine import Affine, around
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import carried
from mmreason.agent.tools import ToolError, tool

#: What was not in the picture.
_PAPER = (255, 255, 255)


@tool()
def rotate(image: Picture, degrees: Annotated[float, Field(ge=-360.0, le=360.0)], limits: Limits) -> NewPicture:
    """Turn a picture clockwise; it grows so that all of it is seen.

    Args:
        image: what to turn.
        degrees: by how much, clockwise; negative turns the other way.
    """
    to_child, size = turned(image.size, degrees)
    if problem := limits.problem(size):
        raise ToolError(f"rotate: {problem}. Crop a piece first, then turn that")
    to_parent = to_child.inverse()
    coefficients = (to_parent.a, to_parent.b, to_parent.c, to_parent.d, to_parent.e, to_parent.f)
    # Quarter turns move whole pixels, so that they come out exactly.
    exact = degrees % 90 == 0
    resampling = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    base = image.base.transform(size, Image.Transform.AFFINE, coefficients, resampling, fillcolor=_PAPER)
    return NewPicture(base, image.id, to_parent, carried(image, to_child, size), image.name)


def turned(size: tuple[int, int], degrees: float) -> tuple[Affine, tuple[int, int]]:
    """The map from a picture to the picture turned clockwise, and the size of that."""
    # Exact for quarter turns: cos(90°) is not quite 0.
    quarter = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}.get(degrees % 360.0)
    cos, sin = quarter or (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    turn = Affine(cos, -sin, 0.0, sin, cos, 0.0)
    width, height = size
    left, top, right, bottom = around([turn(p) for p in ((0, 0), (width, 0), (width, height), (0, height))])
    # A whole number of pixels, with the picture in the middle.
    new = math.ceil(right - left - 1e-6), math.ceil(bottom - top - 1e-6)
    return turn.then(Affine.shift((new[0] - left - right) / 2, (new[1] - top - bottom) / 2)), new
