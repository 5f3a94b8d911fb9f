"""Tool `read_text`."""

from __future__ import annotations

from mmreason.agent.images import Picture
from mmreason.agent.limits import Coordinates
from mmreason.agent.text_reading import chosen_reader, read_pieces
from mmreason.agent.tools import Box, ToolError, tool
from mmreason.errors import PluginError
from mmreason.tools.pieces import whole_pixels

#: Pieces of text that are told.
_MAX_PIECES = 60


@tool()
def read_text(image: Picture, coordinates: Coordinates, box: Box | None = None) -> str:
    """Read the text in a picture; each line with its box.

    Args:
        image: where to read.
        box: the part to read; without one, the whole picture.
    """
    try:
        engine = chosen_reader()
    except PluginError as error:
        raise ToolError(f"read_text cannot read here: {error} Look at the picture yourself, or zoom") from None
    piece = whole_pixels(image, box or (0, 0, *image.size), 1)
    found = read_pieces(engine, image.base.crop(piece))
    if not found:
        return "no text found"
    lines = []
    for one in found[:_MAX_PIECES]:
        x1, y1, x2, y2 = one.box
        placed = (x1 + piece[0], y1 + piece[1], x2 + piece[0], y2 + piece[1])
        lines.append(f"{' '.join(one.text.split())} {coordinates.box(image, placed)}")
    return "\n".join(lines)
