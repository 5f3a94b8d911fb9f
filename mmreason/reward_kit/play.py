"""A pretended agent for `mmreason reward check`: the turns that a completion would make, without any tool.

What enters: a completion. What leaves: its `Turn`s. Every `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` outside
of other calls is a call; it fails unless it is such an object, returns one picture, and shows the pages that its
argument `pages` lists. Linear in the text. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mmreason.records import Turn

_TAG = re.compile(r"</?tool_call>")
_MAX_CALLS = 64
_MAX_CALL_CHARS = 10_000


def played(text: str) -> tuple[Turn, ...]:
    """The turns of a completion: one a call, and one for what follows the last; none for a text without calls."""
    turns = list(_calls(text))
    return (*turns, Turn(text[sum(len(turn.text) for turn in turns) :])) if turns else ()


def _calls(text: str) -> Iterator[Turn]:
    begin, start = 0, None
    made = 0
    for tag in _TAG.finditer(text):
        if tag[0] == "<tool_call>":
            start = tag.end()
        elif start is not None and made < _MAX_CALLS:
            yield _turn(text[begin : tag.end()], text[start : tag.start()])
            begin, start, made = tag.end(), None, made + 1


def _turn(text: str, call: str) -> Turn:
    try:
        parsed: Any = json.loads(call) if len(call) <= _MAX_CALL_CHARS else None
    except (ValueError, RecursionError):
        parsed = None
    name = parsed.get("name") if isinstance(parsed, dict) else None
    arguments = parsed.get("arguments", {}) if isinstance(parsed, dict) else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Turn(text, name if isinstance(name, str) else "", {}, ok=False)
    pages = arguments.get("pages", [])
    shown = tuple(page for page in pages if isinstance(page, str)) if isinstance(pages, list) else ()
    return Turn(text, name, arguments, num_images=1, shown=shown)
