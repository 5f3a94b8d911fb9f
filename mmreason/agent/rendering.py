"""Pictures as the model and people see them: the base with its marks drawn on a copy.

What enters: a `Picture`, or a `NewPicture`. What leaves: an RGB picture of the same size. The same picture gives the same pixels every time: no randomness,
the font that Pillow brings along (no layout engine of the system), line widths by the picture's size, colours by the order of the marks.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from mmreason.agent.affine import Point, around
from mmreason.agent.images import Mark, NewPicture, Picture
from mmreason.tools.draw import font_for, line_width, plate

#: Colours of marks in their order, then from the start: told apart also by people who see no red or no green
#: (after Okabe and Ito, without yellow and black, which are lost on paper and in maps).
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def render(picture: Picture | NewPicture) -> Image.Image:
    """The picture with its marks, as a new picture; its base stays as it is."""
    canvas = picture.base.copy()
    if not picture.marks:
        return canvas
    pen = ImageDraw.Draw(canvas)
    width = line_width(canvas.size) + 1
    coloured = [(mark, PALETTE[index % len(PALETTE)]) for index, mark in enumerate(picture.marks.values())]
    for mark, colour in coloured:
        _outline(pen, mark, colour, width, canvas.size)
    font = font_for(canvas.size)
    for mark, colour in coloured:  # after all lines, so that none crosses a text
        if mark.text:
            plate(pen, _beside(mark, width, canvas.size), mark.text, colour, font, canvas.size)
    return canvas


def _outline(pen: ImageDraw.ImageDraw, mark: Mark, colour: str, width: int, size: tuple[int, int]) -> None:
    (x, y), last = mark.points[0], mark.points[-1]
    if mark.kind == "box":
        # Continuous coordinates: a box that ends at the width ends with the last pixel.
        x1, y1, x2, y2 = around(mark.points)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    elif mark.kind in ("line", "path"):
        pen.line(list(mark.points), fill=colour, width=width, joint="curve")
        _dot(pen, mark.points[0], 1.5 * width, "white", colour)
        _dot(pen, last, 1.5 * width, colour, colour)
    elif mark.kind == "point":
        _dot(pen, (x, y), 2.0 * width, colour, "white")
    elif mark.kind == "horizontal":
        pen.line([(0, y), (size[0], y)], fill=colour, width=width)
    elif mark.kind == "vertical":
        pen.line([(x, 0), (x, size[1])], fill=colour, width=width)


def _dot(pen: ImageDraw.ImageDraw, center: Point, radius: float, fill: str, edge: str) -> None:
    x, y = center
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=edge)


def _beside(mark: Mark, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box at whose upper left corner the text of a mark stands, inside the picture."""
    x1, y1, x2, y2 = around(mark.points)
    if mark.kind == "horizontal":
        x1 = 0.0
    elif mark.kind == "vertical":
        x1, y1 = x1 + width, 0.0
    elif mark.kind in ("point", "line", "path"):
        x1, y1 = mark.points[0][0] + 2 * width, mark.points[0][1] - width
    return min(max(x1, 0.0), size[0]), min(max(y1, 0.0), size[1]), x2, y2
