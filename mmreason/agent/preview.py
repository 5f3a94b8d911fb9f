"""Pictures in a terminal: two pixels a character, in 24-bit colours.

What enters: a picture. What leaves: a `rich` text that any modern terminal shows; nothing is drawn where output is no terminal.
"""

from __future__ import annotations

from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

_UPPER_HALF = "▀"


def block_text(image: Image.Image, max_columns: int = 64, max_rows: int = 24) -> Text:
    """A picture as half blocks: the upper pixel of each pair is the letter's colour, the lower one its background.

    Args:
        image: any picture; it is shrunk, never enlarged.
        max_columns: of letters, one pixel wide.
        max_rows: of letters, two pixels high.
    """
    small = image.convert("RGB")
    small.thumbnail((max_columns, 2 * max_rows), Image.Resampling.BOX)
    text = Text()
    for y in range(0, small.height, 2):
        for x in range(small.width):
            upper = _color(small, x, y)
            lower = _color(small, x, y + 1) if y + 1 < small.height else None
            text.append(_UPPER_HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _color(image: Image.Image, x: int, y: int) -> Color:
    red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
    return Color.from_rgb(red, green, blue)
