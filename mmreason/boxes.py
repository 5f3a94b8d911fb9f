"""Boxes with their coordinate frame: conversion, overlap, and the strict parser of boxes in model text.

Enters: arrays or text with `x1, y1, x2, y2` corners. Leaves: `Boxes`, which always know their `Frame`.
Reading a box in the wrong frame is the most common cause of a reward that stays at zero, so a box is never
a bare list here. Coordinates are continuous: a picture of width W spans 0..W, areas are plain (no +1).

Shapes: N, M number of boxes; arrays are float64, `xyxy` is `[N, 4]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmreason.errors import BoxError
from mmreason.records import ImageGeometry

#: Digits that one number may have before and after its point. Longer runs are not coordinates.
MAX_DIGITS = 9
#: Larger coordinates are refused: float64 has no sub-unit precision to speak of beyond this.
MAX_COORDINATE = 1e15

# Every repetition is bounded and none is nested, so a match attempt costs a constant and a scan is linear.
#: White space inside a place or an object, as a pattern: enough for JSON that is printed over several lines.
SPACE = r"[ \t\r\n]{0,64}"
#: A plain decimal number, as a pattern without groups.
NUMBER = rf"-?[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,{MAX_DIGITS}}})?"
_COMMA = rf"{SPACE},{SPACE}"
_QUADRUPLE = re.compile(rf"\[{SPACE}{_COMMA.join([rf'({NUMBER})'] * 4)}{SPACE}\]")


class Frame(StrEnum):
    """What the numbers of a box count."""

    original_px = "original_px"
    """Pixels of the picture as the user gave it."""
    resized_px = "resized_px"
    """Pixels of the picture as the model sees it (`ImageGeometry.model_size`)."""
    relative_1000 = "relative_1000"
    """0..1000 of the picture's width and height."""
    relative_1 = "relative_1"
    """0..1 of the picture's width and height."""

    @classmethod
    def of(cls, name: Frame | str) -> Frame:
        """The frame called `name`; raises `BoxError` that lists the known ones."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(member.value for member in cls)
            raise BoxError(f"unknown box frame {name!r}. Known: {known}.") from None

    def extent(self, geometry: ImageGeometry) -> tuple[float, float]:
        """The `(width, height)` that the whole picture has in this frame."""
        if self is Frame.original_px:
            return float(geometry.original_size[0]), float(geometry.original_size[1])
        if self is Frame.resized_px:
            return float(geometry.model_size[0]), float(geometry.model_size[1])
        return (1000.0, 1000.0) if self is Frame.relative_1000 else (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes in one frame. Immutable: every method returns new boxes.

    Attributes:
        xyxy: `[N, 4]` float64 corners `x1, y1, x2, y2`, read-only. They may be swapped, degenerate or outside
            the picture (a model wrote them); `ordered` and `clipped` repair that where a caller wants it.
        frame: what the numbers count; a `Frame` or its name.

    Raises:
        BoxError: wrong shape, a number that is not finite or absurdly large, an unknown frame.
    """

    xyxy: NDArray[np.float64]
    frame: Frame

    def __post_init__(self) -> None:
        frame = Frame.of(self.frame)
        try:
            array = np.array(self.xyxy, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise BoxError(f"boxes must be rows of four numbers [x1, y1, x2, y2]: {error}") from None
        if array.size == 0:
            array = array.reshape(0, 4)
        if array.ndim != 2 or array.shape[1] != 4:
            raise BoxError(f"boxes must have shape [N, 4] (x1, y1, x2, y2), not {list(array.shape)}")
        if not np.isfinite(array).all():
            bad = array[~np.isfinite(array).all(axis=1)][0].tolist()
            raise BoxError(f"box coordinates must be finite, got {bad}")
        if (np.abs(array) > MAX_COORDINATE).any():
            raise BoxError(f"box coordinates beyond ±{MAX_COORDINATE:g} are refused: {np.abs(array).max():g}")
        array.setflags(write=False)
        object.__setattr__(self, "xyxy", array)
        object.__setattr__(self, "frame", frame)

    @classmethod
    def of(cls, xyxy: ArrayLike, frame: Frame | str) -> Boxes:
        """Boxes from anything array-like: `[[x1, y1, x2, y2], ...]`, one bare quadruple, or `[]`."""
        try:
            array = np.asarray(xyxy, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise BoxError(f"boxes must be rows of four numbers [x1, y1, x2, y2]: {error}") from None
        return cls(array[np.newaxis] if array.shape == (4,) else array, frame)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int(self.xyxy.shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Boxes):
            return NotImplemented
        return self.frame is other.frame and np.array_equal(self.xyxy, other.xyxy)

    __hash__ = None  # type: ignore[assignment]  # equal arrays cannot be hashed consistently with -0.0 == 0.0

    @property
    def areas(self) -> NDArray[np.float64]:
        """`[N]` plain areas in the frame's units squared; 0 for degenerate and swapped boxes."""
        sides = np.maximum(self.xyxy[:, 2:] - self.xyxy[:, :2], 0.0)
        areas: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
        return areas

    def to(self, frame: Frame | str, geometry: ImageGeometry) -> Boxes:
        """The same boxes in another frame of the same picture."""
        target = Frame.of(frame)
        if target is self.frame:
            return self
        width, height = self.frame.extent(geometry)
        new_width, new_height = target.extent(geometry)
        if min(width, height, new_width, new_height) <= 0:
            raise BoxError(f"cannot convert boxes of an image without area: {geometry}")
        scale = np.array([new_width, new_height, new_width, new_height])
        extent = np.array([width, height, width, height])
        return Boxes(self.xyxy * scale / extent, target)

    def ordered(self) -> Boxes:
        """Corners sorted so that `x1 <= x2` and `y1 <= y2`."""
        low = np.minimum(self.xyxy[:, :2], self.xyxy[:, 2:])
        high = np.maximum(self.xyxy[:, :2], self.xyxy[:, 2:])
        return Boxes(np.concatenate([low, high], axis=1), self.frame)

    def clipped(self, geometry: ImageGeometry) -> Boxes:
        """Cut to the picture; a box wholly outside becomes degenerate (area 0) at the border."""
        width, height = self.frame.extent(geometry)
        return Boxes(np.clip(self.xyxy, 0.0, [width, height, width, height]), self.frame)

    def iou(self, other: Boxes) -> NDArray[np.float64]:
        """Intersection over union, `[N, M]` in 0..1: plain areas, 0 wherever a box is degenerate or swapped.

        Raises:
            BoxError: the frames differ (convert with `to` first).
        """
        if self.frame is not other.frame:
            frames = f"{self.frame} and {other.frame}"
            raise BoxError(f"IoU needs both boxes in one frame, got {frames}: convert with .to()")
        ours: NDArray[np.float64] = self.xyxy[:, np.newaxis]
        theirs: NDArray[np.float64] = other.xyxy[np.newaxis]
        overlap = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
        our_sides, their_sides = ours[..., 2:] - ours[..., :2], theirs[..., 2:] - theirs[..., :2]
        # A positive overlap implies positive sides of both.
        valid = (overlap > 0).all(axis=-1, keepdims=True)
        safe = np.where(valid, overlap, 1.0)
        # Ratios of sides instead of areas: exact 1 on itself, and neither underflow nor overflow makes a NaN.
        with np.errstate(over="ignore"):
            our_ratio: NDArray[np.float64] = np.prod(our_sides / safe, axis=-1, keepdims=True)
            their_ratio: NDArray[np.float64] = np.prod(their_sides / safe, axis=-1, keepdims=True)
        union_ratio = np.where(valid, our_ratio + their_ratio - 1.0, 1.0)
        result: NDArray[np.float64] = np.where(valid, 1.0 / union_ratio, 0.0)[..., 0]
        return result


def parse_boxes(text: str, frame: Frame | str, *, max_chars: int = 20_000, max_boxes: int = 100) -> Boxes:
    """Find every `[x1, y1, x2, y2]` in model text, in order of appearance; never raises on any text.

    Strict: exactly four plain decimal numbers (`12`, `-3`, `4.5`; at most nine digits on either side of the
    point, no exponent, no sign but minus, no words) between one pair of square brackets, with at most 64 characters
    of white space before and after each. Brackets inside JSON such as `{"bbox_2d": [12, 30, 88, 140]}` or
    `[[...], [...]]` count.

    Args:
        text: what the model wrote.
        frame: the frame in which its family writes boxes.
        max_chars: longer text holds no boxes (it is not searched at all).
        max_boxes: only this many are kept, the first ones.

    Returns:
        The boxes as written (not ordered, not clipped); empty if there are none.
    """
    found: list[list[float]] = []
    if len(text) <= max_chars:
        for match in _QUADRUPLE.finditer(text):
            if len(found) == max_boxes:
                break
            found.append([float(number) for number in match.groups()])
    return Boxes.of(found, frame)


def format_box(box_xyxy: Sequence[float] | NDArray[np.float64], decimals: int = 0) -> str:
    """Write one box the way `parse_boxes` reads it: `[12, 34, 56, 78]`.

    Raises:
        BoxError: not four finite numbers, or one too large for the parser's digit limit.
    """
    corners = Boxes.of(box_xyxy, Frame.original_px).xyxy
    if len(corners) != 1:
        raise BoxError(f"format_box writes one box, got {len(corners)}")
    if not 0 <= decimals <= MAX_DIGITS:
        raise BoxError(f"decimals must be in 0..{MAX_DIGITS}, got {decimals}")
    # Rounding first and adding 0.0 turns -0.0 into 0.0, which would print a minus sign.
    rounded = np.round(corners[0], decimals) + 0.0
    if (np.abs(rounded) >= 10.0**MAX_DIGITS).any():
        raise BoxError(f"box {corners[0].tolist()} has a coordinate of more than {MAX_DIGITS} digits")
    return "[" + ", ".join(f"{number:.{decimals}f}" for number in rounded) + "]"
