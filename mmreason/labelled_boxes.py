"""Boxes and points with what the model says about them: label, image, confidence. A strict reader, no `eval`.

What enters: model text, however hostile. What leaves: `LabelledBoxes`, in order of appearance.

    {"bbox_2d": [12, 30, 88, 140], "label": "red mug", "image_index": 1, "confidence": 0.8}
    {"point_2d": [50, 85], "label": "handle"}
    [12, 30, 88, 140]
    image 2 [12, 30, 88, 140]

An object is flat JSON with at most eight members; `bbox` and `point` are read as well, every member but the place
itself may be missing, and unknown members are allowed. Objects may stand in a list, in a ```json fence or bare in
prose; of a broken text, whatever is complete is read. A place outside a readable object still counts, without
label, and so does one that shares its object with another: no box in the brackets of a text escapes the count.
In JSON images are counted from 0, as programs do: `"image_index": 1`. In words they are counted from 1, as people
do: `image 2`, or `image 2:`, right before a bare place says that it lies in the second image.
Numbers are plain decimals, as in `mmreason.boxes.parse_boxes`.

Every repetition below is bounded, so that reading costs a bounded amount for each opening bracket.

Shapes: N number of boxes or points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmreason.boxes import NUMBER, SPACE, Boxes, Frame, format_box
from mmreason.records import ImageGeometry

#: A longer label is none: the object is not read, its box counts without label.
MAX_LABEL_CHARS = 200
_MAX_MEMBERS = 8
#: Longer text cannot mean "nothing there".
_MAX_NOTHING_CHARS = 64

_PLACE = rf"\[{SPACE}{NUMBER}(?:{SPACE},{SPACE}{NUMBER}){{1,3}}{SPACE}\]"
_TEXT = rf'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{{4}}){{0,{MAX_LABEL_CHARS}}}"'

#: Says, right before a bare place, in which image it lies; looked for in this many characters.
_IMAGE_NUMBER = re.compile(r"\bimage[ \t]{1,4}([1-9][0-9]{0,2})[ \t]{0,4}:?[ \t]{0,4}\Z", re.IGNORECASE)
_IMAGE_NUMBER_CHARS = 24

_OPENING = re.compile(r'\[(?=[ \t\r\n0-9-])|\{(?=[ \t\r\n"])')
_BARE_PLACE = re.compile(_PLACE)
_KEY = re.compile(rf'{SPACE}"([A-Za-z0-9_]{{1,32}})"{SPACE}:{SPACE}')
_VALUE = re.compile(rf"(?P<place>{_PLACE})|(?P<text>{_TEXT})|(?P<number>{NUMBER})|true|false|null")
_SEPARATOR = re.compile(rf"{SPACE}([,}}])")
_NOTHING = re.compile(r"(?:```(?:json)?\s*)?(?:\[\s*\]|none\.?)(?:\s*```)?", re.IGNORECASE)

#: How many numbers a place has -> the keys under which an object gives it.
_PLACE_KEYS: Mapping[int, tuple[str, ...]] = {4: ("bbox_2d", "bbox"), 2: ("point_2d", "point")}


@dataclass(frozen=True)
class LabelledBoxes:
    """N boxes, or points written as boxes without sides, with what the text says about each.

    Attributes:
        boxes: as written (not ordered, not clipped), in the frame that the model writes.
        labels: as written, `None` without one; compare them through `normalise_label`.
        image_indices: index of the image that the box is said to lie in, counted from 0; `None` if it names none.
        confidences: 0..1; `None` without one.
    """

    boxes: Boxes
    labels: tuple[str | None, ...]
    image_indices: tuple[int | None, ...]
    confidences: tuple[float | None, ...]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, slots=True)
class _Found:
    numbers: tuple[float, ...]
    label: str | None = None
    image_index: int | None = None
    confidence: float | None = None


def parse_labelled_boxes(
    text: str, frame: Frame | str, *, max_chars: int = 20_000, max_boxes: int = 100
) -> LabelledBoxes:
    """Find every box in model text, with its label where it has one; never raises on any text.

    Args:
        text: what the model wrote.
        frame: the frame in which its family writes boxes.
        max_chars: longer text holds no boxes (it is not searched at all).
        max_boxes: only this many are kept, the first ones.
    """
    return _collected(_scan(text, 4, max_chars, max_boxes), frame)


def parse_labelled_points(
    text: str, frame: Frame | str, *, max_chars: int = 20_000, max_points: int = 100
) -> LabelledBoxes:
    """Find every point, `[x, y]` or `{"point_2d": [x, y]}`; arguments and limits as `parse_labelled_boxes`.

    Returns:
        Each point as a box without sides, `x1 = x2` and `y1 = y2`, so that it converts between frames alike.
    """
    found = _scan(text, 2, max_chars, max_points)
    return _collected([_Found(f.numbers * 2, f.label, f.image_index, f.confidence) for f in found], frame)


def says_nothing_is_there(text: str | None) -> bool:
    """True if the text is nothing but an empty list or the word none, also in a ```json fence.

    Text without any readable box is not the same: a model abstains by saying so.
    """
    stripped = "" if text is None else text.strip()
    return len(stripped) <= _MAX_NOTHING_CHARS and _NOTHING.fullmatch(stripped) is not None


def normalise_label(label: str) -> str:
    """Fold case and collapse white space: `" Red  Mug\\n"` is `"red mug"`."""
    return " ".join(label.casefold().split())


def images_of_boxes(target: Mapping[str, Any]) -> list[int]:
    """Index of the image of each box of a checked target, counted from 0: as `image_index` says, or else the first."""
    declared = target.get("image_index")
    if isinstance(declared, (list, tuple)):
        return list(declared)
    return [0 if declared is None else declared] * len(target.get("boxes", []))


def images_of_answer(found: LabelledBoxes, target: Mapping[str, Any], num_images: int) -> list[int | None]:
    """Index of the image of each box that a model wrote, counted from 0; `None` where it lies in none.

    The rule that box rewards go by: with one number as the target's `image_index`, boxes that name no image lie in that
    one; with a list, in none; without either, all boxes lie in the first image, whatever they name. Where the target is
    not about boxes, the image that a box names counts, or the only one.

    Args:
        found: boxes of an answer, or of the thinking before it.
        target: of the row.
        num_images: of the row; a box that names another image lies in none.
    """
    declared = target.get("image_index")
    if declared is None and target.get("boxes") is not None:
        indices: list[int | None] = [0] * len(found)
    else:
        unnamed = declared if declared is not None else 0 if num_images == 1 else None
        unnamed = None if isinstance(unnamed, (list, tuple)) else unnamed
        indices = [unnamed if index is None else index for index in found.image_indices]
    return [index if index is not None and 0 <= index < num_images else None for index in indices]


def write_target_boxes(target: Mapping[str, Any], geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
    """The right answer to a target of boxes, as a model that writes boxes in `frame` gives it.

    `[12, 30, 88, 140]`; with a list as `image_index`, `image 2 [12, 30, 88, 140]`; `[]` if there are no boxes.
    """
    named = isinstance(target.get("image_index"), (list, tuple))
    written = []
    for box, index in zip(target["boxes"], images_of_boxes(target), strict=True):
        seen = Boxes.of([box], Frame.original_px).to(frame, geometry[index])
        text = format_box(seen.xyxy[0], 3 if frame is Frame.relative_1 else 0)
        written.append(f"image {index + 1} {text}" if named else text)
    return ", ".join(written) or "[]"


def _collected(found: list[_Found], frame: Frame | str) -> LabelledBoxes:
    numbers = np.array([item.numbers for item in found], dtype=np.float64)
    return LabelledBoxes(
        Boxes.of(numbers, frame),
        tuple(item.label for item in found),
        tuple(item.image_index for item in found),
        tuple(item.confidence for item in found),
    )


def _scan(text: str, size: int, max_chars: int, max_found: int) -> list[_Found]:
    """Places of `size` numbers, left to right; an object that gives one is read as a whole and stepped over."""
    found: list[_Found] = []
    if len(text) > max_chars:
        return found
    opening = _OPENING.search(text)
    while opening is not None and len(found) < max_found:
        end = opening.end()
        if opening[0] == "[":
            place = _BARE_PLACE.match(text, opening.start())
            if place is not None:
                end = place.end()
                numbers = _numbers(place[0])
                if len(numbers) == size:
                    found.append(_Found(numbers, image_index=_image_before(text, opening.start())))
        else:
            members, after = _read_object(text, end)
            item = _found_in(members, size)
            if item is not None:
                end = after
                found.append(item)
        opening = _OPENING.search(text, end)
    return found


def _image_before(text: str, start: int) -> int | None:
    """Index of the image whose number stands right before a bare place that opens at `start`."""
    number = _IMAGE_NUMBER.search(text, max(0, start - _IMAGE_NUMBER_CHARS), start)
    return None if number is None else int(number[1]) - 1


def _read_object(text: str, start: int) -> tuple[dict[str, re.Match[str]], int]:
    """Members of the object whose brace opens before `start`, and where it ends; none if it is not readable."""
    members: dict[str, re.Match[str]] = {}
    position = start
    for _ in range(_MAX_MEMBERS):
        key = _KEY.match(text, position)
        value = None if key is None else _VALUE.match(text, key.end())
        separator = None if value is None else _SEPARATOR.match(text, value.end())
        if key is None or value is None or separator is None or key[1] in members:
            break
        members[key[1]] = value
        position = separator.end()
        if separator[1] == "}":
            return members, position
    return {}, start


def _found_in(members: Mapping[str, re.Match[str]], size: int) -> _Found | None:
    """The place that an object gives, with what it says about it; `None` if it gives none, or two."""
    places = {key: _numbers(value["place"]) for key, value in members.items() if value["place"] is not None}
    fitting = [key for key, numbers in places.items() if len(numbers) == size]
    if len(fitting) != 1 or fitting[0] not in _PLACE_KEYS[size]:
        return None
    label = members["label"]["text"] if "label" in members else None
    index = members["image_index"]["number"] if "image_index" in members else None
    confidence = members["confidence"]["number"] if "confidence" in members else None
    return _Found(
        places[fitting[0]],
        None if label is None else json.loads(label),
        int(index) if index is not None and index.isdigit() else None,
        float(confidence) if confidence is not None and 0.0 <= float(confidence) <= 1.0 else None,
    )


def _numbers(place: str) -> tuple[float, ...]:
    return tuple(float(number) for number in place.strip("[]").split(","))
