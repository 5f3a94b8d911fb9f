"""A plug-in package: a reward, a group reward that runs in a child process, and a shaper, all `colour_rewards/...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mmreason.reward_kit.examples import Example, add_examples
from mmreason.scoring import FloatArray, RewardResult, group_reward, reward, shaper


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


# Its target is of a form of its own, so `mmreason reward check` must be told what is right and wrong.
add_examples(
    colour_named,
    Example(
        "a colour",
        {"colour": "red"},
        right=("red",),
        wrong=("blue", "car"),
        candidates=("red", "blue", "green"),
        question="Which colour is the mug?",
    ),
    Example(
        "another colour",
        {"colour": "green"},
        right=("green",),
        wrong=("grass", "red, green"),
        fair=("blue",),
        candidates=("red", "blue", "green"),
        question="Which colour is the grass?",
    ),
)


@group_reward(range=(0.0, 1.0), isolated=True, deadline_s=5.0)
def colour_variety(answer: list[str | None]) -> list[float]:
    """Different answers of the group, over its size; the same for all of them."""
    return [len(set(answer)) / len(answer)] * len(answer)


@shaper()
def colour_bonus(values: FloatArray, answer: list[str | None], *, bonus: float = 0.5) -> FloatArray:
    """Adds `bonus` to every reward where the answer is red."""
    return values + [[bonus * (one == "red")] for one in answer]
