"""Reward `set_match`: the answer lists the right items, in any order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmreason.rewards.exact import normalise
from mmreason.scoring import reward

_SEPARATORS = re.compile("[,;]")


def items_of(texts: Iterable[str]) -> Counter[str]:
    """Count the comma- or semicolon-separated items of texts, normalised as in `exact`; none is empty."""
    items: Counter[str] = Counter()
    # Counted before they are normalised: half a million commas are one part.
    for part, count in Counter(part for text in texts for part in _SEPARATORS.split(text)).items():
        if item := normalise(part):
            items[item] += count
    return items


@reward(range=(0.0, 1.0), source="F1 of listed items, as in the set metrics of SQuAD (arXiv 1606.05250)")
def set_match(answer: str | None, target: Mapping[str, Any]) -> float | None:
    """F1 of the items listed in the answer against the wanted ones, order aside.

    Formula: answer and target are split at commas and semicolons and normalised (case, white space, one
    trailing period); with `c` the size of the multiset intersection, P items given and T wanted, the reward
    is `2 c / (P + T)`. Repeating an item, or listing more than is there, lowers it. Range 0..1.

    Args:
        answer: the answer; `None` (no answer block) is worth 0.
        target: `{"items": [text, ...]}`, else a comma-separated `"answer"` or `"caption"`, in this order.

    Returns:
        The reward; 1 if nothing is wanted and an empty answer is given; `None` if the target has none of the
        keys.
    """
    wanted = target.get("items", target.get("answer", target.get("caption")))
    if wanted is None:
        return None
    right = items_of([str(item) for item in wanted] if isinstance(wanted, (list, tuple)) else [str(wanted)])
    if answer is None:
        return 0.0
    given = items_of([answer])
    size = given.total() + right.total()
    return 2.0 * (given & right).total() / size if size else 1.0
