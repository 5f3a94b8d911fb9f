"""Tool `segment_colour`."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Coordinates
from mmreason.agent.tools import ToolResult, tool

ColourName = Literal[
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "gray", "white"
]
#: Regions that are told, largest first.
_MAX_REGIONS = 12
#: Smaller ones are edges and noise: share of the picture, and pixels.
_MIN_SHARE, _MIN_PX = 0.0005, 12
#: Hue in degrees [from, to) of colours that have one; red goes over 0.
_HUES = {
    "red": (345, 15),
    "orange": (15, 45),
    "yellow": (45, 70),
    "green": (70, 165),
    "cyan": (165, 200),
    "blue": (200, 260),
    "purple": (260, 300),
    "pink": (300, 345),
}


@tool()
def segment_colour(image: Picture, colour: ColourName, coordinates: Coordinates) -> ToolResult:
    """Find the regions of one colour in a picture: their boxes, and a picture in which all else is pale.

    Args:
        image: where to look.
        colour: name of the colour.
    """
    pixels = np.asarray(image.base)
    mask = of_colour(pixels, colour)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    least = max(_MIN_PX, _MIN_SHARE * mask.size)
    regions = sorted((stats[index] for index in range(1, count) if stats[index][4] >= least), key=lambda one: -one[4])
    boxes = [coordinates.box(image, (x, y, x + w, y + h)) for x, y, w, h, _ in regions[:_MAX_REGIONS]]
    faded = (pixels.astype(np.uint16) + 3 * 255) // 4
    shown = np.where(mask[..., None], pixels, faded.astype(np.uint8))
    text = f"{len(regions)} {colour} {'region' if len(regions) == 1 else 'regions'}"
    if boxes:
        text += f"{', the largest' if len(regions) > len(boxes) else ''}: {', '.join(boxes)}"
    return ToolResult(text, (NewPicture(Image.fromarray(shown), image.id, marks=image.marks, name=image.name),))


def of_colour(pixels: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
    """Where a picture `[H, W, 3]` has a colour: `[H, W]`; every pixel has exactly one of the names."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL).astype(np.int32)
    hue, saturation, value = hsv[..., 0] * 360 // 256, hsv[..., 1], hsv[..., 2]
    black = value < 50
    plain = (saturation < 40) & ~black
    if colour == "black":
        found = black
    elif colour == "white":
        found = plain & (value >= 215)
    elif colour == "gray":
        found = plain & (value < 215)
    else:
        coloured = ~black & ~plain
        # Brown is dark orange.
        brown = coloured & (hue >= 10) & (hue < 45) & (value < 190)
        if colour == "brown":
            found = brown
        else:
            low, high = _HUES[colour]
            inside = (hue >= low) & (hue < high) if low < high else (hue >= low) | (hue < high)
            found = coloured & inside & ~brown
    return np.asarray(found, dtype=np.bool_)
