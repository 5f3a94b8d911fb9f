"""Formulas of length and mode that compare completions: LASER and Kimi within a group, AutoThink over a batch.

What enters: arrays over all completions of a batch, gathered from all processes. What leaves: an array of the same
length. Pure functions: nothing is registered here, nothing is random, no argument is changed. Whether a completion is
right enters as a flag of its own, never read off a reward that something was already added to.

Legend of shapes: N completions of a batch, in any order; `group` is `[N]` and numbers the prompt of each; G of a group;
M prompts of a monitor set with n completions each. Lengths are in sampled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

EASY, MEDIUM, HARD = 0, 1, 2
#: Where in a target of LASER-D every length is short enough.
ANY_LENGTH = math.inf


def check_lengths(*arrays: NDArray[Any] | Sequence[Any]) -> None:
    """Refuse arrays over the same completions that differ in length, which numpy might stretch silently."""
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"arrays over the same completions have lengths {', '.join(str(len(a)) for a in arrays)}")


# LASER, LASER-D, LASER-DE and Kimi's length term


@dataclass(frozen=True, slots=True)
class LaserTargets:
    """Lengths in tokens up to which a right completion earns the bonus, by difficulty of its prompt.

    `ANY_LENGTH` (infinite) gives it to all.
    """

    easy: float
    medium: float
    hard: float

    @classmethod
    def fixed(cls, tokens: float) -> LaserTargets:
        """The same for all: LASER, and LASER-D before the monitor set was first looked at."""
        return cls(tokens, tokens, tokens)

    def of(self, difficulty: IntArray) -> FloatArray:
        """`[N]` difficulties to `[N]` target lengths."""
        return np.array([self.easy, self.medium, self.hard], dtype=np.float64)[difficulty]


def laser_base(correct: BoolArray, valid: BoolArray) -> FloatArray:
    """The part of LASER that does not look at length: 1 right, -0.5 wrong, -1 invalid.

    Args:
        correct: `[N]`.
        valid: `[N]`, the form is kept and there is an answer; an invalid completion is never right.

    Returns:
        `[N]` in -1, -0.5, 1. Source: LASER (arXiv 2505.15612).
    """
    check_lengths(correct, valid)
    return np.where(valid, np.where(correct, 1.0, -0.5), -1.0)


def laser(
    correct: BoolArray,
    valid: BoolArray,
    num_tokens: IntArray,
    *,
    target_tokens: float = 4096,
    bonus: float = 0.5,
    variant: Literal["reward", "penalty", "hybrid"] = "reward",
) -> FloatArray:
    """LASER: a bonus for right completions up to a fixed length.

    Formula: `base + bonus * 1[L <= target_tokens]` if right, else `base`; `penalty` takes the bonus off longer ones
    instead, `hybrid` does both. Range -1..1 + bonus. Source: LASER (arXiv 2505.15612).

    Args:
        correct: `[N]`.
        valid: `[N]`, see `laser_base`.
        num_tokens: `[N]` lengths L.
        target_tokens: 2048, 4096 or 8192 in the paper, at 16,384 tokens; too near the limit it is mere truncation.
        bonus: the paper's alpha.
        variant: whether short ones win, long ones lose, or both.

    Returns:
        `[N]`.
    """
    check_lengths(correct, valid, num_tokens)
    short = num_tokens <= target_tokens
    if_short = 0.0 if variant == "penalty" else bonus
    if_long = 0.0 if variant == "reward" else -bonus
    return laser_base(correct, valid) + np.where(correct & valid, np.where(short, if_short, if_long), 0.0)


def difficulty_of_groups(correct: BoolArray, group: IntArray) -> IntArray:
    """Difficulty of each completion's prompt by its group's share of right ones: easy from 2/3, medium from 1/3.

    Args:
        correct: `[N]`, before any bonus.
        group: `[N]`.

    Returns:
        `[N]` of `EASY`, `MEDIUM`, `HARD`. Source: training bins of LASER-D (arXiv 2505.15612).
    """
    check_lengths(correct, group)
    _, member = np.unique(group, return_inverse=True)
    right = np.bincount(member, weights=correct)[member]
    size = np.bincount(member)[member]
    return np.where(3 * right >= 2 * size, EASY, np.where(3 * right >= size, MEDIUM, HARD)).astype(np.int64)


def laser_d(
    correct: BoolArray,
    valid: BoolArray,
    num_tokens: IntArray,
    group: IntArray,
    targets: LaserTargets,
    *,
    bonus: float = 0.5,
) -> FloatArray:
    """LASER-D: as LASER, with a target length for each difficulty.

    Formula: `base + bonus * 1[L <= target of the group's difficulty]` if right, else `base`. Range -1..1 + bonus.
    Source: LASER-D (arXiv 2505.15612).

    Args:
        correct, valid, num_tokens, bonus: see `laser`.
        group: `[N]`.
        targets: from `laser_targets`, or `LaserTargets.fixed` before the first monitor result.

    Returns:
        `[N]`.
    """
    check_lengths(correct, valid, num_tokens, group)
    right = correct & valid
    short = num_tokens <= targets.of(difficulty_of_groups(right, group))
    return laser_base(correct, valid) + np.where(right & short, bonus, 0.0)


def laser_de(
    correct: BoolArray,
    valid: BoolArray,
    num_tokens: IntArray,
    group: IntArray,
    looping: BoolArray,
    targets: LaserTargets,
    *,
    bonus: float = 0.5,
) -> FloatArray:
    """LASER-DE: as LASER-D, and long wrong attempts that do not go in circles are not held against the model.

    Formula: LASER-D, plus `bonus` if wrong but valid, `L > target`, and not looping. Range -1..1 + bonus.
    Source: LASER-DE (arXiv 2505.15612).

    Args:
        correct, valid, num_tokens, group, targets, bonus: see `laser_d`.
        looping: `[N]`, the text repeats itself (`mmreason.rewards.repetition.loops`); without this guard the term
            pays for filling the context.

    Returns:
        `[N]`.
    """
    rewards = laser_d(correct, valid, num_tokens, group, targets, bonus=bonus)
    check_lengths(rewards, looping)
    long = num_tokens > targets.of(difficulty_of_groups(correct & valid, group))
    return rewards + np.where(valid & ~correct & long & ~looping, bonus, 0.0)


def expected_correct(num_samples: int, rounding: Literal["floor", "ceil"] = "floor") -> tuple[int, int, int]:
    """LASER-D's lower bounds on how many of n completions are right on an easy, a medium and a hard prompt."""
    if rounding == "floor":
        return 2 * num_samples // 3, num_samples // 3, 1
    return -(-2 * num_samples // 3), -(-num_samples // 3), 1


def laser_targets(
    correct: BoolArray,
    num_tokens: IntArray,
    *,
    lower_tokens: int,
    max_tokens: int = 16_384,
    step_tokens: int = 1024,
    wanted_correct: int = 1,
    rounding: Literal["floor", "ceil"] = "floor",
    previous: LaserTargets | None = None,
) -> LaserTargets:
    """Target lengths of LASER-D from a monitor set: the shortest that still promises a right completion.

    Formula: prompts are hard up to 1/3 right, medium up to 2/3, easy above; for each bin the target is the smallest
    candidate `l` with `floor(P(l) * C) >= wanted_correct`, where `P(l)` is the share of the bin's completions, right
    and wrong, of length `<= l`, and `C` is `expected_correct(n)`. Candidates run from `lower_tokens` in steps to
    `max_tokens`; below a step, the lower bound comes first and then whole steps. Where none qualifies, every length
    is short enough. A bin without prompts keeps its previous target (our choice; the released code falls back to
    the longest completion). Source: LASER-D (arXiv 2505.15612).

    Args:
        correct: `[M, n]`.
        num_tokens: `[M, n]`.
        lower_tokens: the first candidate, the L of the released models.
        max_tokens: the last candidate.
        step_tokens: between candidates.
        wanted_correct: right completions that the target must let through.
        rounding: of C.
        previous: targets so far; `None` = every length.

    Returns:
        The three targets.
    """
    if correct.shape != num_tokens.shape or correct.ndim != 2:
        raise ValueError(f"monitor arrays must be [M, n] alike, not {correct.shape} and {num_tokens.shape}")
    right, n = correct.sum(axis=1), correct.shape[1]
    bins = np.where(3 * right <= n, HARD, np.where(3 * right <= 2 * n, MEDIUM, EASY))
    candidates = [lower_tokens] if lower_tokens < step_tokens else []
    candidates += list(range(max(lower_tokens, step_tokens), max_tokens + 1, step_tokens))
    kept = previous or LaserTargets.fixed(ANY_LENGTH)
    targets = [kept.easy, kept.medium, kept.hard]
    for level, bound in enumerate(expected_correct(n, rounding)):
        lengths = num_tokens[bins == level].ravel()
        if lengths.size:
            reached = ((lengths <= tokens).sum() * bound >= wanted_correct * lengths.size for tokens in candidates)
            targets[level] = next((t for t, enough in zip(candidates, reached, strict=True) if enough), ANY_LENGTH)
    return LaserTargets(*targets)


def kimi_length(correct: BoolArray, num_tokens: IntArray, group: IntArray, *, coefficient: float = 0.4) -> FloatArray:
    """Kimi's length term: the shortest of a group gains, the longest loses; wrong ones never gain.

    Formula: `s = 0.5 - (L - L_min) / (L_max - L_min)` over the whole group; `coefficient * s` if right,
    `coefficient * min(0, s)` if wrong, 0 where all lengths are equal. It is added to the reward of the answer.
    Range -coefficient / 2..coefficient / 2. Source: Kimi k1.5 (arXiv 2501.12599), weight as in LASER's code.

    Args:
        correct: `[N]`.
        num_tokens: `[N]` lengths L.
        group: `[N]`.
        coefficient: weight of the term.

    Returns:
        `[N]`.
    """
    check_lengths(correct, num_tokens, group)
    _, member = np.unique(group, return_inverse=True)
    longest, shortest = np.zeros(member.size), np.full(member.size, np.inf)
    np.maximum.at(longest, member, num_tokens)
    np.minimum.at(shortest, member, num_tokens)
    spread = (longest - shortest)[member]
    share = np.divide(num_tokens - shortest[member], spread, out=np.full(member.size, 0.5), where=spread > 0)
    score = 0.5 - share
    term: FloatArray = coefficient * np.where(correct, score, np.minimum(score, 0.0))
    return term


# AutoThink


def closes_at_once(completion: str) -> bool:
    """AutoThink's "no thinking", where the prompt has opened `<think>`, a new line, an ellipsis, a new line.

    True if the completion begins with the closing tag and a blank line, or holds the whole empty block itself. On
    any other prompt template the answer means nothing.
    """
    return completion.startswith("</think>\n\n") or "<think>\n...\n</think>" in completion


@dataclass(frozen=True)
class AutoThinkBatch:
    """What AutoThink knows of the N completions of a global batch.

    Attributes:
        correct: `[N]`.
        thinks: `[N]`, not `closes_at_once`.
        answered: `[N]`, the thinking is closed and there is an answer.
        degenerate: `[N]`, the text loops (`mmreason.rewards.repetition.loops`).
    """

    correct: BoolArray
    thinks: BoolArray
    answered: BoolArray
    degenerate: BoolArray

    def __post_init__(self) -> None:
        check_lengths(self.correct, self.thinks, self.answered, self.degenerate)

    @property
    def right(self) -> BoolArray:
        """`[N]`: right, answered and not degenerate."""
        return self.correct & self.answered & ~self.degenerate


def autothink_base(batch: AutoThinkBatch) -> FloatArray:
    """AutoThink's stage 2, and what the others start from.

    Formula: thinking 1 right, 0 wrong; not thinking 2 right, -1 wrong; 0 without an answer; -2 for degenerate text.
    Range -2..2. Source: AutoThink (arXiv 2505.10832).

    Returns:
        `[N]`.
    """
    wrong = np.where(batch.thinks | ~batch.answered, 0.0, -1.0)
    rewards = np.where(batch.right, np.where(batch.thinks, 1.0, 2.0), wrong)
    return np.where(batch.degenerate, -2.0, rewards)


def autothink_balance(
    rewards: FloatArray, batch: AutoThinkBatch, *, target_share: float = 0.5, slope: float = 2.0
) -> FloatArray:
    """AutoThink's stage 1: the mode that is used too much earns less, so that neither dies out.

    Formula: with `z` the share of the *whole batch* that thinks, `d_think = clip((z - target_share) slope, 0, 1)`
    and `d_no = clip((1 - z - target_share) slope, 0, 1)`, a reward becomes `(1 - d) r + d r'`, with `r'` 0 right and
    -1 wrong for thinking, 1 right and -2 wrong for not thinking. Degenerate text stays at -2 (our choice: mixing it
    in would raise it). Range -2..2. Source: AutoThink (arXiv 2505.10832).

    Args:
        rewards: `[N]` from `autothink_base`.
        batch: the N completions.
        target_share: share of thinking that is left alone.
        slope: how fast the correction grows; 0 switches it off.

    Returns:
        `[N]`.
    """
    check_lengths(rewards, batch.thinks)
    if rewards.size == 0:
        return rewards.copy()
    share = float(batch.thinks.mean())
    too_much = np.clip((share - target_share) * slope, 0.0, 1.0)
    too_little = np.clip((1.0 - share - target_share) * slope, 0.0, 1.0)
    pull = np.where(batch.thinks, too_much, too_little)
    towards = np.where(batch.thinks, np.where(batch.right, 0.0, -1.0), np.where(batch.right, 1.0, -2.0))
    return np.where(batch.degenerate, rewards, (1.0 - pull) * rewards + pull * towards)


def autothink_length(
    rewards: FloatArray,
    batch: AutoThinkBatch,
    num_tokens: IntArray,
    group: IntArray,
    *,
    right_rate: float = 0.05,
    wrong_rate: float = 0.05,
) -> FloatArray:
    """AutoThink's stage 3: among the right ones of a group the shorter gains, among the wrong ones the longer.

    Formula: with `y = (L - mean) / std` over the group's right, or its wrong, completions (sample std, at least
    1e-6; only where there are two), `exp(-right_rate y) - 1` is added if right and `1 - exp(-wrong_rate y)` if
    wrong. Degenerate text is left out (our choice: it would be paid for its length). Over G completions `|y|` is at
    most `(G - 1) / sqrt(G)`. Source: AutoThink (arXiv 2505.10832).

    Args:
        rewards: `[N]` from `autothink_base`.
        batch: the N completions.
        num_tokens: `[N]` lengths L.
        group: `[N]`.
        right_rate: the paper's alpha.
        wrong_rate: the paper's beta.

    Returns:
        `[N]`.
    """
    check_lengths(rewards, batch.thinks, num_tokens, group)
    changed = rewards.copy()
    for number in np.unique(group):
        here = (group == number) & ~batch.degenerate
        for part, is_right in ((here & batch.right, True), (here & ~batch.right, False)):
            if part.sum() < 2:
                continue
            lengths = num_tokens[part].astype(np.float64)
            standing = (lengths - lengths.mean()) / max(float(lengths.std(ddof=1)), 1e-6)
            changed[part] += np.exp(-right_rate * standing) - 1.0 if is_right else 1.0 - np.exp(-wrong_rate * standing)
    return changed


def autothink(batch: AutoThinkBatch, num_tokens: IntArray, group: IntArray, *, stage: Literal[1, 2, 3]) -> FloatArray:
    """AutoThink's reward of a stage, at its published settings: 1 balance, 2 reinforce, 3 length.

    Returns:
        `[N]`. Range -2..2, in stage 3 wider by the length term. Source: AutoThink (arXiv 2505.10832).
    """
    rewards = autothink_base(batch)
    if stage == 1:
        return autothink_balance(rewards, batch)
    return autothink_length(rewards, batch, num_tokens, group) if stage == 3 else rewards
