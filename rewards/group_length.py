"""Rewards of length against the difficulty of the prompt: `laser`, `laser_d`, `laser_de`, `kimi_length`.

Each looks at all completions of a prompt together. What counts as right is `reward.correct`, such as
`reward.correct='exact > 0.5'`. The formulas are in `mmreason.rewards.group_formulas`.

Shapes: G completions of the group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmreason.rewards import group_formulas
from mmreason.rewards.group_formulas import LaserTargets
from mmreason.rewards.repetition import loops
from mmreason.scoring import group_reward

Tokens = Annotated[int, Field(ge=1)]
Bonus = Annotated[float, Field(gt=0.0, le=1.0)]
Flags = NDArray[np.bool_]

_LASER = "LASER (arXiv 2505.15612)"


def _told(correct: list[bool | None], values: Callable[[Flags], NDArray[np.float64]]) -> list[float | None]:
    """Values of a formula that takes right as true; `None` where it cannot be told, which counts as wrong for the others."""
    found = values(np.array([bool(flag) for flag in correct]))
    return [None if flag is None else float(value) for flag, value in zip(correct, found, strict=True)]


def _valid(answer: list[str | None]) -> Flags:
    return np.array([text is not None for text in answer])


@group_reward(range=(-2.0, 2.0), source=_LASER)
def laser(
    answer: list[str | None],
    num_tokens: list[int],
    correct: list[bool | None],
    *,
    target_tokens: Tokens = 4096,
    bonus: Bonus = 0.5,
    variant: Literal["reward", "penalty", "hybrid"] = "reward",
) -> list[float | None]:
    """1 right, -0.5 wrong, -1 without an answer; right ones up to a fixed length earn a bonus.

    Formula: `base + bonus * 1[L <= target_tokens]` if right, else `base`; `penalty` takes the bonus off longer ones
    instead, `hybrid` does both. Range -1..1 + bonus.

    Args:
        answer: `None` is invalid.
        num_tokens: lengths L.
        correct: whether each is right.
        target_tokens: too near the length limit it is mere truncation.
        bonus: the paper's alpha.
        variant: whether short ones win, long ones lose, or both.

    Returns:
        G rewards; `None` where it cannot be told whether the completion is right.
    """
    valid = _valid(answer)
    return _told(
        correct,
        lambda right: group_formulas.laser(
            right & valid,
            valid,
            np.array(num_tokens),
            target_tokens=target_tokens,
            bonus=bonus,
            variant=variant,
        ),
    )


@group_reward(range=(-1.0, 2.0), source=f"LASER-D of {_LASER}, with targets that are set by hand")
def laser_d(
    answer: list[str | None],
    num_tokens: list[int],
    correct: list[bool | None],
    *,
    easy_tokens: Tokens = 1024,
    medium_tokens: Tokens = 2048,
    hard_tokens: Tokens = 4096,
    bonus: Bonus = 0.5,
) -> list[float | None]:
    """As `laser`, with a length for each difficulty: a prompt is easy if two thirds of its group are right, hard under one third.

    Formula: `base + bonus * 1[L <= target of the group's difficulty]` if right, else `base`. Range -1..1 + bonus. The
    paper moves the targets along with a monitor set (`group_formulas.laser_targets`); here they stay as set.

    Args:
        answer, num_tokens, correct, bonus: see `laser`.
        easy_tokens, medium_tokens, hard_tokens: lengths that earn the bonus.

    Returns:
        G rewards; `None` where it cannot be told whether the completion is right.
    """
    valid = _valid(answer)
    targets = LaserTargets(easy_tokens, medium_tokens, hard_tokens)
    group = np.zeros(len(correct), dtype=np.int64)
    return _told(
        correct,
        lambda right: group_formulas.laser_d(right & valid, valid, np.array(num_tokens), group, targets, bonus=bonus),
    )


@group_reward(range=(-1.0, 2.0), source=f"LASER-DE of {_LASER}, with targets that are set by hand")
def laser_de(
    answer: list[str | None],
    completion: list[str],
    num_tokens: list[int],
    correct: list[bool | None],
    *,
    easy_tokens: Tokens = 1024,
    medium_tokens: Tokens = 2048,
    hard_tokens: Tokens = 4096,
    bonus: Bonus = 0.5,
) -> list[float | None]:
    """As `laser_d`; long wrong attempts that do not go in circles are not held against the model.

    Formula: `laser_d`, plus `bonus` if wrong but with an answer, longer than the target, and not looping. Range
    -1..1 + bonus.

    Args:
        answer, num_tokens, correct, bonus, easy_tokens, medium_tokens, hard_tokens: see `laser_d`.
        completion: looked through for repetition.

    Returns:
        G rewards; `None` where it cannot be told whether the completion is right.
    """
    valid = _valid(answer)
    targets = LaserTargets(easy_tokens, medium_tokens, hard_tokens)
    group = np.zeros(len(correct), dtype=np.int64)
    looping = np.array([loops(text) for text in completion])
    return _told(
        correct,
        lambda right: group_formulas.laser_de(
            right & valid, valid, np.array(num_tokens), group, looping, targets, bonus=bonus
        ),
    )


@group_reward(range=(-0.5, 0.5), source="length reward of Kimi k1.5 (arXiv 2501.12599)")
def kimi_length(num_tokens: list[int], correct: list[bool | None], *, coefficient: Bonus = 0.4) -> list[float | None]:
    """The shortest of a group gains, the longest loses; wrong ones never gain. Added to the reward of the answer.

    Formula: `s = 0.5 - (L - L_min) / (L_max - L_min)`; `coefficient * s` if right, `coefficient * min(0, s)` if wrong, 0
    where all lengths are equal. Range -coefficient / 2..coefficient / 2.

    Args:
        num_tokens: lengths L.
        correct: whether each is right.
        coefficient: weight of the term.

    Returns:
        G rewards; `None` where it cannot be told whether the completion is right.
    """
    group = np.zeros(len(correct), dtype=np.int64)
    return _told(
        correct,
        lambda right: group_formulas.kimi_length(right, np.array(num_tokens), group, coefficient=coefficient),
    )
