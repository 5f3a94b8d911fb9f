"""Reward `curiosity`: keeps an agent from giving its tools up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from mmreason.rewards import tool_formulas
from mmreason.rewards.tool_calls import Graded, Turns, graded, num_calls, where_told
from mmreason.scoring import group_reward

Share = Annotated[float, Field(ge=0.0, le=1.0)]

#: The term of the calls is held within this; groups of up to 28 with 21 calls each do not reach it by default.
_MAX_TERM = 1.0


@group_reward(range=(-1.0, 2.0), source="Pixel-Reasoner (arXiv 2505.15966); the gate is ours")
def curiosity(
    turns: list[Turns],
    rewards: Mapping[str, list[float | None]],
    *,
    accuracy: Graded = "exact",
    wanted_rate: Share = 0.3,
    bonus: Share = 0.25,
    call_cost: Share = 0.05,
    only_if_right: bool = True,
) -> list[float | None]:
    """The answer; callers gain where few completions of the group call a tool, and pay for every further call.

    Formula: with `a` another reward of the run, `n` calls and `rho` the share of the group that calls at all,
    `a + 1[n > 0] (bonus * max(wanted_rate - rho, 0) / (2 rho) - call_cost (n - 1))`, the second term held within -1..1. In a
    group of 8 a single caller gains 0.175. With `only_if_right` only answers that are at least partly right gain; the paper's
    code has none, and pays for calls alone. Range -1..2.

    Args:
        turns: with the calls, carried out or not.
        rewards: values of the others.
        accuracy: the reward that is `a`.
        wanted_rate: share of callers up to which there is a gain.
        bonus: strength of the gain.
        call_cost: of each call after the first.
        only_if_right: wrong answers (`a = 0`) gain nothing; they still pay.

    Returns:
        G rewards; `None` where `a` does not apply.
    """
    right = graded(rewards, accuracy)
    group = np.zeros(right.size, dtype=np.int64)
    values = tool_formulas.curiosity(
        right, num_calls(turns), group, wanted_rate=wanted_rate, bonus=bonus, call_cost=call_cost, gate=only_if_right
    )
    return where_told(right + np.clip(values - right, -_MAX_TERM, _MAX_TERM))
