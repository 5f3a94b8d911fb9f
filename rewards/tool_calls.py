"""What rewards of agents share: how often tools were called, and the values of the rewards that they build on.

Enters: the turns of a rollout (`mmreason.records.Turn`), and what group rewards are told of other rewards. Leaves: counts and
arrays for the formulas in `mmreason.rewards.tool_formulas`.

Shapes: G completions of the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from mmreason.records import Turn
from mmreason.rewards.group_formulas import BoolArray, FloatArray, IntArray
from mmreason.scoring import RewardInRun

#: An option that names a reward of the run within 0..1: that of the answer, or that of the form.
Graded = Annotated[str, RewardInRun(within=(0.0, 1.0))]
Turns = tuple[Turn, ...]
#: From this value on a completion counts as well formed.
_WELL_FORMED = 0.5


def num_calls(turns: list[Turns]) -> IntArray:
    """`[G]`: calls, carried out or not."""
    return np.array([sum(turn.tool is not None for turn in one) for one in turns], dtype=np.int64)


def num_failed(turns: Turns) -> int:
    """Calls that could not be carried out."""
    return sum(turn.tool is not None and not turn.ok for turn in turns)


def num_with_image(turns: list[Turns]) -> IntArray:
    """`[G]`: calls that were carried out and returned a picture."""
    return np.array(
        [sum(turn.tool is not None and turn.ok and turn.num_images > 0 for turn in one) for one in turns],
        dtype=np.int64,
    )


def pages_shown(turns: Turns) -> list[str]:
    """Ids of what the calls of a rollout showed, in order."""
    return [page for turn in turns if turn.ok for page in turn.shown]


def graded(rewards: Mapping[str, Sequence[float | None]], name: str) -> FloatArray:
    """`[G]` values of a reward; NaN where it does not apply."""
    return np.array([math.nan if value is None else value for value in rewards[name]], dtype=np.float64)


def well_formed(values: FloatArray) -> BoolArray:
    """`[G]`: the reward of the form says yes."""
    return values >= _WELL_FORMED


def where_told(values: FloatArray, *needed: FloatArray) -> list[float | None]:
    """Values as rewards return them: `None` where one of the arrays that they were made of is missing."""
    return [None if any(map(math.isnan, row)) else float(row[0]) for row in zip(values, *needed, strict=True)]
