"""Shaper `calibrate`: credit for sound reasoning where a weak reward model gives a low score."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.rewards import rating_formulas
from mmreason.scoring import FloatArray, RewardInRun, shaper

InUnitRange = Annotated[str, RewardInRun(within=(0.0, 1.0))]


@shaper(source="calibration of reward models in Noisy Rewards in Learning to Reason (arXiv 2505.22653)")
def calibrate(
    values: FloatArray,
    names: tuple[str, ...],
    *,
    reward: InUnitRange = "",
    patterns: InUnitRange = "reasoning_pattern",
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5,
    coefficient: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1,
) -> FloatArray:
    """Raises the low scores of a reward model by what another reward finds of reasoning.

    Formula: `s` if `s >= threshold`, else `min(1, s + coefficient * RPR)`: a model errs most where it scores low. The reward
    of the patterns needs no weight of its own (`reward.reasoning_pattern.weight=0`).

    Args:
        values: the reward matrix.
        names: its columns.
        reward: the reward whose values `s` are raised; a reward of the run within 0..1.
        patterns: the reward whose values are RPR; another one.
        threshold: the paper's tau.
        coefficient: the paper's alpha.

    Returns:
        The matrix, changed in one column; where a score is low and RPR is missing, it is missing too.
    """
    column, other = names.index(reward), names.index(patterns)
    values[:, column] = rating_formulas.calibrate(
        values[:, column], values[:, other], threshold=threshold, coefficient=coefficient
    )
    return values
