"""Our tools in stock `trl.GRPOTrainer`: an environment whose methods are tools, as plain typed functions with Google docstrings.

What enters: names of tools and the frame of the model's numbers. What leaves: a class for `environment_factory`, one instance a rollout. Its methods take what
JSON can hold and return content blocks with pictures; a failed call raises `ToolError`, which TRL counts and shows to the model.

    trainer = GRPOTrainer(..., environment_factory=trl_environment(["crop", "zoom"], "relative_1000"))

TRL's own loop is used: it has no budgets of pictures, and rolls back no store. `mmreason train agent.tools=[...]` has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from PIL import Image

from mmreason.agent.arguments import legal
from mmreason.agent.calls import Call
from mmreason.agent.images import ImageStore, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.rendering import render
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.agent.tools import Kind, ParameterSpec, ToolError, ToolSpec
from mmreason.boxes import Frame
from mmreason.errors import ConfigError, PluginError
from mmreason.records import ImageGeometry, Row

#: Columns in which TRL's datasets hold pictures.
_PICTURES = ("images", "image")
#: Of pictures whose frame does not depend on how the model sees them.
_PATCH_SIZE, _MERGE_SIZE = 14, 2
_PLAIN: Mapping[Kind, Any] = {
    Kind.picture: str,
    Kind.pictures: list[str],
    Kind.box: list[float],
    Kind.point: list[float],
    Kind.points: list[list[float]],
    Kind.x: float,
    Kind.y: float,
    Kind.label: str,
}
GeometryOf = Callable[[tuple[int, int]], ImageGeometry]


class ToolEnvironment:
    """The pictures of one rollout, and tools on them; `trl_environment` makes subclasses with the tools as methods.

    Args:
        toolbox: the tools.
        geometry_of: how the model sees a picture of a given size.
    """

    def __init__(self, toolbox: Toolbox, geometry_of: GeometryOf) -> None:
        self._toolbox, self._geometry_of = toolbox, geometry_of
        self._store = ImageStore([])
        self._row = Row("", (), (), {})

    def reset(self, **row: Any) -> str:
        """Begin a rollout.

        Args:
            row: the columns of the example; pictures in `images` or `image`, hidden ones by name in `hidden`.

        Returns:
            Which pictures there are, for the end of the prompt.
        """
        hidden = row.get("hidden") or {}
        self._store = ImageStore(_pictures(row), {name: one.convert("RGB") for name, one in hidden.items() if one})
        self._row = Row(str(row.get("id", "")), (), (), {}, columns=row)
        return "\n" + " ".join(_named(picture) for picture in self._store.pictures) if len(self._store) else ""

    def _call(self, tool: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a call returns, as content blocks; raises `ToolError`."""
        job = Job(Call(tool, dict(arguments)), self._store, self._row, seen_by(self._store, self._geometry_of))
        (outcome,) = self._toolbox.run([job])
        if outcome.error is not None:
            raise ToolError(outcome.text, outcome.error)
        blocks: list[dict[str, Any]] = [{"type": "text", "text": outcome.text}] if outcome.text else []
        for new in outcome.new:
            picture = self._store.add(new, tool)
            blocks.append({"type": "text", "text": _named(picture)})
            blocks.append({"type": "image", "image": render(picture)})
        return blocks


def trl_environment(
    tools: Sequence[str | ToolSpec],
    frame: Frame | str,
    geometry_of: GeometryOf | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> type[ToolEnvironment]:
    """A class for `GRPOTrainer(environment_factory=...)` whose methods are these tools.

    Args:
        tools: names or specs.
        frame: in which the model writes boxes and points (`mmreason.boxes.Frame`).
        geometry_of: how the model sees a picture of a given size, such as `Policy.geometry_of`; must be given for `resized_px`.
        limits: of pictures and texts.
        options: of `Toolbox`: files, workers, deadline_s.

    Raises:
        ConfigError: numbers in `resized_px`, and nothing tells how pictures are resized.
        PluginError: a tool is unknown, or has a name that cannot be a method's.
    """
    if Frame.of(frame) is Frame.resized_px and geometry_of is None:
        raise ConfigError(
            "trl_environment: boxes in resized_px depend on the model's picture sizes: give geometry_of=..."
        )
    toolbox = Toolbox(tools, frame, limits, **options)
    methods: dict[str, Any] = {}
    for spec in toolbox.specs:
        method = _method(spec)
        if hasattr(ToolEnvironment, method.__name__) or method.__name__ in methods:
            raise PluginError(
                f"trl_environment: the tool '{spec.name}' cannot be a method of that name; register it under another"
            )
        methods[method.__name__] = method

    def begin(self: ToolEnvironment) -> None:
        ToolEnvironment.__init__(self, toolbox, geometry_of or _as_it_is)

    return type("ToolEnvironment", (ToolEnvironment,), {"__init__": begin, **methods})


def trl_tools(environment: ToolEnvironment) -> list[Callable[..., Any]]:
    """The tools of one environment as plain functions, for `GRPOTrainer(tools=...)` or `get_json_schema`.

    All rollouts would share the pictures: for one episode at a time, or tools that need no pictures.
    """
    return [getattr(environment, _method_name(spec)) for spec in environment._toolbox.specs]


def _method_name(spec: ToolSpec) -> str:
    return spec.name.replace("/", "_")


def _method(spec: ToolSpec) -> Any:
    """A function with the signature and docstring of a tool, as JSON has it."""

    def method(self: ToolEnvironment, **arguments: Any) -> list[dict[str, Any]]:
        return self._call(spec.name, {name: value for name, value in arguments.items() if value is not None})

    hints: dict[str, Any] = {name: _json_type(spec, one) for name, one in spec.parameters.items()}
    parameter = partial(inspect.Parameter, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    receiver = parameter(name="self")
    # Those without a default first, whatever order the author chose.
    ordered = sorted(spec.parameters.values(), key=lambda one: not one.required)
    empty = inspect.Parameter.empty
    given = [
        parameter(name=one.name, default=empty if one.required else one.default, annotation=hints[one.name])
        for one in ordered
    ]
    method.__signature__ = inspect.Signature([receiver, *given])  # type: ignore[attr-defined]
    method.__annotations__ = hints
    method.__name__ = method.__qualname__ = _method_name(spec)
    described = "\n".join(f"    {one.name}: {_described(one)}" for one in ordered)
    method.__doc__ = spec.description + (f"\n\nArgs:\n{described}\n" if ordered else "\n")
    return method


def _json_type(spec: ToolSpec, one: ParameterSpec) -> Any:
    """The type of an argument as JSON has it; ranges go into the description."""
    plain = _PLAIN.get(one.kind)
    if plain is None:
        plain = spec.hints[one.name]
        plain = get_args(plain)[0] if get_origin(plain) is Annotated else plain
    return plain if one.required or one.default is not None else plain | None


def _described(one: ParameterSpec) -> str:
    told = str(one.schema["description"])
    bare = one.kind in _PLAIN or one.kind in (Kind.choice, Kind.boolean, Kind.text)
    return told if bare else f"{told.rstrip('.')}; {legal(one)}"


def _as_it_is(size: tuple[int, int]) -> ImageGeometry:
    return ImageGeometry(size, size, _PATCH_SIZE, _MERGE_SIZE)


def _named(picture: Picture) -> str:
    named = f" ({picture.name})" if picture.name else ""
    return f"{picture.id}{named} is {picture.size[0]} × {picture.size[1]} px."


def _pictures(row: Mapping[str, Any]) -> list[Image.Image]:
    for name in _PICTURES:
        found = row.get(name)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [found]
    return []
