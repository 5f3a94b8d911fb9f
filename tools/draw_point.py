"""Tool `draw_point`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Label, Point, tool


@tool(isolated=False)  # a mark is a few numbers
def draw_point(image: Picture, point: Point, limits: Limits, label: Label = "") -> NewPicture:
    """Draw a dot on a picture; the same label moves it.

    Args:
        image: where to draw.
        point: where the dot is.
        label: short name, shown beside the dot.
    """
    return with_mark(image, Mark("point", (point,)), label, limits)
