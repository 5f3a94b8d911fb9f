"""Reward `edit_similarity`: ANLS, how few letters of the answer must be changed to get the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from rapidfuzz.distance import Levenshtein

from mmreason.scoring import reward

_MAX_TARGET_CHARS = 4_000
#: A longer answer shares at most a tenth of its letters with any target.
_MAX_ANSWER_CHARS = 10 * _MAX_TARGET_CHARS


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@reward(range=(0.0, 1.0), source="ANLS of ST-VQA (arXiv 1905.13648)")
def edit_similarity(
    answer: str | None, target: Mapping[str, Any], *, threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
) -> float | None:
    """Average normalised Levenshtein similarity (ANLS) of the answer and the most similar reference.

    Formula: with `s = 1 - distance / max(length)` over letters, case folded and white space collapsed, the
    reward is `s` if `s > threshold`, else 0; the best over the references. An answer that adds a second
    candidate, or repeats the right one, is longer and so loses. Range 0..1.

    Args:
        answer: the answer; `None` (no answer block) is worth 0.
        target: `{"answers": [text, ...]}`, else `{"answer": text or number}`; texts of at most 4,000 letters.
        threshold: a similarity up to this is worth 0.

    Returns:
        The reward; `None` if the target has neither key.

    Raises:
        ValueError: a reference is too long.
    """
    wanted = target.get("answers", target.get("answer"))
    if wanted is None:
        return None
    references = [_plain(str(text)) for text in (wanted if isinstance(wanted, (list, tuple)) else [wanted])]
    if not references:
        return None
    if any(len(reference) > _MAX_TARGET_CHARS for reference in references):
        raise ValueError(f"edit_similarity compares with texts of at most {_MAX_TARGET_CHARS} characters")
    if answer is None or len(answer) > _MAX_ANSWER_CHARS:
        return 0.0
    given = _plain(answer)
    best = max(Levenshtein.normalized_similarity(given, reference) for reference in references)
    return best if best > threshold else 0.0
