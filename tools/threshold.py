"""Tool `threshold`."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.tools import ToolResult, tool


@tool()
def threshold(image: Picture, level: Annotated[int, Field(ge=0, le=255)] | None = None) -> ToolResult:
    """Show what is bright in white and what is dark in black.

    Args:
        image: where to look.
        level: what is brighter than this becomes white, 0 to 255; without it, the level that parts bright from dark best (Otsu).
    """
    gray = cv2.cvtColor(np.asarray(image.base), cv2.COLOR_RGB2GRAY)
    mode = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if level is None else 0)
    used, found = cv2.threshold(gray, 0 if level is None else level, 255, mode)
    white = float((found == 255).mean())
    base = Image.fromarray(found).convert("RGB")
    new = NewPicture(base, image.id, marks=image.marks, name=image.name)
    return ToolResult(f"level {used:.0f}, {white:.0%} white", (new,))
