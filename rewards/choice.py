"""Reward `choice`: the answer names the right option of a multiple-choice question, and only that one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.rewards.answer_text import short_answer
from mmreason.rewards.exact import normalise
from mmreason.scoring import reward

_MAX_CHOICES = 26
_LEAD_IN = re.compile(r"(?:the )?(?:(?:correct|right|best|final) )?(?:answer|option|choice)(?: is)?:? ", re.IGNORECASE)
_LABEL = re.compile(r"[(\[]?(?P<letter>[A-Za-z])[)\]]?[.:,]?(?: (?P<rest>.+))?")


def options_named(text: str, wordings: Sequence[str] = ()) -> frozenset[int]:
    """Which options a text names, as positions (0 for A): one, none, or all that share one wording.

    Read as a label: `B`, `(b)`, `B.`, `Option B`, `The answer is: B`, and, where the wordings are known,
    `B. blue cat` if that is the wording of B. Any other text must be the wording of an option, letter case and
    spacing aside. A label goes before a wording, and a text with two labels names nothing.
    """
    text = " ".join(text.split())
    known = [normalise(wording) for wording in wordings]
    body = text
    for _ in range(2):  # "The answer is", then "option"
        if lead_in := _LEAD_IN.match(body):
            body = body[lead_in.end() :]
    if label := _LABEL.fullmatch(body):
        position = ord(label["letter"].upper()) - ord("A")
        if label["rest"] is None and (not known or position < len(known)):
            return frozenset({position})
        if label["rest"] is not None and position < len(known) and normalise(label["rest"]) == known[position]:
            return frozenset({position})
    said = {normalise(text), normalise(body)}
    return frozenset(position for position, wording in enumerate(known) if wording in said)


@reward(range=(0.0, 1.0), source="multiple-choice accuracy, as in the reward of ViLaSR (arXiv 2506.09965)")
def choice(answer: str | None, target: Mapping[str, Any]) -> float | None:
    r"""1 if the answer names the right option and no other; else 0.

    Formula: `1[option named by the answer = option named by target["answer"]]`. The whole answer must be a
    label (`B`, `(b)`, `B.`, `Option B`, `\boxed{B}`), an option's wording, or both if they agree
    (`options_named`); labels are not searched for inside sentences, so listing all of them is worth 0. Values:
    0 and 1.

    Args:
        answer: the answer; `None` (no answer block), or one over 1000 characters, is worth 0.
        target: `{"answer": label or wording, "choices": [wording, ...]}`; `choices` may be absent, and then
            only labels are read.

    Returns:
        The reward; `None` if the target has no answer, or has no choices and its answer is no label.

    Raises:
        ValueError: `choices` is not a list of 1 to 26 wordings, or the right answer is none of them.
    """
    wanted = target.get("answer")
    wordings = target.get("choices") or ()
    if wanted is None:
        return None
    if not isinstance(wordings, (list, tuple)) or len(wordings) > _MAX_CHOICES:
        raise ValueError(f"target['choices'] must be a list of at most {_MAX_CHOICES} wordings, not {wordings!r:.80}")
    wordings = [str(wording) for wording in wordings]
    right = options_named(str(wanted), wordings)
    if not right:
        if wordings:
            raise ValueError(f"target['answer']={wanted!r:.80} is none of the {len(wordings)} choices")
        return None
    said = short_answer(answer)
    return 0.0 if said is None else float(not right.isdisjoint(options_named(said, wordings)))
