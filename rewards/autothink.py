"""Reward `autothink`: think where it helps, answer at once where it does not.

The formulas are in `mmreason.rewards.group_formulas`.

Shapes: N completions of the batch, over all processes.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mmreason.rewards.group_formulas import (
    AutoThinkBatch,
    FloatArray,
    autothink_balance,
    autothink_base,
    autothink_length,
    closes_at_once,
)
from mmreason.rewards.repetition import loops
from mmreason.scoring import RewardResult, batch_reward
from mmreason.text import split_tags

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Template = Literal["ellipsis", "tags"]

#: The length term of stage 3 is held within this; at its published rates groups under 200 never reach it.
_MAX_LENGTH_TERM = 1.0
_ONLY_DOTS = re.compile(r"[\s.…]*\Z")


def thinks(completion: str, template: Template) -> bool:
    """Whether a completion thinks before it answers, by the template of the prompt; see `autothink`."""
    if template == "ellipsis":
        return not closes_at_once(completion)
    thinking = [content for tag, content in split_tags(completion) if tag == "think"]
    return any(not _ONLY_DOTS.match(content) for content in thinking)


def _is_answered(completion: str, answer: str | None, template: Template) -> bool:
    """Whether the thinking is closed, if the prompt opened it, and there is an answer."""
    return bool(answer) and (template == "tags" or "</think>" in completion)


@batch_reward(range=(-3.0, 3.0), source="AutoThink (arXiv 2505.10832)")
def autothink(
    completion: list[str],
    answer: list[str | None],
    num_tokens: list[int],
    group: list[int],
    correct: list[bool | None],
    *,
    stage: Literal[1, 2, 3] = 1,
    template: Template = "ellipsis",
    target_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5,
    slope: Annotated[float, Field(ge=0.0)] = 2.0,
    right_rate: Rate = 0.05,
    wrong_rate: Rate = 0.05,
) -> list[RewardResult]:
    """A right answer without thinking is worth more, a wrong one costs more; the batch is kept from using one mode only.

    Formula: thinking 1 right, 0 wrong; not thinking 2 right, -1 wrong; 0 without an answer; -2 for text that loops. Then

    - stage 1, balance: with `z` the share of the whole batch that thinks, `d = clip((z - target_share) slope, 0, 1)`, a
      reward of thinking becomes `(1 - d) r + d r'` with `r'` 0 right and -1 wrong; in the same way with `1 - z` one of
      not thinking, with `r'` 1 right and -2 wrong;
    - stage 2, reinforce: nothing more;
    - stage 3, length: with `y` a length's distance from the mean of its group's right, or its wrong, completions, in
      sample standard deviations, `exp(-right_rate y) - 1` is added if right and `1 - exp(-wrong_rate y)` if wrong, held
      within -1..1.

    Train the stages one after the other: without the first, one mode dies out. Text that loops keeps its -2 and enters no
    mean. Range -2..2, in stage 3 -3..3.

    What counts as not thinking is told by the template of the prompt. `ellipsis`, as in the paper: the prompt ends with
    `<think>`, a line `...` and a new line, and the completion closes the thinking at once. `tags`: the completion writes the
    tags itself, and what stands between them is nothing but white space and dots. Thinking aloud after the thinking
    was closed is how this is fooled: look at the part `answer_at_once_chars`.

    Args:
        completion: all text the model wrote.
        answer: of each.
        num_tokens: lengths.
        group: number of each completion's prompt.
        correct: whether each is right (`reward.correct`).
        stage: 1, 2 or 3.
        template: how the prompt lets the model choose.
        target_share: share of thinking that stage 1 leaves alone.
        slope: how fast its correction grows; 0 switches it off.
        right_rate: the paper's alpha, of stage 3.
        wrong_rate: the paper's beta.

    Returns:
        N rewards, `None` where it cannot be told whether the completion is right, with the parts `thinks` (1 or 0) and
        `answer_at_once_chars`, the length in characters of a completion that does not think.
    """
    told = AutoThinkBatch(
        correct=np.array([bool(flag) for flag in correct]),
        thinks=np.array([thinks(text, template) for text in completion]),
        answered=np.array([_is_answered(*both, template) for both in zip(completion, answer, strict=True)]),
        degenerate=np.array([loops(text) for text in completion]),
    )
    base = autothink_base(told)
    rewards: FloatArray = base
    if stage == 1:
        rewards = autothink_balance(base, told, target_share=target_share, slope=slope)
    elif stage == 3:
        rates = {"right_rate": right_rate, "wrong_rate": wrong_rate}
        with np.errstate(over="ignore"):
            changed = autothink_length(base, told, np.array(num_tokens), np.array(group), **rates)
        rewards = base + np.clip(changed - base, -_MAX_LENGTH_TERM, _MAX_LENGTH_TERM)
    return [
        RewardResult(None if flag is None else float(value), _parts(bool(mode), text))
        for flag, value, mode, text in zip(correct, rewards, told.thinks, completion, strict=True)
    ]


def _parts(mode: bool, completion: str) -> dict[str, float]:
    return {"thinks": 1.0} if mode else {"thinks": 0.0, "answer_at_once_chars": float(len(completion))}
