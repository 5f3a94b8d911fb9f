"""A tool of a plug-in package: `colour_rewards/mean_colour`."""

from __future__ import annotations

from PIL import ImageStat

from mmreason.agent.images import Picture
from mmreason.agent.tools import Box, tool


@tool(isolated=False)  # its work is bounded by the picture that is there
def mean_colour(image: Picture, box: Box) -> str:
    """Tell the mean colour of a piece of a picture.

    Args:
        image: where to look.
        box: the piece.
    """
    x1, y1, x2, y2 = (round(number) for number in box)
    red, green, blue = ImageStat.Stat(image.base.crop((x1, y1, max(x1 + 1, x2), max(y1 + 1, y2)))).mean
    return f"red {red:.0f}, green {green:.0f}, blue {blue:.0f}"
