"""Texts and numbers of records, read without trusting that they are any: small pieces that all parts of a report share.

What enters: values from files that may come from anywhere. What leaves: finite numbers, short texts, completions cut into their parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmreason.text import tag_spans

#: True boxes, messages, reward parts and arguments shown; a real row has a handful.
MAX_ITEMS = 100

#: `(kind, text)`: `think`, `answer`, `text`, `tag`, or `cut` for what is left out.
Segment = tuple[str, str]


def segments_of(completion: str) -> list[Segment]:
    """Cut a completion into `(kind, text)`, kind `think`, `answer`, `text` or `tag`; the texts join to it."""
    found: list[Segment] = []
    position = 0
    for kind, start, end in tag_spans(completion):
        found += [("tag", completion[position:start]), (kind or "text", completion[start:end])]
        position = end
    found.append(("tag", completion[position:]))
    return [segment for segment in found if segment[1]]


def cut_middle(segments: Sequence[Segment], max_chars: int) -> list[Segment]:
    """Leave out the middle of an overlong completion: its start and its end, where the answer is, stay."""
    total = sum(len(text) for _, text in segments)
    if total <= max_chars:
        return list(segments)
    head, tail = max_chars * 2 // 3, total - (max_chars - max_chars * 2 // 3)
    kept: list[Segment] = []
    position = 0
    for kind, text in segments:
        before = text[: max(0, head - position)]
        after = text[max(0, tail - position) :]
        if before:
            kept.append((kind, before))
        if position <= head < position + len(text):
            kept.append(("cut", f" […{tail - head:,} characters not shown…] "))
        if after:
            kept.append((kind, after))
        position += len(text)
    return kept


def number(value: object) -> float | None:
    """A finite number, or `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def shorten(text: str, max_chars: int) -> str:
    """The text, cut with an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def items(value: object) -> list[Any]:
    """The items of a list, none for anything else."""
    return list(value) if isinstance(value, (list, tuple)) else []
