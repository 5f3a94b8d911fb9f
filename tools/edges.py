"""Tool `edges`."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.tools import ToolError, tool


@tool()
def edges(
    image: Picture, low: Annotated[int, Field(ge=0, le=1000)] = 80, high: Annotated[int, Field(ge=1, le=1000)] = 160
) -> NewPicture:
    """Show the edges in a picture, white on black (Canny).

    Args:
        image: where to look.
        low: weaker edges than this are left out.
        high: edges as strong as this are kept with the weaker ones that touch them.
    """
    if low > high:
        raise ToolError(f"edges: 'low' must be at most 'high', and {low} is above {high}")
    found = cv2.Canny(cv2.cvtColor(np.asarray(image.base), cv2.COLOR_RGB2GRAY), low, high)
    base = Image.fromarray(found).convert("RGB")
    return NewPicture(base, image.id, marks=image.marks, name=image.name)
