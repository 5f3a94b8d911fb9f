"""The arguments of a call, from what the model wrote to what the function gets: every value is hostile.

What enters: a `ToolSpec` and a mapping of anything JSON can hold. What leaves: keyword arguments, pictures by id, boxes and points in pixels of their
picture; or a `ToolError` whose message says what would be legal. Nothing is guessed: no text is read as a number, and numbers are in the one
frame of the run. Time and memory are bounded by the declared sizes of lists, however large the value is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from mmreason.agent.calls import CallError
from mmreason.agent.images import ImageStore, Picture
from mmreason.agent.limits import Coordinates, Limits
from mmreason.agent.plain_text import plain_text
from mmreason.agent.tools import MAX_ITEMS, Kind, ParameterSpec, ToolError, ToolSpec
from mmreason.registry import did_you_mean

#: No coordinate is anywhere near this.
MAX_NUMBER = 1e9
#: Characters of a text argument that is no label.
MAX_TEXT_CHARS = 512
#: Of what the model wrote, quoted in a message.
_QUOTED_CHARS = 40
#: Least width and height of a box, in pixels of its picture.
_MIN_BOX_PX = 1e-6


class Reader:
    """Reads the arguments of one call.

    Args:
        store: the pictures of the episode.
        coordinates: the frame of the numbers, and how the model sees each picture.
        limits: of labels.
    """

    def __init__(self, store: ImageStore, coordinates: Coordinates, limits: Limits) -> None:
        self.store, self.coordinates, self.limits = store, coordinates, limits
        self.picture: Picture | None = None  # in which boxes and points lie

    def read(self, spec: ToolSpec, arguments: object) -> dict[str, Any]:
        """The function's keyword arguments; raises `ToolError`."""
        given = self._checked_names(spec, arguments)
        # The picture first: it says how large the frame is.
        order = sorted(spec.parameters.values(), key=lambda one: one.name != spec.image_parameter)
        found: dict[str, Any] = {}
        for parameter in order:
            name = parameter.name
            if name not in given or (given[name] is None and not parameter.required and parameter.default is None):
                if parameter.required:
                    raise _wrong(f"{spec.name}: '{name}' is missing. {signature(spec)}")
                found[name] = parameter.default
                continue
            try:
                found[name] = _READERS[parameter.kind](self, given[name], parameter)
            except ToolError as error:
                raise ToolError(f"{spec.name}: '{name}' {error}", error.kind) from None
            if name == spec.image_parameter:
                self.picture = found[name]
        return {name: found[name] for name in spec.parameters}

    def _checked_names(self, spec: ToolSpec, arguments: object) -> Mapping[str, Any]:
        if not isinstance(arguments, Mapping):
            raise _wrong(
                f"{spec.name}: arguments must be an object with names, not {quoted(arguments)}. {signature(spec)}"
            )
        if len(arguments) > MAX_ITEMS or not all(isinstance(name, str) for name in arguments):
            raise _wrong(f"{spec.name}: too many arguments, or names that are no texts. {signature(spec)}")
        for name in arguments:
            if name not in spec.parameters:
                hint = did_you_mean(name[:64], list(spec.parameters))
                raise _wrong(f"{spec.name}: there is no argument {quoted(name)}.{hint} {signature(spec)}")
        return arguments

    # ------------------------------------------------------------------ pictures

    def image(self, value: object, parameter: ParameterSpec | None = None) -> Picture:
        """A picture by its id."""
        del parameter
        if not isinstance(value, str):
            raise _wrong(f"must be the id of a picture, such as img_0, not {quoted(value)}")
        if len(value) > 64 or value not in self.store or value not in self.coordinates.seen:
            message = f"must be the id of a picture: {legal_ids(self.store)}. There is no {quoted(value)}"
            raise ToolError(message, CallError.unknown_image)
        return self.store[value]

    def images(self, value: object, parameter: ParameterSpec) -> list[Picture]:
        """Several pictures."""
        return [self.image(item) for item in _listed(value, parameter, "a list of ids of pictures")]

    # ------------------------------------------------------------------ places

    def _numbers(self, value: object, count: int, form: str) -> list[float]:
        if not isinstance(value, (list, tuple)) or len(value) != count:
            raise _wrong(f"must be {form}, {self._extent()}, not {quoted(value)}")
        return [self._number(item, form) for item in value]

    def _number(self, value: object, form: str) -> float:
        number = finite(value)
        if number is None:
            raise _wrong(f"must be {form}, {self._extent()}; {quoted(value)} is no such number")
        return number

    def _extent(self) -> str:
        width, height = self.coordinates.extent(self._base())
        number = self.coordinates.number
        return f"x from 0 to {number(width)} and y from 0 to {number(height)}"

    def _base(self) -> Picture:
        assert self.picture is not None  # a spec with places has a picture (`build_tool`)
        return self.picture

    def box(self, value: object, parameter: ParameterSpec | None = None) -> tuple[float, float, float, float]:
        """`[x1, y1, x2, y2]`, corners in any order, cut to the picture."""
        del parameter
        a, b, c, d = self._numbers(value, 4, "[x1, y1, x2, y2]")
        picture = self._base()
        x1, y1, x2, y2 = self.coordinates.to_pixels(picture).box((a, b, c, d))
        width, height = picture.size
        kept = (
            min(max(x1, 0.0), width),
            min(max(y1, 0.0), height),
            min(max(x2, 0.0), width),
            min(max(y2, 0.0), height),
        )
        if kept[2] - kept[0] < _MIN_BOX_PX or kept[3] - kept[1] < _MIN_BOX_PX:
            outside = (x2 - x1) * (y2 - y1) > 0
            what = "lies outside the picture" if outside else "has no area"
            raise _wrong(f"{what}: {quoted_numbers((a, b, c, d))}. It must be [x1, y1, x2, y2], {self._extent()}")
        return kept

    def point(self, value: object, parameter: ParameterSpec | None = None) -> tuple[float, float]:
        """`[x, y]` inside the picture."""
        del parameter
        x, y = self._numbers(value, 2, "[x, y]")
        self._must_be_inside(x, y)
        return self.coordinates.to_pixels(self._base())((x, y))

    def points(self, value: object, parameter: ParameterSpec) -> list[tuple[float, float]]:
        """A list of points."""
        return [self.point(item) for item in _listed(value, parameter, "a list of points [[x, y], ...]")]

    def x(self, value: object, parameter: ParameterSpec) -> float:
        """An x inside the picture."""
        del parameter
        x = self._number(value, "a number")
        self._must_be_inside(x, 0.0)
        return self.coordinates.to_pixels(self._base())((x, 0.0))[0]

    def y(self, value: object, parameter: ParameterSpec) -> float:
        """A y inside the picture."""
        del parameter
        y = self._number(value, "a number")
        self._must_be_inside(0.0, y)
        return self.coordinates.to_pixels(self._base())((0.0, y))[1]

    def _must_be_inside(self, x: float, y: float) -> None:
        width, height = self.coordinates.extent(self._base())
        if not (0.0 <= x <= width and 0.0 <= y <= height):
            raise _wrong(f"lies outside the picture: {quoted_numbers((x, y))}. Legal: {self._extent()}")

    # ------------------------------------------------------------------ texts and plain values

    def label(self, value: object, parameter: ParameterSpec) -> str:
        """A short text."""
        del parameter
        limit = self.limits.max_label_chars
        if not isinstance(value, str) or len(value) > limit:
            raise _wrong(f"must be a text of at most {limit} characters, not {quoted(value)}")
        return plain_text(value, limit)

    def text(self, value: object, parameter: ParameterSpec) -> str:
        """A longer text."""
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
            raise _wrong(f"must be a text of at most {MAX_TEXT_CHARS} characters, not {quoted(value)}")
        return plain_text(_valid(value, parameter), MAX_TEXT_CHARS)

    def value(self, value: object, parameter: ParameterSpec) -> Any:
        """A number, a whole number, a truth value or a choice."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if finite(value) is None:
                raise _wrong(f"must be {legal(parameter)}, not {quoted(value)}")
            if parameter.kind is Kind.integer and float(value).is_integer():
                value = int(value)
        elif isinstance(value, bool):
            if parameter.kind is not Kind.boolean:
                raise _wrong(f"must be {legal(parameter)}, not {quoted(value)}")
        elif not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
            raise _wrong(f"must be {legal(parameter)}, not {quoted(value)}")
        return _valid(value, parameter)

    def values(self, value: object, parameter: ParameterSpec) -> list[Any]:
        """A list of plain values."""
        items = list(_listed(value, parameter, legal(parameter)))
        for place, item in enumerate(items):
            if isinstance(item, str) and len(item) <= MAX_TEXT_CHARS:
                items[place] = plain_text(item, MAX_TEXT_CHARS)
            elif finite(item) is None:
                raise _wrong(f"must be {legal(parameter)}; {quoted(item)} is not")
        found: list[Any] = _valid(items, parameter)
        return found


_READERS: Mapping[Kind, Callable[[Reader, object, ParameterSpec], Any]] = {
    Kind.picture: Reader.image,
    Kind.pictures: Reader.images,
    Kind.box: Reader.box,
    Kind.point: Reader.point,
    Kind.points: Reader.points,
    Kind.x: Reader.x,
    Kind.y: Reader.y,
    Kind.label: Reader.label,
    Kind.text: Reader.text,
    Kind.number: Reader.value,
    Kind.integer: Reader.value,
    Kind.boolean: Reader.value,
    Kind.choice: Reader.value,
    Kind.values: Reader.values,
}


def finite(value: object) -> float | None:
    """A number as a float; None for anything that is none: truth values, NaN, infinities, beyond ±1e9."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before it is converted: a whole number may have thousands of digits. NaN fails every comparison.
    return float(value) if -MAX_NUMBER <= value <= MAX_NUMBER else None


def legal_ids(store: ImageStore) -> str:
    """Which ids there are, for messages."""
    ids = store.ids
    if not ids:
        return "there is none yet"
    return " or ".join(ids) if len(ids) <= 2 else f"{ids[0]} to {ids[-1]}"


def legal(parameter: ParameterSpec) -> str:
    """What a plain parameter may be, for messages."""
    schema = parameter.schema
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        item = _WORDS.get(schema["items"].get("type"), "value")
        return f"a list of {schema.get('minItems', 0)} to {schema.get('maxItems', MAX_ITEMS)} {item}s"
    name = _WORDS.get(schema.get("type", ""), "value")
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = [
        f"from {low:g}" if low is not None else "",
        f"above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else "",
        f"up to {high:g}" if high is not None else "",
        f"below {schema['exclusiveMaximum']:g}" if "exclusiveMaximum" in schema else "",
    ]
    return " ".join(["a", name, *(bound for bound in bounds if bound)])


_WORDS = {"number": "number", "integer": "whole number", "boolean": "truth value (true or false)", "string": "text"}
_FORMS: Mapping[Kind, str] = {
    Kind.picture: "id",
    Kind.pictures: "[id, ...]",
    Kind.box: "[x1, y1, x2, y2]",
    Kind.point: "[x, y]",
    Kind.points: "[[x, y], ...]",
    Kind.label: "text",
    Kind.text: "text",
    Kind.x: "number",
    Kind.y: "number",
}


def signature(spec: ToolSpec) -> str:
    """What a call of the tool looks like, for messages."""
    written = [
        f"{name} ({_FORMS.get(one.kind) or legal(one)}{'' if one.required else ', optional'})"
        for name, one in spec.parameters.items()
    ]
    return f"{spec.name} takes {', '.join(written) or 'no arguments'}."


def quoted(value: object) -> str:
    """What the model wrote, short and without control tokens; never walks through a deep or large value."""
    if isinstance(value, str):
        return f"'{plain_text(value[: 4 * _QUOTED_CHARS], _QUOTED_CHARS)}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length() * 3 // 10} digits"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        simple = len(value) <= 4 and all(isinstance(item, (int, float)) for item in value)
        return f"[{', '.join(quoted(item) for item in value)}]" if simple else f"a list of {len(value)} items"
    return "an object" if isinstance(value, Mapping) else "something else"


def quoted_numbers(numbers: tuple[float, ...]) -> str:
    """Numbers as they were written, short."""
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"


def _listed(value: object, parameter: ParameterSpec, form: str) -> list[Any]:
    low, high = int(parameter.schema.get("minItems", 0)), int(parameter.schema.get("maxItems", MAX_ITEMS))
    if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
        counted = form if form.startswith(f"a list of {low}") else f"{form} with {low} to {high} items"
        raise _wrong(f"must be {counted}, not {quoted(value)}")
    return list(value)


def _valid(value: object, parameter: ParameterSpec) -> Any:
    """The value as pydantic has it, strictly; raises `ToolError`."""
    assert parameter.checker is not None
    try:
        return parameter.checker.validate_python(value)
    except ValidationError:
        raise _wrong(f"must be {legal(parameter)}, not {quoted(value)}") from None


def _wrong(message: str) -> ToolError:
    return ToolError(message, CallError.bad_argument)
