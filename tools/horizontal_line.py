"""Tool `horizontal_line`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Label, Y, tool


@tool(isolated=False)  # a mark is a few numbers
def horizontal_line(image: Picture, y: Y, limits: Limits, label: Label = "") -> NewPicture:
    """Draw a line across the whole picture at one height; the same label moves it.

    Args:
        image: where to draw.
        y: height of the line.
        label: short name, shown at its left end.
    """
    return with_mark(image, Mark("horizontal", ((0.0, y),)), label, limits)
