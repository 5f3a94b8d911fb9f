"""Reward `repetition`: a fine for saying the same again and again; and the detector of loops for other rewards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from mmreason.scoring import reward

#: Text beyond this is not looked at.
_MAX_CHARS = 100_000
# A character of a script without spaces, a piece of at most 32 letters, or a run of signs. Cut into pieces, a word
# without end repeats itself.
_PIECE = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,32}|[^\w\s]{1,32}")
_LONG_WORD = re.compile(r"\S{120}")


def pieces_of(text: str) -> list[str]:
    """The words and signs of the first 100,000 characters, in lower case."""
    return _PIECE.findall(text[:_MAX_CHARS].lower())


def ngram_counts(pieces: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each run of `size` pieces occurs; empty if there are fewer pieces."""
    return Counter(zip(*(pieces[start:] for start in range(size)), strict=False))


@reward(range=(-1.0, 0.0), source="repetition reward of VLM-R1 (arXiv 2504.07615); form of arXiv 2502.03373, C.2")
def repetition(completion: str, *, ngram: Annotated[int, Field(ge=1, le=100)] = 6) -> float:
    """Minus the share of n-grams that were there before.

    Formula: `-(1 - distinct / all)` over runs of `ngram` words and signs, letter case aside; 0 for a text with
    fewer. Characters of scripts without spaces count as words, and words over 32 letters as several. Only the
    first 100,000 characters count. Range -1..0.

    Args:
        completion: all text the model wrote.
        ngram: length of the runs.
    """
    counts = ngram_counts(pieces_of(completion), ngram)
    return -(1.0 - len(counts) / counts.total()) if counts else 0.0


def loops(text: str, *, min_words: int = 1, max_words: int = 30, times: int = 10) -> bool:
    """Whether a text repeats itself word by word, or has a word without end.

    Defaults are AutoThink's degenerate text (arXiv 2505.10832): a run of at most 30 words 10 times in a row, or a
    word of 120 characters. `min_words=4, times=3` is a guard for LASER-DE (arXiv 2505.15612). Only the first
    100,000 characters are looked at; linear in them.

    Args:
        text: any text.
        min_words: shortest run that counts.
        max_words: longest run that counts.
        times: how often it must stand in a row.
    """
    if _LONG_WORD.search(text[:_MAX_CHARS]):
        return True
    words = text[:_MAX_CHARS].split()
    numbers: dict[str, int] = {}
    numbered = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    for period in range(min_words, min(max_words, len(words) // times) + 1):
        same = np.concatenate(([False], numbered[period:] == numbered[:-period], [False]))
        borders = np.flatnonzero(same[1:] != same[:-1])
        longest = int((borders[1::2] - borders[::2]).max(initial=0))
        if longest >= period * (times - 1):
            return True
    return False
