"""Formulas of rewards for agents that call tools: presets of accuracy, form and calls, and how good a search was.

What enters: arrays over all completions of a batch, gathered from all processes. What leaves: an array of the same
length. Pure functions: nothing is registered here, nothing is random, no argument is changed.

Legend of shapes: N completions of a batch, in any order; `group` is `[N]` and numbers the prompt of each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

from mmreason.rewards.group_formulas import BoolArray, FloatArray, IntArray, check_lengths


def gated_format(
    accuracy: FloatArray, well_formed: BoolArray, *, accuracy_weight: float = 0.5, format_weight: float = 0.5
) -> FloatArray:
    """ViLaSR: form counts for answers that are at least partly right.

    Formula: 0 if `a = 0`, else `0.5 a + 0.5 f`. Range 0..1. With a graded accuracy any hit opens the whole share of
    the form. Source: ViLaSR (arXiv 2506.09965).

    Args:
        accuracy: `[N]` a, 0..1.
        well_formed: `[N]` f.
        accuracy_weight: of a.
        format_weight: of f.

    Returns:
        `[N]`.
    """
    check_lengths(accuracy, well_formed)
    return np.where(accuracy > 0.0, accuracy_weight * accuracy + format_weight * well_formed, 0.0)


def conditional_bonus(
    accuracy: FloatArray, well_formed: BoolArray, successful_calls: IntArray, *, bonus: float = 1.2
) -> FloatArray:
    """DeepEyes: a bonus for right answers that a tool helped to.

    Formula: `0.8 a + 0.2 (f - 1) + bonus * 1[a > 0.5 and n > 0]`. Range -0.2..0.8 + bonus. Anneal the bonus to 0 when
    calls have become a habit. Source: DeepEyes (arXiv 2505.14362).

    Args:
        accuracy: `[N]` a, 0..1.
        well_formed: `[N]` f.
        successful_calls: `[N]` n, calls that returned an image.
        bonus: for a right answer with a call.

    Returns:
        `[N]`.
    """
    check_lengths(accuracy, well_formed, successful_calls)
    helped = (accuracy > 0.5) & (successful_calls > 0)
    rewards: FloatArray = 0.8 * accuracy - 0.2 * ~well_formed + bonus * helped
    return rewards


def curiosity(
    accuracy: FloatArray,
    calls: IntArray,
    group: IntArray,
    *,
    wanted_rate: float = 0.3,
    bonus: float = 0.25,
    call_cost: float = 0.05,
    gate: bool = True,
) -> FloatArray:
    """Pixel-Reasoner: callers gain where few of the group call, and pay for every further call.

    Formula: with n calls and rho the share of the group that calls at all,
    `a + 1[n > 0] (bonus * max(wanted_rate - rho, 0) / (2 rho) - call_cost (n - 1))`. The gain is 0.175 at most for a
    group of 8. Source: Pixel-Reasoner (arXiv 2505.15966); the gate is ours, the released code has none.

    Args:
        accuracy: `[N]` a, 0..1.
        calls: `[N]` n.
        group: `[N]`.
        wanted_rate: the paper's H.
        bonus: strength of the gain.
        call_cost: of each call after the first.
        gate: wrong answers (`a = 0`) gain nothing; they still pay.

    Returns:
        `[N]`.
    """
    check_lengths(accuracy, calls, group)
    _, member = np.unique(group, return_inverse=True)
    called = calls > 0
    rate = (np.bincount(member, weights=called) / np.maximum(np.bincount(member), 1))[member]
    lacking = np.maximum(wanted_rate - rate, 0.0)
    gain = bonus * np.divide(lacking, 2.0 * rate, out=np.zeros(rate.size), where=rate > 0.0)
    if gate:
        gain = np.where(accuracy > 0.0, gain, 0.0)
    return accuracy + np.where(called, gain - call_cost * (calls - 1), 0.0)


def step_penalty(failed_calls: IntArray, *, cost: float = 0.05) -> FloatArray:
    """A small fine for each call that could not be carried out: `-cost * e`, 0 or below. Source: verl's tool agents.

    Args:
        failed_calls: `[N]` e.
        cost: of one.

    Returns:
        `[N]`; added to another reward.
    """
    penalty: FloatArray = -cost * failed_calls.astype(np.float64)
    return penalty


def retrieval_ndcg(shown: Iterable[str], gold: Collection[str]) -> float | None:
    """How early a search showed the right pages: normalised discounted cumulative gain, 0..1.

    Formula: over the distinct pages in the order they were first shown, `sum of (2^rel - 1) / log2(rank + 1)` with
    rank from 1 and rel 1 for a right page, over the same sum with all right pages first. Showing a page twice
    changes nothing. Source: VRAG-RL (arXiv 2505.22019).

    Args:
        shown: ids of the pages, in order.
        gold: ids of the right pages.

    Returns:
        The gain; `None` if no page is right.
    """
    right = set(gold)
    if not right:
        return None
    gain = sum(1.0 / math.log2(rank + 1) for rank, page in enumerate(dict.fromkeys(shown), start=1) if page in right)
    return gain / sum(1.0 / math.log2(rank + 1) for rank in range(1, len(right) + 1))


def retrieval(accuracy: FloatArray, well_formed: BoolArray, ndcg: FloatArray) -> FloatArray:
    """VRAG-RL: the answer, the form and the search; nothing without the form.

    Formula: 0 if `f = 0`, else `0.7 a + 0.1 f + 0.2 NDCG`. Range 0..1. A wrong answer may still get 0.3.
    Source: VRAG-RL (arXiv 2505.22019).

    Args:
        accuracy: `[N]` a, 0..1.
        well_formed: `[N]` f, at least one search and one answer.
        ndcg: `[N]` of `retrieval_ndcg`; NaN makes the reward NaN (does not apply).

    Returns:
        `[N]`.
    """
    check_lengths(accuracy, well_formed, ndcg)
    return np.where(well_formed, 0.7 * accuracy + 0.1 + 0.2 * ndcg, 0.0)
