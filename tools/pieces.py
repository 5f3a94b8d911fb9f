"""Pieces of pictures, for the tools that cut, enlarge and read.

What enters: a picture and a box in its pixels. What leaves: the box in whole pixels, or a new picture with the map back.
"""

from __future__ import annotations

import math

from PIL import Image

from mmreason.agent.affine import Affine
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import carried
from mmreason.agent.tools import ToolError

Pixels = tuple[int, int, int, int]


def whole_pixels(picture: Picture, box: tuple[float, float, float, float], min_side_px: int) -> Pixels:
    """The smallest piece of whole pixels around a box, widened to `min_side_px` as far as the picture goes."""
    x1, x2 = _widened(box[0], box[2], picture.size[0], min_side_px)
    y1, y2 = _widened(box[1], box[3], picture.size[1], min_side_px)
    return x1, y1, x2, y2


def _widened(low: float, high: float, length: int, least: int) -> tuple[int, int]:
    # A box that was converted from another frame and back must not grow by a pixel.
    start, end = math.floor(low + 1e-6), math.ceil(high - 1e-6)
    missing = min(least, length) - (end - start)
    if missing > 0:
        start = min(max(start - missing // 2, 0), length - min(least, length))
        end = start + min(least, length)
    return start, end


def cut(picture: Picture, piece: Pixels, factor: float, limits: Limits) -> NewPicture:
    """A piece of a picture, `factor` times as large; marks come along.

    A piece that would be too large is enlarged less, or made smaller.

    Raises:
        ToolError: the piece is too small, or too long and narrow.
    """
    x1, y1, x2, y2 = piece
    width, height = x2 - x1, y2 - y1
    scale = min(factor, limits.largest_scale((width, height)))
    # Rounded down: rounded up, both sides together could pass the limit.
    size = (width, height) if scale == 1.0 else (max(1, int(width * scale)), max(1, int(height * scale)))
    if problem := limits.problem(size):
        raise ToolError(f"{problem}. Choose a larger box")
    base = picture.base.crop(piece)
    if size != (width, height):
        base = base.resize(size, Image.Resampling.LANCZOS)
    to_parent = Affine.scale(width / size[0], height / size[1]).then(Affine.shift(x1, y1))
    marks = carried(picture, to_parent.inverse(), size)
    return NewPicture(base, picture.id, to_parent, marks, picture.name)
