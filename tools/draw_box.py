"""Tool `draw_box`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Box, Label, tool


@tool(isolated=False)  # a mark is a few numbers
def draw_box(image: Picture, box: Box, limits: Limits, label: Label = "") -> NewPicture:
    """Draw a box on a picture; the same label moves it.

    Args:
        image: where to draw.
        box: what to frame.
        label: short name, shown beside the box.
    """
    x1, y1, x2, y2 = box
    return with_mark(image, Mark("box", ((x1, y1), (x2, y2))), label, limits)
