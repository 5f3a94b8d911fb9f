"""Reward `yes_no`: the answer says yes or no, and rightly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmreason.rewards.answer_text import short_answer
from mmreason.scoring import reward

_WORDS = re.compile(r"\w+")
_MEANING = {"yes": True, "true": True, "no": False, "false": False}


def yes_or_no(text: str) -> bool | None:
    """True for yes, False for no, None for neither or both.

    The first word must be yes, true, no or false, and none of the opposite ones may follow: `Yes, it is.` is
    yes, `Not known` and `yes or no` are nothing.
    """
    words = _WORDS.findall(text.casefold())
    said = {_MEANING[word] for word in words if word in _MEANING}
    return _MEANING[words[0]] if words and words[0] in _MEANING and len(said) == 1 else None


@reward(range=(0.0, 1.0), source="yes/no accuracy of POPE (arXiv 2305.10355)")
def yes_no(answer: str | None, target: Mapping[str, Any]) -> float | None:
    r"""1 if the answer starts with the right one of yes and no and does not also say the other; else 0.

    Formula: `1[yes_or_no(answer) = yes_or_no(target["answer"])]`; `true` and `false` count as yes and no, and
    a single `\boxed{}` is opened. Values: 0 and 1.

    Args:
        answer: the answer; `None` (no answer block), or one over 1000 characters, is worth 0.
        target: `{"answer": "yes" or "no", or true or false}`.

    Returns:
        The reward; `None` if the target's answer is neither yes nor no.
    """
    wanted = target.get("answer")
    right = yes_or_no(str(wanted)) if isinstance(wanted, (str, bool)) else None
    if right is None:
        return None
    said = short_answer(answer)
    return float(said is not None and yes_or_no(said) is right)
