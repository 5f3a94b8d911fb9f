"""A plug-in package with one reward, `colour_rewards/colour_named`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmreason.scoring import RewardResult, reward


@reward(range=(0.0, 1.0), source="example")
def colour_named(
    answer: str | None, target: Mapping[str, Any], *, near_miss: Annotated[float, Field(ge=0, le=1)] = 0.5
) -> RewardResult | None:
    """1 if the answer is the colour, `near_miss` if it is another colour.

    Args:
        answer: the answer.
        target: `{"colour": text}`.
        near_miss: worth of a wrong colour.
    """
    if "colour" not in target:
        return None
    colours = {"red", "green", "blue"}
    right = answer == target["colour"]
    value = 1.0 if right else near_miss if answer in colours else 0.0
    return RewardResult(value, {"is_colour": float(answer in colours)})
