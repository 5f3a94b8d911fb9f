"""One call of a tool with checked arguments: the boundary at which whatever goes wrong in it becomes data.

What enters: a `ToolCall`: a tool, its keyword arguments, the pictures they belong to. What leaves: a `ToolAnswer` within the limits, or one that says what
went wrong, in words for the model. The same code runs in the training process and in child processes. No torch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from PIL import Image

from mmreason.agent.calls import CallError
from mmreason.agent.images import Mark, NewPicture
from mmreason.agent.limits import Limits
from mmreason.agent.plain_text import plain_text
from mmreason.agent.tools import ToolError, ToolResult, ToolSpec

_log = logging.getLogger(__name__)
#: Places of marks and maps beyond this many pixels are a mistake of the tool.
_FAR_PX = 1e7
_MARK_KINDS = ("box", "line", "path", "point", "text", "horizontal", "vertical")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that is to be made.

    Attributes:
        spec: the tool.
        arguments: arguments and needs, by name.
        limits: of its answer.
        ids: of the pictures that there are.
        deadline_s: seconds it may take, where it can be ended.
    """

    spec: ToolSpec
    arguments: Mapping[str, Any]
    limits: Limits
    ids: frozenset[str]
    deadline_s: float

    def run(self) -> ToolAnswer:
        """Call the tool here and now; only interrupts pass through."""
        started = time.perf_counter()
        try:
            answer = _answer(self, self.spec.function(**self.arguments))
        except ToolError as error:
            answer = ToolAnswer(str(error), error=error.kind)
        except MemoryError:
            answer = ToolAnswer(f"{self.spec.name} needs more memory than it may have", error=CallError.tool_failed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the one boundary: a tool may raise anything
            _log.warning("tool '%s' failed", self.spec.name, exc_info=True)
            message = f"{self.spec.name} failed: {type(error).__name__}: {error}"
            answer = ToolAnswer(message, error=CallError.tool_failed)
        return answer.cleaned(self.limits, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool returned, or why it did not.

    Attributes:
        text: for the model.
        pictures: new ones.
        shown: names of pages or frames that were found, best first.
        error: None if it did what it was asked.
        seconds: in the tool.
    """

    text: str = ""
    pictures: tuple[NewPicture, ...] = ()
    shown: tuple[str, ...] = ()
    error: CallError | None = None
    seconds: float = 0.0

    def cleaned(self, limits: Limits, seconds: float) -> ToolAnswer:
        """The same with a text that holds no control token."""
        text = plain_text(self.text, limits.max_text_chars, lines=True)
        return ToolAnswer(text, self.pictures, self.shown, self.error, seconds)


def _answer(call: ToolCall, returned: object) -> ToolAnswer:
    """A returned value within the limits; raises `ToolError` for any other."""
    if isinstance(returned, str):
        returned = ToolResult(returned)
    elif isinstance(returned, NewPicture):
        returned = ToolResult(pictures=(returned,))
    if not isinstance(returned, ToolResult):
        name = type(returned).__name__
        raise ToolError(
            f"{call.spec.name} is broken: it returned {name} and neither a text, a picture nor a ToolResult"
        )
    if len(returned.pictures) > call.limits.max_pictures:
        raise ToolError(
            f"{call.spec.name} would return {len(returned.pictures)} pictures; at most {call.limits.max_pictures} at once"
        )
    kept = tuple(_kept(call, picture) for picture in returned.pictures)
    shown = tuple(str(name)[:200] for name in returned.shown[: 4 * call.limits.max_pictures])
    return ToolAnswer(str(returned.text), kept, shown)


def _kept(call: ToolCall, picture: NewPicture) -> NewPicture:
    """The picture if it may be kept."""
    name = call.spec.name
    if not isinstance(picture, NewPicture) or not isinstance(picture.base, Image.Image):
        raise ToolError(f"{name} is broken: a picture it returned is none")
    if picture.parent is not None and picture.parent not in call.ids:
        raise ToolError(f"{name} is broken: it names a parent that is not there")
    known = _known_bases(call)
    # What was there before was within the limits of its own time; a page may be larger.
    if id(picture.base) not in known and (problem := call.limits.problem(picture.base.size)):
        raise ToolError(f"{name}: {problem}")
    if len(picture.marks) > call.limits.max_marks:
        raise ToolError(f"{name}: at most {call.limits.max_marks} marks are drawn on a picture")
    marks = {_label(key, call.limits): _mark(mark, name, call.limits) for key, mark in picture.marks.items()}
    numbers = (getattr(picture.to_parent, part) for part in "abcdef")
    if not all(math.isfinite(number) and abs(number) <= _FAR_PX for number in numbers):
        raise ToolError(f"{name} is broken: the map to the picture's parent is not finite")
    # Only what differs is copied: a picture that is only drawn on shares its pixels.
    base = picture.base if picture.base.mode == "RGB" else picture.base.convert("RGB")
    return NewPicture(
        base, picture.parent, picture.to_parent, MappingProxyType(marks), _label(picture.name, call.limits)
    )


def _known_bases(call: ToolCall) -> set[int]:
    """Identities of the pixels that the call was given."""
    from mmreason.agent.images import ImageStore, Picture

    found: set[int] = set()
    for value in call.arguments.values():
        if isinstance(value, ImageStore):
            found |= {id(one.base) for one in value.pictures} | {id(base) for base in value.hidden.values()}
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, Picture):
                found.add(id(one.base))
    return found


def _label(text: object, limits: Limits) -> str:
    return plain_text(str(text), limits.max_label_chars)


def _mark(mark: Mark, name: str, limits: Limits) -> Mark:
    points = tuple((float(x), float(y)) for x, y in mark.points)
    least = 2 if mark.kind in ("box", "line", "path") else 1
    near = all(math.isfinite(x) and math.isfinite(y) and max(abs(x), abs(y)) <= _FAR_PX for x, y in points)
    if mark.kind not in _MARK_KINDS or not least <= len(points) <= 256 or not near:
        raise ToolError(f"{name} is broken: it drew a mark that cannot be drawn")
    return Mark(mark.kind, points, _label(mark.text, limits))
