"""Reward `exact`: the answer is the right one, letter case and spacing aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.scoring import reward


def normalise(text: str) -> str:
    """Fold case, collapse white space, drop one trailing period: `" A  Red Cat. "` is `"a red cat"`."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


@reward(range=(0.0, 1.0), source="accuracy reward of DeepSeek-R1 (arXiv 2501.12948), string form")
def exact(answer: str | None, target: Mapping[str, Any]) -> float | None:
    """1 if the normalised answer equals the normalised target; else 0.

    Formula: `1[normalise(answer) = normalise(target["answer"])]`, where `normalise` folds case, collapses
    white space and drops one trailing period. The whole answer is compared: listing several candidates, or
    the right one inside the thinking, is worth 0. Values: 0 and 1.

    Args:
        answer: the answer; `None` (no answer block) is worth 0.
        target: `{"answer": text or number}`.

    Returns:
        The reward; `None` if the target has no answer.
    """
    wanted = target.get("answer")
    if wanted is None:
        return None
    return float(answer is not None and normalise(answer) == normalise(str(wanted)))
