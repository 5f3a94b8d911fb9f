"""Where a point of one picture lies in another: 2-D affine maps between pixel frames.

What enters: points of a crop, a zoomed or a turned picture. What leaves: the same points in its parent, or its root. Coordinates are
continuous: a picture of width W spans 0..W.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Affine:
    """`x' = a x + b y + c`, `y' = d x + e y + f`, in pixels."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def shift(cls, x: float, y: float) -> Affine:
        """Add `(x, y)`: what leads from a crop to the picture it was cut from at `(x, y)`."""
        return cls(c=x, f=y)

    @classmethod
    def scale(cls, x: float, y: float) -> Affine:
        """Multiply by `(x, y)`."""
        return cls(a=x, e=y)

    def __call__(self, point: Point) -> Point:
        x, y = point
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def then(self, after: Affine) -> Affine:
        """First this map, then `after`."""
        return Affine(
            after.a * self.a + after.b * self.d,
            after.a * self.b + after.b * self.e,
            after.a * self.c + after.b * self.f + after.c,
            after.d * self.a + after.e * self.d,
            after.d * self.b + after.e * self.e,
            after.d * self.c + after.e * self.f + after.f,
        )

    def inverse(self) -> Affine:
        """The way back; raises `ZeroDivisionError` for a map that flattens the picture."""
        det = self.a * self.e - self.b * self.d
        if det == 0 or not math.isfinite(det):
            raise ZeroDivisionError("an affine map that flattens the plane has no inverse")
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def box(self, corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The upright box around the image of an upright box."""
        x1, y1, x2, y2 = corners
        return around([self(p) for p in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))])


def around(points: Iterable[Point]) -> tuple[float, float, float, float]:
    """The upright box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
