r"""Reward `format`: the completion has the asked blocks, in order, and nothing else."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from mmreason.rewards.answer_text import boxed_contents
from mmreason.scoring import reward
from mmreason.text import MAX_TEXT_CHARS, matches_structure

Tag = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]

#: Not a tag: the place of free text with one `\boxed{...}`.
BOXED = "boxed"
_EMPTY_BLOCK = re.compile(r"<([A-Za-z][A-Za-z0-9_-]*)>\s*</\1>")


def _boxed_comes_last(tags: tuple[str, ...]) -> tuple[str, ...]:
    if BOXED in tags[:-1]:
        raise ValueError(f"'{BOXED}' stands for the text after all the blocks, so it comes last")
    return tags


Tags = Annotated[tuple[Tag, ...], Field(min_length=1, max_length=16), AfterValidator(_boxed_comes_last)]


def has_structure(text: str, tags: tuple[str, ...], *, allow_empty: bool = True) -> bool:
    r"""True if the text is exactly one block of each tag, in order, with only white space around.

    A tag may be asked for several times; none may appear anywhere else. `boxed` in the last place stands for
    free text with exactly one `\boxed{...}`, not empty, and none of the tags. Text over `MAX_TEXT_CHARS` has no
    structure.

    Args:
        text: any text.
        tags: names of the blocks, in order.
        allow_empty: whether blocks may hold nothing but white space.
    """
    if len(text) > MAX_TEXT_CHARS:
        return False
    blocks = tags
    if tags[-1] == BOXED:
        blocks = tags[:-1]
        end = text.rfind(f"</{blocks[-1]}>") + len(f"</{blocks[-1]}>") if blocks else 0
        text, tail = text[:end], text[end:]
        if any(f"<{tag}>" in tail or f"</{tag}>" in tail for tag in blocks):
            return False
        boxes = boxed_contents(tail)
        if len(boxes) != 1 or not boxes[0]:
            return False
    if blocks and not matches_structure(text, blocks):
        return False
    return allow_empty or not any(block[1] in blocks for block in _EMPTY_BLOCK.finditer(text))


@reward(
    name="format", range=(0.0, 1.0), source="format reward of DeepSeek-R1 (arXiv 2501.12948); boxed: PAPO (2507.06448)"
)
def format_reward(completion: str, *, tags: Tags = ("think", "answer"), allow_empty: bool = True) -> float:
    r"""1 if the completion is exactly one block of each tag, in order; else 0.

    Formula: 1 for `<think>...</think> <answer>...</answer>` over the whole text, with only white space
    before, between and after the blocks, and none of the tags anywhere else (not nested, not repeated, not
    quoted); else 0. Values: 0 and 1.

    One definition serves every form: `[think, answer]`, `[info, think, answer]` (Visionary-R1),
    `[think, class, extension]` (TimeMaster), `[think, boxed]` (PAPO: thinking, then text with exactly one
    `\boxed{...}`), `[boxed]`.

    Args:
        completion: all text the model wrote.
        tags: names of the blocks, in order; `boxed` may be the last.
        allow_empty: whether a block may hold nothing but white space.
    """
    return float(has_structure(completion, tags, allow_empty=allow_empty))
