"""Tool `crop`."""

from __future__ import annotations

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.tools import Box, tool
from mmreason.tools.pieces import cut, whole_pixels


# In the training process: one copy of a piece of a picture that was opened within the loader's limit (40 million pixels), and one resize to no more than
# `max_image_px` where the piece is larger; sending the picture to a child process costs as much as the copy.
@tool(isolated=False)
def crop(image: Picture, box: Box, limits: Limits) -> NewPicture:
    """Cut a piece out of a picture, to look at it alone.

    Args:
        image: where to cut.
        box: the piece; a very small one is widened.
    """
    return cut(image, whole_pixels(image, box, limits.min_side_px), 1.0, limits)
