"""Isolated tools, on both sides: how a call is sent to a child process, made there, and answered.

What enters: `ToolCall`s. What leaves: `ToolAnswer`s. The child imports this module by its name (`mmreason.reward_kit.worker.ChildWork`).
A call goes as a line of JSON and our own pickled objects: pictures, marks, numbers and cleaned texts. An answer comes back as a line of JSON and
the bytes of new pixels, and is never unpickled. Pixels that the parent has already are named, not sent. No torch.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image

from mmreason.agent.affine import Affine
from mmreason.agent.calls import CallError
from mmreason.agent.execution import ToolAnswer, ToolCall
from mmreason.agent.images import ImageStore, Mark, NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.tools import TOOLS, load_tool_files
from mmreason.plugin_functions import is_file_module
from mmreason.reward_kit.worker import Sources, import_sources, limit_cpu

#: Largest answer, in bytes: the new pixels of a call, and more than its texts.
MAX_ANSWER_BYTES = 64 * 2**20


def sources_of(tools: Iterable[str], files: Iterable[str] = ()) -> Sources:
    """What a child has to import for these tools."""
    names, modules, paths = tuple(tools), [], [str(path) for path in files]
    for name in names:
        module = TOOLS.get(name).function.__module__
        if is_file_module(module):
            paths.append(str(sys.modules[module].__file__))
        else:
            modules.append(module)
    return Sources(names, tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(paths)), __name__)


class ToolWork:
    """The training process's side; a `mmreason.reward_kit.pool.Work`."""

    max_answer_bytes = MAX_ANSWER_BYTES
    how_to_send_less = "name single pictures instead of `store`"

    def encode(self, call: ToolCall) -> bytes:
        """A call as it goes to a worker; may raise what cannot be pickled of a row's columns."""
        limits = {name: getattr(call.limits, name) for name in Limits.__dataclass_fields__}
        head = {"name": call.spec.name, "deadline_s": call.deadline_s, "limits": limits, "ids": sorted(call.ids)}
        body = io.BytesIO()
        _Pickler(body, pickle.HIGHEST_PROTOCOL).dump(dict(call.arguments))
        return json.dumps(head).encode() + b"\n" + body.getvalue()

    def decode(self, call: ToolCall, content: bytes) -> ToolAnswer:
        """What a worker answered."""
        try:
            return _read_answer(content, _bases(call.arguments))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return self.failed(call, "crashed", "sent an answer that cannot be read")

    def failed(self, call: ToolCall, kind: Literal["exception", "deadline", "crashed"], explanation: str) -> ToolAnswer:
        """A call that was not made, or not to its end."""
        error = CallError.deadline if kind == "deadline" else CallError.tool_failed
        hint = " Ask for less: a smaller box or picture." if kind == "deadline" else ""
        return ToolAnswer(f"{call.spec.name} {explanation}.{hint}", error=error).cleaned(call.limits, call.deadline_s)

    def raised(self, call: ToolCall) -> ToolAnswer:
        """A call whose arguments cannot be sent: columns of the row that do not pickle."""
        error = sys.exc_info()[1]
        message = f"{call.spec.name} failed: its arguments cannot be sent to a child process: {error}"
        return ToolAnswer(message, error=CallError.tool_failed).cleaned(call.limits, 0.0)


class _Pickler(pickle.Pickler):
    """Pickles read-only mappings as well: pictures hold their marks in one."""

    def reducer_override(self, value: Any) -> Any:
        return (read_only, (dict(value),)) if isinstance(value, MappingProxyType) else NotImplemented


def read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """A read-only mapping; a name that pickle can find, which the type itself has not."""
    return MappingProxyType(items)


# ---------------------------------------------------------------------- answers


def _bases(arguments: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Pixels that both sides have: `img_0` for a picture, `/NAME` for a hidden one."""
    found: dict[str, Image.Image] = {}
    for value in arguments.values():
        if isinstance(value, ImageStore):
            found |= {picture.id: picture.base for picture in value.pictures}
            found |= {f"/{name}": base for name, base in value.hidden.items()}
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, Picture):
                found[one.id] = one.base
    return found


def _written_answer(answer: ToolAnswer, bases: Mapping[str, Image.Image]) -> bytes:
    names = {id(base): name for name, base in bases.items()}
    pictures, pixels = [], []
    for new in answer.pictures:
        if (name := names.get(id(new.base))) is None:
            pixels.append(new.base.tobytes())
        marks = [[label, mark.kind, mark.points, mark.text] for label, mark in new.marks.items()]
        pictures.append([name, new.base.size, new.parent, astuple(new.to_parent), marks, new.name])
    head = [answer.text, pictures, answer.shown, answer.error, answer.seconds]
    return b"\n".join([json.dumps(head).encode(), b"".join(pixels)])


def _read_answer(content: bytes, bases: Mapping[str, Image.Image]) -> ToolAnswer:
    head, _, pixels = content.partition(b"\n")
    text, pictures, shown, error, seconds = json.loads(head)
    found, start = [], 0
    for name, (width, height), parent, numbers, marks, page in pictures:
        if name is None:
            end = start + 3 * width * height
            base = Image.frombytes("RGB", (width, height), pixels[start:end])
            start = end
        else:
            base = bases[name]
        drawn = {label: Mark(kind, tuple((x, y) for x, y in points), written) for label, kind, points, written in marks}
        found.append(NewPicture(base, parent, Affine(*numbers), MappingProxyType(drawn), page))
    return ToolAnswer(text, tuple(found), tuple(shown), None if error is None else CallError(error), seconds)


# ---------------------------------------------------------------------- in the child


def load(sources: Sources) -> None:
    """Import the tools; raises what that raises."""
    import_sources(sources, load_tool_files, TOOLS)


def answer(content: bytes) -> bytes:
    """Make the call that a message holds."""
    head, _, body = content.partition(b"\n")
    facts = json.loads(head)
    limit_cpu(facts["deadline_s"])
    limits = Limits(**facts["limits"])
    try:
        arguments: dict[str, Any] = pickle.loads(body)  # noqa: S301 - from the training process, over its own socket
    except (Exception, SystemExit) as error:  # noqa: BLE001 - part of the boundary: unpickling runs code of a row's columns
        message = f"{facts['name']} failed: its arguments cannot be read by a child process: {error}"
        failure = ToolAnswer(message, error=CallError.tool_failed).cleaned(limits, 0.0)
        return _written_answer(failure, {})
    call = ToolCall(TOOLS.get(facts["name"]), arguments, limits, frozenset(facts["ids"]), facts["deadline_s"])
    written = _written_answer(call.run(), _bases(arguments))
    if len(written) > MAX_ANSWER_BYTES:
        message = f"{facts['name']} returned more than {MAX_ANSWER_BYTES:,} bytes: ask for fewer or smaller pictures"
        written = _written_answer(ToolAnswer(message, error=CallError.tool_failed), {})
    return written
