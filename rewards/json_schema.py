"""Reward `json_schema`: the answer is JSON of the asked shape."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmreason.scoring import reward

_MAX_ANSWER_CHARS = 100_000
_MAX_DEPTH = 32
_MAX_SCHEMA_CHARS = 20_000

Type = Literal["object", "array", "string", "number", "integer", "boolean", "null"]
Count = Annotated[int, Field(ge=0)]

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<inside>.*)\n[ \t]*```", re.DOTALL)
# A string with its escapes, or a bracket; the string may lack its end.
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Schema(BaseModel):
    """The part of JSON Schema that is understood; any other keyword is refused, `$ref` and `pattern` among them.

    Attributes are the keywords of JSON Schema (2020-12) of the same name, in snake case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: Type | tuple[Type, ...] | None = None
    enum: tuple[Any, ...] | None = None
    const: Any = None
    properties: dict[str, Schema] = Field(default_factory=dict)
    required: tuple[str, ...] = ()
    additional_properties: bool | Schema = Field(True, alias="additionalProperties")
    items: Schema | None = None
    min_items: Count = Field(0, alias="minItems")
    max_items: Count | None = Field(None, alias="maxItems")
    min_length: Count = Field(0, alias="minLength")
    max_length: Count | None = Field(None, alias="maxLength")
    minimum: float | None = None
    maximum: float | None = None
    title: str = ""
    description: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether a parsed JSON value fits; at most `_MAX_DEPTH` deep, as the value is."""
        kinds = _kinds(value)
        if self.type is not None and kinds.isdisjoint((self.type,) if isinstance(self.type, str) else self.type):
            return False
        if self.enum is not None and not any(_equal(value, allowed) for allowed in self.enum):
            return False
        if "const" in self.model_fields_set and not _equal(value, self.const):
            return False
        if isinstance(value, dict):
            return self._accepts_object(value)
        if isinstance(value, list):
            fits = self.items is None or all(self.items.accepts(item) for item in value)
            return fits and self.min_items <= len(value) <= _or_infinite(self.max_items)
        if isinstance(value, str):
            return self.min_length <= len(value) <= _or_infinite(self.max_length)
        if "number" in kinds:
            low = -math.inf if self.minimum is None else self.minimum
            return bool(low <= value <= _or_infinite(self.maximum))
        return True

    def _accepts_object(self, value: Mapping[str, Any]) -> bool:
        if any(name not in value for name in self.required):
            return False
        for name, item in value.items():
            rule = self.properties.get(name, self.additional_properties)
            if rule is False or (isinstance(rule, Schema) and not rule.accepts(item)):
                return False
        return True


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _kinds(value: Any) -> frozenset[str]:
    """JSON types of a value: 3 and 3.0 are both integer and number, true is neither."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, (int, float)):
        return frozenset({"number", "integer"} if value == int(value) else {"number"})
    names: Mapping[type, str] = {dict: "object", list: "array", str: "string", type(None): "null"}
    return frozenset({names[type(value)]})


def _equal(value: Any, other: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(item, other[key]) for key, item in value.items())
    return bool(value == other)


def parse_json(text: str) -> tuple[bool, Any]:
    """Read strict JSON, bare or in one code fence.

    Returns:
        `(True, value)`, or `(False, None)` where it is no JSON, is over 100,000 characters or 32 levels deep,
        repeats a key, or holds a number that is not finite.
    """
    text = text.strip()
    if len(text) > _MAX_ANSWER_CHARS:
        return False, None
    if fenced := _FENCE.fullmatch(text):
        text = fenced["inside"]
    if _depth(text) > _MAX_DEPTH:
        return False, None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite, parse_int=_finite_integer
        )
    except ValueError:
        return False, None
    return True, value


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _STRINGS_AND_BRACKETS.finditer(text):
        if token[0][0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0][0] in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _finite_integer(digits: str) -> int:
    _finite(digits)
    return int(digits)


@lru_cache(maxsize=256)
def read_schema(text: str) -> Schema:
    """Read a schema; raises `ValueError` saying what is wrong with it, or that it is too large."""
    if len(text) > _MAX_SCHEMA_CHARS or _depth(text) > _MAX_DEPTH:
        raise ValueError(f"a JSON schema may have {_MAX_SCHEMA_CHARS} characters and {_MAX_DEPTH} levels at most")
    try:
        return Schema.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:3])
        raise ValueError(f"the JSON schema cannot be used: {problems}") from None


@reward(range=(0.0, 1.0), source="JSON Schema 2020-12, the subset that cannot fetch, loop or backtrack")
def json_schema(answer: str | None, target: Mapping[str, Any], *, shape: str = "") -> float | None:
    """1 if the answer is strict JSON, bare or in one code fence, that fits the schema; else 0.

    Formula: `1[answer parses and fits]`. Understood are `type`, `enum`, `const`, `properties`, `required`,
    `additionalProperties`, `items`, `minItems`, `maxItems`, `minLength`, `maxLength`, `minimum` and `maximum`;
    a schema with any other keyword is refused. Answers over 100,000 characters or 32 levels, repeated keys, NaN
    and infinite numbers do not fit anything. Values: 0 and 1.

    Args:
        answer: the answer; `None` (no answer block) is worth 0.
        target: `{"schema": {...}}`; it goes before `shape`.
        shape: the schema as JSON text, for rows that have none.

    Returns:
        The reward; `None` if there is no schema.

    Raises:
        ValueError: the schema is wrong or too large.
    """
    given = target.get("schema")
    text = shape if given is None else json.dumps(given)
    if not text:
        return None
    schema = read_schema(text)
    if answer is None:
        return 0.0
    is_json, value = parse_json(answer)
    return float(is_json and schema.accepts(value))
