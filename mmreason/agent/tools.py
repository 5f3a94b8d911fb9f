"""What a tool is: a typed, documented function, registered with `@tool`; its schema is derived from it.

What enters: a function with type hints and a Google docstring. What leaves: a `ToolSpec`, whose `schema()` is what a model is told. How the
arguments that a model writes become those of the function is `mmreason.agent.arguments`; who runs it, `mmreason.agent.toolbox`.

    @tool()
    def draw_box(image: Picture, box: Box, label: Label = "") -> NewPicture:
        '''Draw a box on a picture.

        Args:
            image: the picture.
            box: the box.
            label: a short name of it.
        '''

A model writes pictures as ids (`"img_0"`), boxes as `[x1, y1, x2, y2]`, points as `[x, y]`. The function gets `Picture`s, and boxes and points in
pixels of the picture that its first `Picture` parameter names, whatever frame the model writes in.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from mmreason.agent.calls import CallError
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.text_reading import TEXT_READERS
from mmreason.errors import MMReasonError, PluginError
from mmreason.plugin_functions import full_name, load_plugin_files, where_defined, yields
from mmreason.registry import Registry

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Kind(StrEnum):
    """What an argument is, as the model writes it and as the function gets it."""

    picture = "picture"
    """Written as an id, `"img_0"`; a `Picture`."""
    pictures = "pictures"
    """A list of ids; `list[Picture]`."""
    box = "box"
    """`[x1, y1, x2, y2]` in the model's frame; pixels of the picture, corners in order, inside it, with an area."""
    point = "point"
    """`[x, y]` in the model's frame; pixels, inside the picture."""
    points = "points"
    """A list of points."""
    x = "x"
    """One x in the model's frame; pixels."""
    y = "y"
    label = "label"
    """A short text that can be printed, without control tokens."""
    number = "number"
    integer = "integer"
    boolean = "boolean"
    text = "text"
    choice = "choice"
    """One of a few texts or numbers (`Literal`)."""
    values = "values"
    """A list of numbers, whole numbers or texts."""


#: Types of parameters whose numbers depend on the picture, or that are more than a text.
Box = Annotated[tuple[float, float, float, float], Kind.box]
Point = Annotated[tuple[float, float], Kind.point]
X = Annotated[float, Kind.x]
Y = Annotated[float, Kind.y]
Label = Annotated[str, Kind.label]

#: What a tool may name as a parameter besides its arguments, and what it then gets.
NEEDS: Mapping[str, str] = {
    "store": "ImageStore: all pictures of the episode, and the hidden ones",
    "row": "Row: the question, without its pictures",
    "page_texts": "PageTexts: texts of the hidden pictures: the row's, else as an engine reads them",
    "limits": "Limits: how large a picture may be",
    "coordinates": "Coordinates: writes boxes and points of a picture in the model's frame, for texts",
}
#: Items of a list that a model may write, where the tool sets no lower bound.
MAX_ITEMS = 32

_SCALARS: Mapping[Any, tuple[Kind, str]] = {
    float: (Kind.number, "number"),
    int: (Kind.integer, "integer"),
    bool: (Kind.boolean, "boolean"),
    str: (Kind.text, "string"),
}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_SHAPES: Mapping[Kind, Mapping[str, Any]] = {
    Kind.picture: {"type": "string"},
    Kind.pictures: {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS},
    Kind.box: _NUMBERS | {"minItems": 4, "maxItems": 4},
    Kind.point: _NUMBERS | {"minItems": 2, "maxItems": 2},
    Kind.points: {
        "type": "array",
        "items": _NUMBERS | {"minItems": 2, "maxItems": 2},
        "minItems": 1,
        "maxItems": MAX_ITEMS,
    },
    Kind.x: {"type": "number"},
    Kind.y: {"type": "number"},
    Kind.label: {"type": "string"},
}
#: Added to the description of a parameter, so that a model knows what to write.
_HINTS: Mapping[Kind, str] = {
    Kind.picture: "by its id, such as img_0",
    Kind.pictures: "by their ids, such as [img_0, img_1]",
    Kind.box: "as [x1, y1, x2, y2]",
    Kind.point: "as [x, y]",
    Kind.points: "as [[x, y], ...]",
}


class ToolError(MMReasonError, RuntimeError):
    """A tool cannot do what it was asked; the message is for the model and says what would be legal.

    Args:
        message: without control tokens of a model; those are taken out anyway.
        kind: under which it is counted.
    """

    def __init__(self, message: str, kind: CallError = CallError.tool_failed) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool returns if it is more than one text or one picture.

    Attributes:
        text: for the model.
        pictures: new ones, in order.
        shown: names of the pages or frames that were found, best first.
    """

    text: str = ""
    pictures: tuple[NewPicture, ...] = ()
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One argument of a tool.

    Attributes:
        name: of the parameter.
        kind: what it is.
        schema: JSON schema of what the model writes, with its description.
        required: it has no default.
        default: `None` where it is required.
        checker: pydantic's, of plain values; `None` for pictures, boxes, points and labels.
    """

    name: str
    kind: Kind
    schema: Mapping[str, Any]
    required: bool
    default: Any = None
    checker: TypeAdapter[Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ToolSpec:
    """One registered tool.

    Attributes:
        name: `NAME`, or `package/NAME` for a plug-in package.
        function: as its author wrote it.
        description: the docstring up to its sections.
        parameters: its arguments, by name, in order.
        needs: which of `NEEDS` it takes.
        isolated: it runs in a child process, where the toolbox has any, and is killed at its deadline.
        hints: types of the arguments as its author wrote them, without `| None`.
    """

    name: str
    function: Callable[..., Any]
    description: str
    parameters: Mapping[str, ParameterSpec]
    needs: tuple[str, ...] = ()
    isolated: bool = True
    hints: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def image_parameter(self) -> str | None:
        """The first parameter that is a picture: boxes and points lie in it."""
        return next((name for name, one in self.parameters.items() if one.kind is Kind.picture), None)

    @property
    def needs_picture(self) -> bool:
        """It cannot be called where there is no picture."""
        kinds = (Kind.picture, Kind.pictures)
        return any(one.required and one.kind in kinds for one in self.parameters.values())

    @property
    def finds_hidden(self) -> bool:
        """It can bring up pictures that the model has not been shown."""
        return not {"store", "page_texts"}.isdisjoint(self.needs)

    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI-style interfaces are told of it."""
        properties = {name: dict(one.schema) for name, one in self.parameters.items()}
        required = [name for name, one in self.parameters.items() if one.required]
        parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        parameters["additionalProperties"] = False
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    def __repr__(self) -> str:
        return f"tool in {self.function.__module__}:{self.function.__code__.co_firstlineno}"


TOOLS: Registry[ToolSpec] = Registry("tool", "mmreason.tools.builtin", "mmreason.tools")


def tool(name: str | None = None, *, isolated: bool = True) -> Callable[[FunctionT], FunctionT]:
    """Register a function as a tool; the function itself stays as it is and can be called directly.

    Every parameter is either one of `NEEDS`, by its name, or an argument that the model writes, by its type: `Picture`, `list[Picture]`, `Box`,
    `Point`, `list[Point]`, `X`, `Y`, `Label`, `float`, `int`, `bool`, `str`, `Literal[...]`, `list` of `float`, `int` or `str`, any of these
    `| None`, and `Annotated[..., pydantic.Field(ge=..., le=...)]` for ranges. Arguments are described in the docstring under `Args:`.
    The function returns a text, a `NewPicture` or a `ToolResult`, or raises `ToolError`.

    Args:
        name: registered name; default is the function's. In an installed package, `package/` is put before.
        isolated: run it in a child process that is killed at the deadline. False only for what cannot hang or use much
            memory whatever it is given.

    Raises:
        PluginError: the function cannot be a tool, or the name is taken.
    """
    if callable(name):
        raise PluginError("write @tool() with brackets, also without arguments")

    def register(function: FunctionT) -> FunctionT:
        spec = build_tool(function, name, isolated=isolated)
        TOOLS.add(spec.name, spec)
        return function

    return register


def build_tool(function: Callable[..., Any], name: str | None = None, *, isolated: bool = True) -> ToolSpec:
    """Make the spec of a function without registering it; arguments and errors as for `tool`."""
    where = where_defined("tool", function, name)
    if inspect.iscoroutinefunction(function) or yields(function):
        raise PluginError(f"{where}: must be a plain function, not async or a generator")
    registered = full_name(name or function.__name__, function.__module__, where)
    description, described = read_docstring(function)
    if not description:
        raise PluginError(f"{where}: needs a docstring: its first lines are what the model is told")
    hints = _hints(function, where)
    needs: list[str] = []
    parameters: dict[str, ParameterSpec] = {}
    for parameter_name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PluginError(f"{where}: {parameter} is not allowed; name each argument")
        if parameter_name in NEEDS:
            needs.append(parameter_name)
            continue
        if parameter_name not in described:
            raise PluginError(f"{where}: describe '{parameter_name}' under `Args:` in its docstring, for the model")
        parameters[parameter_name] = _parameter(parameter, hints.get(parameter_name), described[parameter_name], where)
    bare = {given: _without_none(hints[given]) for given in parameters}
    arguments = types.MappingProxyType(parameters)
    spec = ToolSpec(registered, function, description, arguments, tuple(needs), isolated, bare)
    framed = [
        one.name for one in parameters.values() if one.kind in (Kind.box, Kind.point, Kind.points, Kind.x, Kind.y)
    ]
    if framed and spec.image_parameter is None:
        raise PluginError(
            f"{where}: '{framed[0]}' lies in a picture, and no parameter is a Picture: add `image: Picture`"
        )
    return spec


def load_tool_files(paths: Iterable[str | Path]) -> None:
    """Import Python files that register tools or text readers; see `mmreason.plugin_functions.load_plugin_files`."""
    load_plugin_files("agent", paths, (TOOLS, TEXT_READERS))


_SECTION = re.compile(r"(Args|Arguments|Returns|Raises|Note|Notes|Example|Examples|Source):\s*\Z")
_ENTRY = re.compile(r"(?: {4}|\t)(\w+)(?: \([^)]{0,100}\))?:\s*(.*)")


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before the sections of a Google docstring, and its `Args:` by name; line breaks become spaces."""
    lines = (inspect.getdoc(function) or "").splitlines()
    start = next((index for index, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    described: dict[str, str] = {}
    inside, current = False, ""
    for line in lines[start:]:
        if section := _SECTION.match(line):
            inside = section[1] in ("Args", "Arguments")
        elif inside and (entry := _ENTRY.match(line)):
            current = entry[1]
            described[current] = entry[2].strip()
        elif inside and current and line.strip():
            described[current] += " " + line.strip()
    return " ".join(" ".join(lines[:start]).split()), described


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Types of the arguments; those of the needs may exist for type checkers only."""
    written = {name: hint for name, hint in inspect.get_annotations(function).items() if name not in (*NEEDS, "return")}
    holder = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    holder.__annotations__ = written
    try:
        return get_type_hints(holder, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise PluginError(f"{where}: the types of its arguments cannot be resolved: {error}") from None


def _parameter(parameter: inspect.Parameter, hint: Any, description: str, where: str) -> ParameterSpec:
    if hint is None:
        raise PluginError(f"{where}: '{parameter.name}' needs a type")
    required = parameter.default is parameter.empty
    bare = _without_none(hint)
    if bare is not hint and (required or parameter.default is not None):
        raise PluginError(f"{where}: '{parameter.name}' is of type X | None, so its default must be None")
    kind = _kind(bare)
    if kind is None:
        raise PluginError(
            f"{where}: '{parameter.name}' has type {bare}, which a model cannot write. Use Picture, Box, Point, X, Y, Label, "
            "float, int, bool, str, Literal[...], a list of these, X | None, or Annotated[X, pydantic.Field(...)]."
        )
    checker: TypeAdapter[Any] | None = None
    if kind in _SHAPES:
        schema: dict[str, Any] = dict(_SHAPES[kind]) | _list_bounds(bare, where)
    else:
        try:
            checker = TypeAdapter(bare, config=ConfigDict(strict=True, allow_inf_nan=False))
            schema = _plain_schema(checker.json_schema())
        except (PydanticUserError, TypeError) as error:
            raise PluginError(f"{where}: the type of '{parameter.name}' cannot be used: {error}") from None
        if kind is Kind.values:
            schema.setdefault("maxItems", MAX_ITEMS)
    hinted = f"{description.rstrip('.')}, {_HINTS[kind]}" if kind in _HINTS else description
    schema["description"] = hinted
    default = None if required else parameter.default
    if default is not None and kind not in (Kind.picture, Kind.pictures):
        schema["default"] = list(default) if isinstance(default, tuple) else default
    return ParameterSpec(parameter.name, kind, types.MappingProxyType(schema), required, default, checker)


def _list_bounds(hint: Any, where: str) -> dict[str, Any]:
    """`minItems` and `maxItems` of `Annotated[list[...], Field(min_length=, max_length=)]`."""
    bounds: dict[str, Any] = {}
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    for mark in marks:
        for piece in (mark, *getattr(mark, "metadata", ())):
            for attribute, key in (("min_length", "minItems"), ("max_length", "maxItems")):
                if isinstance(found := getattr(piece, attribute, None), int):
                    bounds[key] = found
    if bounds.get("minItems", 0) > bounds.get("maxItems", MAX_ITEMS):
        raise PluginError(
            f"{where}: a list of at least {bounds['minItems']} items cannot be written; {MAX_ITEMS} are allowed"
        )
    return bounds


def _plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "$defs", "default")}


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`; anything else as it is."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 and len(get_args(hint)) == 2 else hint
    return hint


def _kind(hint: Any) -> Kind | None:
    """What an argument of this type is; `None` if a model cannot write it."""
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        declared = [mark for mark in marks if isinstance(mark, Kind)]
        return declared[0] if declared else _kind(base)
    if hint is Picture:
        return Kind.picture
    if get_origin(hint) is Literal:
        return Kind.choice if all(isinstance(choice, (str, int)) for choice in get_args(hint)) else None
    if get_origin(hint) is list:
        inner = _kind(get_args(hint)[0])
        listed = {Kind.picture: Kind.pictures, Kind.point: Kind.points}
        plain = (Kind.number, Kind.integer, Kind.text)
        return listed.get(inner, Kind.values if inner in plain else None) if inner else None
    return _SCALARS[hint][0] if hint in _SCALARS else None
