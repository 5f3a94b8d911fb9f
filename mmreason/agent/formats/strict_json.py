"""JSON that a model wrote, read strictly and within limits.

What enters: hostile text of one call. What leaves: plain values, or a `BadJson` whose message tells the model what to mend. Linear in the text,
which may not be long; nothing is evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mmreason.text import without_control_tokens

#: Characters of one call; longer ones are refused unread.
MAX_CALL_CHARS = 8192
MAX_DEPTH = 8
#: JSON objects in one call.
MAX_OBJECTS = 32
#: Larger numbers are refused: they are no coordinates, and not all fit a float.
MAX_NUMBER = 1e15
_MAX_SHOWN = 40

# The closing quote is optional, so that a text that never closes is one match and not one for each of its quotes.
_DOUBLE = r'"(?:[^"\\]|\\.)*+"?'
_SINGLE = r"'(?:[^'\\]|\\.)*+'?"
_SHAPE = re.compile(rf"{_DOUBLE}|[\[\]{{}}]", re.DOTALL)
_MENDED = re.compile(rf"{_DOUBLE}|(?P<single>{_SINGLE})|(?P<comma>,)(?=[ \t\r\n]{{0,64}}[\]}}])", re.DOTALL)
_IN_SINGLE = re.compile(r"""\\'|\\.|\"""", re.DOTALL)


class BadJson(ValueError):
    """The text is not the JSON that was asked for; the message is short and for the model."""


def read_json(text: str, strict: bool = True) -> Any:
    """The value that a text is.

    Args:
        text: one JSON value, and white space around it.
        strict: standard JSON only. Otherwise single quotes and a comma before a closing bracket are mended first.

    Raises:
        BadJson: it is too long, too deep, has too many objects, is not JSON, names a key twice, or holds NaN, Infinity, a huge
            number or half a character. Nothing else.
    """
    if len(text) > MAX_CALL_CHARS:
        raise BadJson(f"a call may have {MAX_CALL_CHARS} characters, not {len(text)}")
    if not strict:
        text = _MENDED.sub(_mend, text)
    _check_shape(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_real
        )
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg} at character {error.pos}") from None
    _check_texts(value)
    return value


def write_json(value: Any) -> str:
    """JSON in one line that no tag or fence around it can be confused with.

    Raises:
        ValueError, TypeError: the value is not JSON: NaN, a picture, a set.
    """
    # Neither character occurs in JSON outside of texts, and inside one the escape means the same.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c").replace("`", "\\u0060")


def shown(text: object) -> str:
    """A piece of what the model wrote, short and harmless, to be quoted in an error."""
    line = " ".join(without_control_tokens(str(text)[: 4 * _MAX_SHOWN]).split())
    return f"'{line}'" if len(line) <= _MAX_SHOWN else f"'{line[:_MAX_SHOWN]}…'"


def _check_shape(text: str) -> None:
    """Depth and number of objects, before a parser that calls itself sees the text."""
    depth = objects = 0
    for piece in _SHAPE.finditer(text):
        mark = piece[0]
        if mark in "[{":
            depth += 1
            objects += mark == "{"
        elif mark in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise BadJson(f"brackets may be nested {MAX_DEPTH} deep")
        if objects > MAX_OBJECTS:
            raise BadJson(f"a call may hold {MAX_OBJECTS} objects")


def _mend(match: re.Match[str]) -> str:
    if match["comma"] is not None:
        return ""
    quoted = match["single"]
    if quoted is None or len(quoted) < 2 or not quoted.endswith("'"):
        return match[0]
    return f'"{_IN_SINGLE.sub(_requote, quoted[1:-1])}"'


def _requote(match: re.Match[str]) -> str:
    """Inside single quotes, as inside double ones: a quote of its own kind needs no backslash, the other kind does."""
    return {"\\'": "'", '"': '\\"'}.get(match[0], match[0])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadJson(f"key {shown(twice)} is given twice")
    return found


def _constant(name: str) -> Any:
    raise BadJson(f"{name} is not a number that can be used")


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_NUMBER:
        raise BadJson(f"number {shown(digits)} is too large")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number) or abs(number) > MAX_NUMBER:
        raise BadJson(f"number {shown(digits)} is too large")
    return number


def _check_texts(value: Any) -> None:
    """`"\\ud800"` is legal JSON and no text: it could not be encoded again."""
    for text in _texts(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadJson(f"text {shown(text)} holds half a character") from None


def _texts(value: Any) -> Iterator[str]:
    """All texts and keys in a value; it is at most `MAX_DEPTH` deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
