"""Reward `gated_format`: the form of an agent's work counts once its answer is at least partly right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from mmreason.rewards import tool_formulas
from mmreason.rewards.tool_calls import Graded, graded, well_formed, where_told
from mmreason.scoring import group_reward

Weight = Annotated[float, Field(ge=0.0, le=1.0)]


@group_reward(range=(0.0, 2.0), source="ViLaSR (arXiv 2506.09965)")
def gated_format(
    rewards: Mapping[str, list[float | None]],
    *,
    accuracy: Graded = "exact",
    form: Graded = "format",
    accuracy_weight: Weight = 0.5,
    form_weight: Weight = 0.5,
) -> list[float | None]:
    """Right answer and right form; nothing without an answer that is at least partly right.

    Formula: 0 if `a = 0`, else `accuracy_weight * a + form_weight * f`, with `a` and `f` two other rewards of the run, which
    need no weight of their own. Where `a` is graded, any hit opens the whole share of the form. Range
    0..accuracy_weight + form_weight.

    Args:
        rewards: values of the others.
        accuracy: the reward that is `a`.
        form: the reward whose value, from 0.5 on, makes `f` 1.
        accuracy_weight, form_weight: of the two terms.

    Returns:
        G rewards; `None` where one of the two does not apply.
    """
    right, formed = graded(rewards, accuracy), graded(rewards, form)
    values = tool_formulas.gated_format(
        right, well_formed(formed), accuracy_weight=accuracy_weight, format_weight=form_weight
    )
    return where_told(values, right, formed)
