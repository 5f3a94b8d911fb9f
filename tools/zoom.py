"""Tool `zoom`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.tools import Box, ToolError, tool
from mmreason.tools.pieces import cut, whole_pixels


@tool()
def zoom(
    image: Picture, limits: Limits, box: Box | None = None, factor: Annotated[float, Field(gt=1.0, le=4.0)] = 2.0
) -> NewPicture:
    """Enlarge a piece of a picture, to see small things.

    Args:
        image: where to look.
        box: the piece; without one, the whole picture.
        factor: how many times larger, such as 2; a large piece is enlarged less.
    """
    if factor > limits.max_zoom:
        raise ToolError(f"zoom: 'factor' must be above 1 and at most {limits.max_zoom:g}, not {factor:g}")
    least = max(1, round(limits.min_side_px / factor))
    return cut(image, whole_pixels(image, box or (0, 0, *image.size), least), factor, limits)
