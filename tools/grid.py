"""Tool `grid`."""

from __future__ import annotations

from typing import Annotated

from PIL import ImageDraw
from pydantic import Field

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Coordinates
from mmreason.agent.tools import tool
from mmreason.tools.draw import font_for

_LINE, _TEXT, _PAPER = "#808080", "#000000", "#ffffff"


@tool()
def grid(image: Picture, coordinates: Coordinates, parts: Annotated[int, Field(ge=2, le=20)] = 10) -> NewPicture:
    """Lay a grid over a picture, with its coordinates at the edges.

    Args:
        image: where to draw.
        parts: how many columns and rows.
    """
    base = image.base.copy()
    pen = ImageDraw.Draw(base)
    font = font_for(base.size)
    width, height = base.size
    inner = [part / parts for part in range(1, parts)]
    for share in inner:
        pen.line([(share * width, 0), (share * width, height)], fill=_LINE)
        pen.line([(0, share * height), (width, share * height)], fill=_LINE)
    places = [(share * width, 0.0, coordinates.x(image, share * width)) for share in inner]
    places += [(0.0, share * height, coordinates.y(image, share * height)) for share in inner]
    for x, y, text in places:  # after all lines, so that none crosses a number
        left, top, right, bottom = pen.textbbox((x + 1, y + 1), text, font=font)
        pen.rectangle((left - 1, top - 1, right, bottom), fill=_PAPER)
        pen.text((x + 1, y + 1), text, fill=_TEXT, font=font)
    return NewPicture(base, image.id, marks=image.marks, name=image.name)
