"""Rewards of length alone: `cosine_length`, shorter where right and longer where wrong, and `soft_overlong`.

Lengths are in sampled tokens, never in characters. Lengths against those of other completions are in
`mmreason.rewards.group_formulas`.

Shapes: N completions, G of a group.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmreason.scoring import group_reward, reward

FloatArray: TypeAlias = NDArray[np.float64]
Tokens = Annotated[int, Field(ge=1)]
Value = Annotated[float, Field(ge=-1.0, le=1.0)]


def cosine_of_length(
    num_tokens: NDArray[np.int64], *, max_tokens: int, shortest: FloatArray | float, longest: FloatArray | float
) -> FloatArray:
    """Half a cosine from one value to another: `longest + (shortest - longest) (1 + cos(pi min(L / max, 1))) / 2`.

    Args:
        num_tokens: `[N]` lengths L.
        max_tokens: length from which on the value is `longest`.
        shortest: `[N]` or one value, at length 0.
        longest: `[N]` or one value, at `max_tokens`.

    Returns:
        `[N]`.
    """
    wave = (1.0 + np.cos(np.pi * np.minimum(num_tokens / max_tokens, 1.0))) / 2.0
    values: FloatArray = longest + (np.asarray(shortest) - longest) * wave
    return values


@group_reward(range=(-1.0, 1.0), source="cosine reward of Demystifying Long CoT (arXiv 2502.03373), clamped as in TRL")
def cosine_length(
    num_tokens: list[int],
    correct: list[bool | None],
    *,
    max_tokens: Tokens = 1024,
    right_short: Value = 1.0,
    right_long: Value = 0.5,
    wrong_short: Value = -1.0,
    wrong_long: Value = -0.5,
) -> list[float | None]:
    """High for a short right completion, low for a short wrong one, meeting in the middle with length.

    Formula: `long + (short - long) (1 + cos(pi min(L / max_tokens, 1))) / 2`, with `short` and `long` the values
    of a right or of a wrong completion, and L its tokens. Unlike the published code it does not rise again past
    `max_tokens`, and looks at whether the completion is right. VLM-R1's values for wrong ones are -0.5 and 0.
    Range -1..1. What counts as right is `reward.correct`; a value depends on its own completion only.

    Args:
        num_tokens: sampled tokens of the group's G completions.
        correct: whether each is right.
        max_tokens: length from which on the value stays.
        right_short: of a right completion without length.
        right_long: of a right completion at `max_tokens`.
        wrong_short: of a wrong completion without length.
        wrong_long: of a wrong completion at `max_tokens`.

    Returns:
        G rewards; `None` where it cannot be told whether the completion is right.
    """
    right = np.array([bool(flag) for flag in correct])
    values = cosine_of_length(
        np.array(num_tokens, dtype=np.int64),
        max_tokens=max_tokens,
        shortest=np.where(right, right_short, wrong_short),
        longest=np.where(right, right_long, wrong_long),
    )
    return [None if flag is None else float(value) for flag, value in zip(correct, values, strict=True)]


@reward(range=(-1.0, 0.0), source="soft overlong punishment of DAPO (arXiv 2503.14476), eq. 13")
def soft_overlong(
    num_tokens: int, *, max_tokens: Tokens = 512, soft_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
) -> float:
    """0 up to near the limit, then falling to -1 at the limit.

    Formula: with L tokens and `soft = soft_share * max_tokens`, 0 for `L <= max_tokens - soft`, then
    `(max_tokens - soft - L) / soft`, and -1 past `max_tokens`. Range -1..0.

    Args:
        num_tokens: sampled tokens.
        max_tokens: the limit; set it to `rollout.max_new_tokens`.
        soft_share: share of the limit over which the punishment grows; DAPO's 4,096 of 20,480 tokens are 0.2.
    """
    soft = soft_share * max_tokens
    return float(np.clip((max_tokens - soft - num_tokens) / soft, -1.0, 0.0))
