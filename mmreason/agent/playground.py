"""Tools called by hand: fields for their arguments, derived from their schemas, and the pictures before and after.

What enters: a tool, and what a person put into the fields. What leaves: the call as a model would write it, in pixels of the picture, what came of it, and
the picture before and after. No page here (`mmreason.agent.web` draws the fields).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from mmreason.agent.calls import Call, CallError
from mmreason.agent.images import ImageStore
from mmreason.agent.rendering import render
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.agent.tools import TOOLS, Kind, ParameterSpec, ToolSpec, load_tool_files
from mmreason.boxes import Frame
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

#: What a field is: one of a few, several of them, a number, a text, on or off, or a list as JSON.
FieldKind = Literal["choice", "choices", "number", "text", "flag", "json"]

_CORNERS: Mapping[Kind, tuple[str, ...]] = {Kind.box: ("x1", "y1", "x2", "y2"), Kind.point: ("x", "y")}
_AXES = {"x1": 0, "x": 0, "x2": 0, "y1": 1, "y": 1, "y2": 1}
_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class ToolField:
    """One field of a form.

    Attributes:
        argument: that it is for.
        part: `x1`, `y1`, … where an argument has several fields; else empty.
        kind: what it is.
        about: what the model is told of the argument.
        choices: of `choice` and `choices`.
        low, high: of numbers; None = no bound.
        whole: a whole number.
        required: it must be filled in.
        value: at first.
    """

    argument: str
    part: str
    kind: FieldKind
    about: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False
    required: bool = True
    value: Any = None

    @property
    def label(self) -> str:
        """Name, and whether it may stay empty."""
        return f"{self.argument} {self.part}".strip() + ("" if self.required else " (optional)")


def fields_of(spec: ToolSpec, ids: Sequence[str], size: tuple[int, int]) -> list[ToolField]:
    """The form of a tool.

    Args:
        spec: the tool.
        ids: of the pictures there are.
        size: `(width, height)` of the newest picture, in pixels: where boxes are at first, and how far they may go.
    """
    return [one for parameter in spec.parameters.values() for one in _fields(parameter, ids, size)]


def _fields(parameter: ParameterSpec, ids: Sequence[str], size: tuple[int, int]) -> list[ToolField]:
    schema, name, kind = parameter.schema, parameter.name, parameter.kind
    about, needed, default = str(schema.get("description", "")), parameter.required, parameter.default
    newest = ids[-1] if ids else None
    if kind in _CORNERS:
        first = _middle(kind, size) if needed else {}
        return [
            ToolField(name, part, "number", about, low=0, high=max(size), required=needed, value=first.get(part))
            for part in _CORNERS[kind]
        ]
    if kind is Kind.picture:
        return [ToolField(name, "", "choice", about, tuple(ids), required=needed, value=newest if needed else None)]
    if kind is Kind.pictures:
        return [ToolField(name, "", "choices", about, tuple(ids), required=needed, value=list(ids) if needed else [])]
    if kind in (Kind.x, Kind.y):
        side = size[0 if kind is Kind.x else 1]
        return [
            ToolField(
                name, "", "number", about, low=0, high=side, required=needed, value=side / 2 if needed else default
            )
        ]
    if kind is Kind.boolean:
        return [ToolField(name, "", "flag", about, required=needed, value=bool(default))]
    if kind is Kind.choice:
        choices = tuple(schema.get("enum", [schema["const"]] if "const" in schema else []))
        return [ToolField(name, "", "choice", about, choices, required=needed, value=choices[0] if needed else default)]
    if kind in (Kind.number, Kind.integer):
        low, high = (
            schema.get("minimum", schema.get("exclusiveMinimum")),
            schema.get("maximum", schema.get("exclusiveMaximum")),
        )
        whole = kind is Kind.integer
        return [ToolField(name, "", "number", about, (), low, high, whole, needed, low if needed else default)]
    if kind in (Kind.points, Kind.values):
        example = json.dumps([[0, 0], list(size)] if kind is Kind.points else _values(schema))
        return [ToolField(name, "", "json", about, required=needed, value=example if needed else "")]
    return [ToolField(name, "", "text", about, required=needed, value=default or "")]


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """The shortest list that may be written: ones, or as small as numbers may be."""
    items = schema.get("items", {})
    one: Any = items.get("minimum", 1) if items.get("type") in ("integer", "number") else "…"
    return [one] * int(schema.get("minItems", 0))


def _middle(kind: Kind, size: tuple[int, int]) -> dict[str, float]:
    """A box around the middle, or the middle."""
    shares = {"x1": 0.25, "y1": 0.25, "x2": 0.75, "y2": 0.75, "x": 0.5, "y": 0.5}
    return {part: round(shares[part] * size[_AXES[part]]) for part in _CORNERS[kind]}


def arguments_of(fields: Sequence[ToolField], values: Sequence[Any]) -> dict[str, Any]:
    """The arguments as a model would write them; what is empty is left out.

    Args:
        fields: the form.
        values: what stands in each field.

    Raises:
        ConfigError: a list is no JSON, or a part of a box is missing.
    """
    arguments: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {}
    for one, value in zip(fields, values, strict=True):
        if one.part:
            parts.setdefault(one.argument, []).append(value)
        elif value is None or value == "" or value == []:
            continue
        elif one.kind == "json":
            try:
                arguments[one.argument] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{one.argument}: not JSON ({error}); write a list such as [[0, 0], [10, 20]]"
                ) from None
        else:
            arguments[one.argument] = int(value) if one.whole and float(value).is_integer() else value
    for name, numbers in parts.items():
        given = [number for number in numbers if number is not None]
        if given and len(given) < len(numbers):
            raise ConfigError(f"{name}: fill in all {len(numbers)} numbers, or none")
        if given:
            arguments[name] = given
    return arguments


@dataclass(frozen=True)
class HandCall:
    """What came of a call.

    Attributes:
        call: as a model would have written it.
        text: what a model would read; says what is legal if the call failed.
        error: why it failed.
        before: the picture that the call named, with its marks.
        after: the first new picture; None if there is none.
        new_ids: of the new pictures, which are in the store now.
    """

    call: Call
    text: str
    error: CallError | None
    before: Image.Image | None
    after: Image.Image | None
    new_ids: tuple[str, ...]


class Playground:
    """Every tool, and the pictures that they have made so far.

    Args:
        files: Python files with tools of one's own.
        workers: child processes; None = by the number of cores, 0 = in this process.
    """

    def __init__(self, files: Sequence[str] = (), workers: int | None = None) -> None:
        load_tool_files(files)
        self.names = TOOLS.names()
        self._toolbox = Toolbox(self.names, Frame.original_px, files=files, workers=workers, deadline_s=_DEADLINE_S)

    def spec(self, name: str) -> ToolSpec:
        """A tool by its name."""
        return self._toolbox.by_name[name]

    def call(
        self, store: ImageStore, tool: str, arguments: Mapping[str, Any], pages: Mapping[str, str] | None = None
    ) -> HandCall:
        """Call a tool; its pictures enter the store.

        Args:
            store: the pictures, and the hidden ones.
            tool: its name.
            arguments: as a model writes them, places in pixels of the picture.
            pages: texts of hidden pictures, by name; those of others are read by an engine, if there is one.
        """
        call = Call(tool, dict(arguments))
        seen = seen_by(store, lambda size: ImageGeometry(size, size, 14, 2))
        row = Row("by hand", (), (), {}, columns={"pages": dict(pages or {})})
        outcome = self._toolbox.run([Job(call, store, row, seen)])[0]
        spec = self._toolbox.by_name.get(tool)
        named = arguments.get(spec.image_parameter) if spec is not None and spec.image_parameter else None
        before = render(store[named]) if isinstance(named, str) and named in store else None
        new = [store.add(one, tool) for one in outcome.new]
        after = render(new[0]) if new else None
        return HandCall(call, outcome.text, outcome.error, before, after, tuple(picture.id for picture in new))
