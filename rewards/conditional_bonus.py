"""Reward `conditional_bonus`: an agent's right answer is worth more if a tool's picture helped to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from mmreason.rewards import tool_formulas
from mmreason.rewards.tool_calls import Graded, Turns, graded, num_with_image, well_formed, where_told
from mmreason.scoring import group_reward


@group_reward(range=(-0.2, 2.8), source="DeepEyes (arXiv 2505.14362)")
def conditional_bonus(
    turns: list[Turns],
    rewards: Mapping[str, list[float | None]],
    progress: float,
    *,
    accuracy: Graded = "exact",
    form: Graded = "format",
    bonus: Annotated[float, Field(ge=0.0, le=2.0)] = 1.2,
    bonus_until: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
) -> list[float | None]:
    """Right answer and right form, and a bonus for right answers after a call that returned a picture.

    Formula: `0.8 a + 0.2 (f - 1) + bonus * 1[a > 0.5 and n > 0]`, with `a` and `f` two other rewards of the run and `n` the calls that
    returned a picture. A bonus for any call, or for calls of wrong answers, teaches to call for nothing. Range
    -0.2..0.8 + bonus.

    Args:
        turns: with the calls.
        rewards: values of the others.
        progress: of the training.
        accuracy: the reward that is `a`.
        form: the reward whose value, from 0.5 on, makes `f` 1.
        bonus: at the beginning.
        bonus_until: share of the training in which it falls evenly to 0, once calls have become a habit; `None` = it stays.

    Returns:
        G rewards; `None` where one of the two does not apply.
    """
    right, formed = graded(rewards, accuracy), graded(rewards, form)
    left = 1.0 if bonus_until is None else max(0.0, 1.0 - progress / bonus_until)
    values = tool_formulas.conditional_bonus(right, well_formed(formed), num_with_image(turns), bonus=bonus * left)
    return where_told(values, right, formed)
