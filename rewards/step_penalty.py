"""Reward `step_penalty`: a small fine for each tool call that could not be carried out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.rewards.tool_calls import Turns, num_failed
from mmreason.scoring import reward


@reward(range=(-1.0, 0.0), source="tool agents of verl (https://github.com/volcengine/verl)")
def step_penalty(turns: Turns, *, cost: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05) -> float:
    """Minus a little for every failed call; added to the reward of the answer.

    Formula: `-min(1, cost * e)`, with `e` the calls that failed: unknown tool, wrong arguments, or an error of the tool.
    Range -1..0.

    Args:
        turns: with the calls.
        cost: of one.
    """
    return -min(1.0, cost * num_failed(turns))
