"""Reward `laser_d_adaptive`: LASER-D, whose target lengths follow what the model needs.

The formulas are in `mmreason.rewards.group_formulas`. What it notes from batch to batch is kept in checkpoints.

Shapes: N completions of the batch, over all processes; M prompts of the window with n completions each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from mmreason.rewards import group_formulas
from mmreason.rewards.group_formulas import EASY, HARD, MEDIUM, IntArray, LaserTargets
from mmreason.rewards.repetition import loops
from mmreason.scoring import RewardResult, batch_reward

Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Count = Annotated[int, Field(ge=1, le=100_000)]


def _in_order(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("the candidates run from the first number to the second, the smaller one first")
    return bounds


Bounds = Annotated[tuple[Tokens, Tokens], AfterValidator(_in_order)]

_LEVELS = {EASY: "easy", MEDIUM: "medium", HARD: "hard"}
#: A prompt of the window: which of its completions are right, and their lengths.
_Seen = tuple[list[int], list[int]]


@batch_reward(range=(-1.0, 2.0), source="LASER-D and LASER-DE (arXiv 2505.15612)")
def laser_d_adaptive(
    completion: list[str],
    answer: list[str | None],
    num_tokens: list[int],
    group: list[int],
    dataset: list[str],
    correct: list[bool | None],
    state: dict[str, Any],
    *,
    target_tokens: Tokens = 4096,
    candidates: Bounds = (1024, 16_384),
    step_tokens: Tokens = 1024,
    every_steps: Count = 20,
    window_prompts: Count = 500,
    wanted_correct: Count = 1,
    rounding: Literal["floor", "ceil"] = "floor",
    explore: bool = False,
    bonus: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5,
) -> list[RewardResult]:
    """As `laser_d`, with target lengths by difficulty and data set that move every few steps.

    Formula: 1 right, -0.5 wrong, -1 without an answer, and `bonus` more for right ones up to the target length of their
    prompt's difficulty; with `explore` (LASER-DE) also for wrong ones beyond it that do not go in circles. Range
    -1..1 + bonus.

    Targets: at first `target_tokens` for all. Every `every_steps` batches those of each data set are set anew from the
    prompts seen since: of the prompts of one difficulty, the smallest candidate `l` with
    `floor(P(l) * C) >= wanted_correct`, where `P(l)` is the share of all completions of length `<= l`, and `C` a lower bound on
    how many are right (of 8: 5, 2, 1); any length where no candidate suffices. A difficulty that was not seen keeps its
    target. The paper samples 500 prompts anew for this; here the completions of the training itself are taken, which
    costs nothing and looks back a few steps.

    Args:
        completion: looked through for circles.
        answer: `None` is invalid.
        num_tokens: lengths.
        group: number of each completion's prompt.
        dataset: of each row; every data set has its own targets.
        correct: whether each is right (`reward.correct`); prompts where that cannot be told move no target.
        state: of the batches before.
        target_tokens: of all, until the first targets are set.
        candidates: first and last candidate.
        step_tokens: between candidates.
        every_steps: batches between two settings.
        window_prompts: of the prompts since the last setting, the newest so many of a data set count.
        wanted_correct: right completions that a target must let through.
        rounding: of C.
        explore: LASER-DE.
        bonus: the paper's alpha.

    Returns:
        N rewards, `None` where it cannot be told whether the completion is right; the part `target_easy`, `target_medium` or
        `target_hard` is the target that held.
    """
    right = np.array([bool(flag) for flag in correct])
    valid = np.array([text is not None for text in answer])
    lengths, groups = np.array(num_tokens, dtype=np.int64), np.array(group, dtype=np.int64)
    targets = _restored(state.get("targets", {}))
    first = LaserTargets.fixed(target_tokens)
    values: list[RewardResult] = [RewardResult(None)] * len(answer)
    for name in dict.fromkeys(dataset):
        rows = np.flatnonzero([other == name for other in dataset])
        arrays = right[rows] & valid[rows], valid[rows], lengths[rows], groups[rows]
        held = targets.get(name, first)
        if explore:
            looping = np.array([loops(completion[row]) for row in rows])
            found = group_formulas.laser_de(*arrays, looping, held, bonus=bonus)
        else:
            found = group_formulas.laser_d(*arrays, held, bonus=bonus)
        difficulty = group_formulas.difficulty_of_groups(arrays[0], arrays[3])
        for row, value, level in zip(rows, found, difficulty, strict=True):
            values[row] = RewardResult(None if correct[row] is None else float(value), _part(held, int(level)))
    _note(state, dataset, groups, right & valid, lengths, correct, window_prompts)
    if state["batches"] % every_steps == 0:
        set_anew = partial(
            group_formulas.laser_targets,
            lower_tokens=candidates[0],
            max_tokens=candidates[1],
            step_tokens=step_tokens,
            wanted_correct=wanted_correct,
            rounding=rounding,
        )
        for name, seen in state["window"].items():
            targets[name] = set_anew(*_monitor(seen), previous=targets.get(name, first))
        state["targets"] = {name: _plain(one) for name, one in targets.items()}
        state["window"] = {}
    return values


def _part(targets: LaserTargets, level: int) -> dict[str, float]:
    target = getattr(targets, _LEVELS[level])
    return {f"target_{_LEVELS[level]}": float(target)} if math.isfinite(target) else {}


def _note(
    state: dict[str, Any],
    dataset: Sequence[str],
    group: IntArray,
    right: NDArray[np.bool_],
    lengths: IntArray,
    correct: Sequence[bool | None],
    window_prompts: int,
) -> None:
    """Add the prompts of a batch to the window."""
    state["batches"] = state.get("batches", 0) + 1
    window: dict[str, list[_Seen]] = state.setdefault("window", {})
    for number in np.unique(group):
        rows = [int(row) for row in np.flatnonzero(group == number)]
        if any(correct[row] is None for row in rows):
            continue
        seen = window.setdefault(dataset[rows[0]], [])
        seen.append((right[rows].astype(int).tolist(), lengths[rows].tolist()))
        del seen[:-window_prompts]


def _monitor(seen: Sequence[_Seen]) -> tuple[NDArray[np.bool_], IntArray]:
    """Right or not, and lengths, `[M, n]`, of the prompts with as many completions as the newest one."""
    alike = [prompt for prompt in seen if len(prompt[0]) == len(seen[-1][0])]
    return (
        np.array([right for right, _ in alike], dtype=np.bool_),
        np.array([lengths for _, lengths in alike], dtype=np.int64),
    )


def _plain(targets: LaserTargets) -> list[float | None]:
    """Targets as JSON can hold them: `None` = any length."""
    return [target if math.isfinite(target) else None for target in (targets.easy, targets.medium, targets.hard)]


def _restored(plain: Mapping[str, Sequence[float | None]]) -> dict[str, LaserTargets]:
    return {
        name: LaserTargets(*(group_formulas.ANY_LENGTH if target is None else target for target in targets))
        for name, targets in plain.items()
    }
