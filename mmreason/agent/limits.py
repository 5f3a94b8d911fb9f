"""How large pictures, labels and texts of tools may be, and how places in pictures are written for the model.

What enters: sizes in pixels, boxes and points in pixels of a picture. What leaves: a verdict, or the text of a box or a point in the frame that
the model writes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmreason.agent.affine import Affine, Point
from mmreason.agent.images import Picture
from mmreason.boxes import Frame
from mmreason.records import ImageGeometry


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tool's answer may be.

    Attributes:
        max_image_px: width × height of a picture that a tool makes; checked before it is made and after.
        min_side_px: of a picture that a tool makes; a smaller one is nothing to a vision tower.
        max_aspect: longest side over shortest.
        max_zoom: how many times larger a piece may become; `zoom` itself allows no more than 4.
        max_label_chars: a longer label is refused.
        max_text_chars: a longer text is cut.
        max_marks: drawn on one picture.
        max_pictures: returned by one call.
    """

    max_image_px: int = 2_000_000
    min_side_px: int = 28
    max_aspect: float = 100.0
    max_zoom: float = 4.0
    max_label_chars: int = 64
    max_text_chars: int = 2000
    max_marks: int = 64
    max_pictures: int = 8

    def problem(self, size: tuple[int, int]) -> str:
        """Why a picture of this size may not be made; empty if it may."""
        width, height = size
        if min(size) < self.min_side_px:
            return f"the picture would be {width} × {height} px; each side must be at least {self.min_side_px} px"
        if max(size) > self.max_aspect * min(size):
            return f"the picture would be {width} × {height} px; one side may be at most {self.max_aspect:g} times the other"
        if width * height > self.max_image_px:
            return f"the picture would be {width} × {height} px; at most {self.max_image_px:,} pixels are allowed"
        return ""

    def largest_scale(self, size: tuple[float, float]) -> float:
        """By how much a piece of this size may be enlarged at most."""
        return math.sqrt(self.max_image_px / max(1.0, size[0] * size[1]))


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Places in pictures as the model reads and writes them.

    Attributes:
        frame: of the model family.
        seen: id of a picture -> how the model sees it.
    """

    frame: Frame
    seen: Mapping[str, ImageGeometry] = field(default_factory=dict)

    def extent(self, picture: Picture) -> tuple[float, float]:
        """`(width, height)` of the whole picture in the model's frame; raises `KeyError` for one it has not seen."""
        return self.frame.extent(self.seen[picture.id])

    def to_pixels(self, picture: Picture) -> Affine:
        """From the model's frame to the pixels of a picture."""
        width, height = self.extent(picture)
        return Affine.scale(picture.size[0] / width, picture.size[1] / height)

    def number(self, value: float) -> str:
        """One coordinate in the model's frame: whole, or three decimals in `relative_1`."""
        return f"{value + 0.0:.3f}" if self.frame is Frame.relative_1 else str(round(value))

    def x(self, picture: Picture, x: float) -> str:
        """An x in pixels of the picture, as the model writes it."""
        return self.number(x * self.extent(picture)[0] / picture.size[0])

    def y(self, picture: Picture, y: float) -> str:
        """A y in pixels of the picture, as the model writes it."""
        return self.number(y * self.extent(picture)[1] / picture.size[1])

    def point(self, picture: Picture, point: Point) -> str:
        """`[x, y]` of a point in pixels of the picture."""
        return f"[{self.x(picture, point[0])}, {self.y(picture, point[1])}]"

    def box(self, picture: Picture, corners: tuple[float, float, float, float]) -> str:
        """`[x1, y1, x2, y2]` of a box in pixels of the picture."""
        x1, y1, x2, y2 = corners
        numbers = (self.x(picture, x1), self.y(picture, y1), self.x(picture, x2), self.y(picture, y2))
        return "[" + ", ".join(numbers) + "]"
