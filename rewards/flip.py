"""Shaper `flip`: wrong verdicts on purpose, to study how much noise training bears."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from mmreason.rewards.rating_formulas import flip_per_question
from mmreason.scoring import FloatArray, RewardInRun, shaper


@shaper(source="noise model of Noisy Rewards in Learning to Reason (arXiv 2505.22653)")
def flip(
    values: FloatArray,
    names: tuple[str, ...],
    row_id: list[str],
    answer: list[str | None],
    *,
    reward: Annotated[str, RewardInRun(within=(0.0, 1.0))] = "exact",
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2,
    seed: int = 0,
) -> FloatArray:
    """Turns the verdicts of some questions round, for all their completions and at every step.

    Formula: with probability `share` per question, `r` becomes `1 - r`; completions without an answer keep their reward.
    The draw depends on `seed` and the row's id alone. In GRPO the expected gradient shrinks to `1 - 2 share` of itself and
    is gone at a half. What is logged and saved as the reward's value stays the true one, as do gates and `reward.correct`:
    only the total is noisy.

    Args:
        values: the reward matrix.
        names: its columns.
        row_id: of each row.
        answer: of each.
        reward: whose verdicts are turned round; a reward of the run within 0..1.
        share: the paper's q.
        seed: of the draw.

    Returns:
        The matrix, changed in one column.
    """
    column = names.index(reward)
    readable = np.array([text is not None for text in answer])
    values[:, column] = flip_per_question(values[:, column], row_id, readable, share=share, seed=seed)
    return values
