"""Reward `language`: the completion is written in the asked scripts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from mmreason.scoring import reward
from mmreason.text import split_tags

Script = Literal[
    "latin", "cyrillic", "greek", "han", "hiragana", "katakana", "hangul", "arabic", "hebrew", "devanagari", "thai"
]
Part = Literal["completion", "thinking", "answer"]

#: How Unicode names the letters of a script; Chinese characters are "CJK UNIFIED IDEOGRAPH-4E00".
_WORD_IN_NAME = {"han": "CJK"}


@lru_cache(maxsize=65_536)
def script_of(letter: str) -> str | None:
    """The script of a letter in the words of Unicode, such as `LATIN`, `CJK` or `TAMIL`.

    Returns:
        The script; `None` for what is no letter, and for letters of every script, such as mathematical ones.
    """
    if not unicodedata.category(letter).startswith("L"):
        return None
    words = unicodedata.name(letter, "UNKNOWN").split()
    script = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return None if script in ("MATHEMATICAL", "MODIFIER", "DOUBLE-STRUCK", "SCRIPT") else script


def part_of(completion: str, part: Part) -> str:
    """The thinking, the answers, or all of a completion, without the tags."""
    tags = {"thinking": "think", "answer": "answer"}
    return " ".join(text for tag, text in split_tags(completion) if part == "completion" or tag == tags[part])


@reward(
    range=(0.0, 1.0),
    source="language consistency reward of DeepSeek-R1 (arXiv 2501.12948), by the script of letters instead of words",
)
def language(
    completion: str,
    *,
    scripts: Annotated[tuple[Script, ...], Field(min_length=1)] = ("latin",),
    part: Part = "completion",
) -> float:
    """Share of letters that belong to the asked scripts.

    Formula: `letters of the scripts / letters`, 0 without any letter. Digits, punctuation, tags and
    mathematical letters do not count. No model is asked: English and French are both `latin`; Japanese is `[han,
    hiragana, katakana]`, and `greek` may be added for formulas. Range 0..1.

    Args:
        completion: all text the model wrote.
        scripts: the scripts that are right.
        part: which part is looked at: all of it, the thinking, or the answers.
    """
    wanted = {_WORD_IN_NAME.get(script, script.upper()) for script in scripts}
    found: Counter[str] = Counter()
    for letter, count in Counter(part_of(completion, part)).items():
        if (script := script_of(letter)) is not None:
            found[script] += count
    return sum(found[script] for script in wanted) / found.total() if found else 0.0
