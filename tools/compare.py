"""Tool `compare`."""

from __future__ import annotations

import math
from typing import Annotated

from PIL import Image
from pydantic import Field

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.rendering import render
from mmreason.agent.tools import ToolError, ToolResult, tool

_GAP_PX, _PAPER = 8, "white"


@tool()
def compare(images: Annotated[list[Picture], Field(min_length=2, max_length=4)], limits: Limits) -> ToolResult:
    """Put pictures side by side, equally high.

    Args:
        images: two to four, from left to right.
    """
    gaps = _GAP_PX * (len(images) - 1)
    shapes = [one.size[0] / one.size[1] for one in images]
    height = max(one.size[1] for one in images)
    # Width times height with the gaps, solved for the height that fills the limit.
    total = sum(shapes)
    most = (math.sqrt(gaps**2 + 4 * total * limits.max_image_px) - gaps) / (2 * total)
    height = max(1, min(height, int(most)))
    widths = [max(1, int(shape * height)) for shape in shapes]
    size = (sum(widths) + gaps, height)
    if problem := limits.problem(size):
        raise ToolError(f"compare: {problem}. Crop the pictures first")
    canvas = Image.new("RGB", size, _PAPER)
    x = 0
    for one, width in zip(images, widths, strict=True):
        canvas.paste(render(one).resize((width, height), Image.Resampling.LANCZOS), (x, 0))
        x += width + _GAP_PX
    return ToolResult(f"from left to right: {', '.join(one.id for one in images)}", (NewPicture(canvas, None),))
