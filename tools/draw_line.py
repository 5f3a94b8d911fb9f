"""Tool `draw_line`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Label, Point, tool


@tool(isolated=False)  # a mark is a few numbers
def draw_line(image: Picture, start: Point, end: Point, limits: Limits, label: Label = "") -> NewPicture:
    """Draw a line from start to end on a picture; the same label moves it.

    Args:
        image: where to draw.
        start: first point, shown with an open dot.
        end: last point, shown with a filled dot.
        label: short name, shown beside the line.
    """
    return with_mark(image, Mark("line", (start, end)), label, limits)
