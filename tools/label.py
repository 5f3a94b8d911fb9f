"""Tool `label`."""

from __future__ import annotations

from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.marks import with_mark
from mmreason.agent.tools import Label, Point, ToolError, tool


@tool(isolated=False)  # a mark is a few numbers
def label(image: Picture, point: Point, text: Label, limits: Limits) -> NewPicture:
    """Write a short text on a picture; the same text moves it.

    Args:
        image: where to write.
        point: where the text begins.
        text: what to write.
    """
    if not text:
        raise ToolError("label: 'text' is empty: write a text of at least one character that can be printed")
    return with_mark(image, Mark("text", (point,)), text, limits)
