"""Tool `vertical_line`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Label, X, tool


@tool(isolated=False)  # a mark is a few numbers
def vertical_line(image: Picture, x: X, limits: Limits, label: Label = "") -> NewPicture:
    """Draw a line from top to bottom of the picture at one place; the same label moves it.

    Args:
        image: where to draw.
        x: place of the line.
        label: short name, shown at its upper end.
    """
    return with_mark(image, Mark("vertical", ((x, 0.0),)), label, limits)
