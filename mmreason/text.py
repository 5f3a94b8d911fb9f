"""The tags in model text: `<think>` for the thinking, `<answer>` for the answer.

Enters: any text a model wrote, however hostile. Leaves: its segments, its answer, or whether it has exactly
the asked structure. Nothing here raises on any text; everything is linear in its length and capped.

How tags are read, from left to right:

- thinking runs from `<think>` to the next `</think>`, or to the end; tags inside it are ordinary text;
- a `</think>` before any `<think>` closes thinking that the *prompt* opened: all before it is thinking;
- an answer runs from `<answer>` to the next `</answer>` outside the thinking; a second `<answer>` before that
  starts over, and a thinking tag abandons it;
- tags are matched exactly (lower case, no attributes); any other stray tag is ordinary text.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Longer text is treated as having no tags at all.
MAX_TEXT_CHARS = 500_000

#: `(tag, content)`; the tag is None for text outside every block.
Segment = tuple[str | None, str]


@lru_cache(maxsize=64)
def _tag_pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("<(/?)(" + "|".join(re.escape(tag) for tag in tags) + ")>")


def split_tags(text: str) -> list[Segment]:
    """Cut text into thinking, complete answers and the rest, in order; see the module's rules.

    Returns:
        Segments such as `[("think", "a red one"), (None, "\\n"), ("answer", "[1, 2, 3, 4]")]`, tags removed,
        empty text outside blocks left out. Text over `MAX_TEXT_CHARS` is one segment without a tag.
    """
    return [(tag, text[start:end]) for tag, start, end in tag_spans(text)]


def tag_spans(text: str) -> list[tuple[str | None, int, int]]:
    """Where the segments of `split_tags` lie: `(tag, start, end)`; what lies between them is tags."""
    if len(text) > MAX_TEXT_CHARS:
        return [(None, 0, len(text))]
    tokens = list(_tag_pattern(("think", "answer")).finditer(text))
    first_thinking_tag = next((token[0] for token in tokens if token[2] == "think"), None)
    inside: str | None = "think" if first_thinking_tag == "</think>" else None
    start = 0
    spans: list[tuple[str | None, int, int]] = []

    def close(end: int, tag: str | None) -> None:
        if tag is not None or end > start:
            spans.append((tag, start, end))

    for token in tokens:
        tag = token[0]
        if inside == "think" and tag != "</think>":
            continue
        if tag == "</think>" and inside != "think":
            inside = None  # a stray one: ordinary text, but no answer may span it
        elif tag == "</answer>" and inside != "answer":
            continue
        else:
            closes = tag.startswith("</")
            close(token.start(), token[2] if closes else None)
            start, inside = token.end(), None if closes else token[2]
    close(len(text), "think" if inside == "think" else None)
    return spans


def extract_answer(text: str) -> str | None:
    """The content of the last complete `<answer>` block outside the thinking, white space trimmed.

    Returns:
        The answer, possibly empty; None if there is no complete block or the text exceeds `MAX_TEXT_CHARS`.
    """
    answers = [content for tag, content in split_tags(text) if tag == "answer"]
    return answers[-1].strip() if answers else None


def matches_structure(text: str, tags: tuple[str, ...] = ("think", "answer")) -> bool:
    """True if the text is exactly one block of each tag, in this order, with nothing but white space around.

    Blocks may be empty; none of the tags may appear anywhere else, so nothing is nested, repeated or quoted.
    """
    if len(text) > MAX_TEXT_CHARS:
        return False
    wanted = [mark + tag for tag in tags for mark in ("", "/")]
    position = 0
    matches = 0
    for match in _tag_pattern(tags).finditer(text):
        if matches == len(wanted) or match[1] + match[2] != wanted[matches]:
            return False
        outside = match[1] == ""
        if outside and text[position : match.start()].strip():
            return False
        position = match.end()
        matches += 1
    return matches == len(wanted) and not text[position:].strip()
