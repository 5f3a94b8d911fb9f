"""Reward `caption_critic`: the answer names the one phrase of a caption that was falsified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from mmreason.scoring import reward

#: Punctuation that a word may carry outside; signs with a meaning of their own (`$`, `%`, `#`, `+`) stay.
_OUTER_PUNCTUATION = ".,;:!?\"'`()[]{}<>*_~“”„‘’«»…–—-"


def words_of(text: str) -> list[str]:
    """Words in folded case without outer punctuation: `'The  "Red" car.'` is `["the", "red", "car"]`."""
    stripped = (word.strip(_OUTER_PUNCTUATION) for word in text.casefold().split())
    return [word for word in stripped if word]


def changed_part(changed: Sequence[str], original: Sequence[str]) -> tuple[int, int]:
    """Where `changed` differs from `original`, as `(start, end)` in its words; all of it if it only lost words."""
    limit = min(len(changed), len(original))
    start = 0
    while start < limit and changed[start] == original[start]:
        start += 1
    tail = 0
    while tail < limit - start and changed[-1 - tail] == original[-1 - tail]:
        tail += 1
    return (start, len(changed) - tail) if start < len(changed) - tail else (0, len(changed))


def occurrences(phrase: Sequence[str], words: Sequence[str]) -> list[int]:
    """Indices of `words` at which `phrase` begins."""
    size = len(phrase)
    return [start for start in range(len(words) - size + 1) if list(words[start : start + size]) == list(phrase)]


@reward(range=(0.0, 1.0), source="span reward of ViCrit (arXiv 2506.10128), here with a limit on extra words")
def caption_critic(
    target: Mapping[str, Any],
    answer: str | None,
    *,
    strict: bool = False,
    max_extra_words: Annotated[int, Field(ge=0)] = 3,
) -> float | None:
    """1 if the answer is the falsified phrase of the caption, give or take a few words around it; else 0.

    Formula: texts are compared word by word, in folded case and without outer punctuation. With S words in the
    falsified phrase and C in the caption, the answer is right if

    - it is copied word for word from the caption, in one piece,
    - that piece covers every word in which the falsified phrase differs from the original one, at its place,
    - it has at most `S + min(max_extra_words, (C - S) // 2)` words, so that copying the caption fails, however
      short the caption is.

    With `strict`, only the falsified phrase itself is right. No partial credit. Values: 0 and 1.

    Args:
        target: `{"caption": falsified caption, "span": falsified phrase in it, "original_span": what stood there}`;
            without `original_span`, all words of the phrase count as different.
        answer: the answer.
        strict: the answer must equal the phrase.
        max_extra_words: words that the answer may have beyond the phrase.

    Returns:
        The reward; `None` if the target has no caption with a phrase.

    Raises:
        ValueError: the phrase does not stand in the caption, or is the original one.
    """
    if target.get("caption") is None or target.get("span") is None:
        return None
    caption, span = words_of(str(target["caption"])), words_of(str(target["span"]))
    places = occurrences(span, caption) if span else []
    if not places:
        raise ValueError(f"target.span {target['span']!r:.80} does not stand in target.caption")
    original = target.get("original_span")
    if original is not None and str(original) == str(target["span"]):
        raise ValueError(f"target.span and target.original_span are the same: {original!r:.80}")
    given = words_of(answer or "")
    if strict or given == span:
        return float(given == span)
    if len(given) > len(span) + min(max_extra_words, (len(caption) - len(span)) // 2):
        return 0.0
    start, end = changed_part(span, words_of("" if original is None else str(original)))
    covered = [(place + start, place + end) for place in places]
    copies = [(first, first + len(given)) for first in occurrences(given, caption)]
    return float(any(first <= start and end <= last for first, last in copies for start, end in covered))
