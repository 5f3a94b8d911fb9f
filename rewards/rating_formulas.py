"""Formulas of ratings and judges: a rank among images, a judge's bonus, a weak reward model, wrong verdicts on purpose.

What enters: arrays over all completions of a batch, gathered from all processes. What leaves: an array of the same
length. Pure functions: nothing is registered here, nothing is random, no argument is changed.

Legend of shapes: N completions of a batch, in any order; B images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mmreason.rewards.group_formulas import BoolArray, FloatArray, IntArray, check_lengths

_FIDELITY_EPSILON = 1e-6
#: What a recommendation says that could be said of any case.
STOCK_PHRASES = (
    "further tests",
    "clinical history",
    "physical examination",
    "refer to specialist",
    "confirm the diagnosis",
)


def thurstone_fidelity(
    scores: FloatArray,
    image: IntArray,
    opinion: FloatArray,
    dataset: Sequence[str] | NDArray[Any],
    *,
    lowest: float = 1.0,
    highest: float = 5.0,
) -> FloatArray:
    """VisualQuality-R1: do the ratings of an image rank it rightly among the other images of its data set?

    Formula: for B images with ratings `q_k(i)`, mean `mu_i` and unbiased variance `var_i`,
    `p_k(i, j) = Phi((q_k(i) - mu_j) / sqrt(var_i + var_j + 1e-6))`, `p(i, j)` 1, 0.5 or 0 as opinion i is above,
    equal to or below opinion j, and `r_k(i)` the mean over `j != i` of
    `sqrt(p p_k + 1e-6) + sqrt((1 - p)(1 - p_k) + 1e-6)`. Range 0..1.0011.
    Source: VisualQuality-R1 (arXiv 2505.14460).

    A rating that is missing or outside `lowest..highest` is worth 0 and enters no mean and no variance; an image
    with a single rating has variance 0, one with none is not compared with.

    Args:
        scores: `[N]` rating in each answer; NaN where there is none.
        image: `[N]` number of the rated image: the group.
        opinion: `[N]` mean opinion score of the image, any scale; only its order within a data set counts.
        dataset: `[N]`; images are compared within one data set only.
        lowest: smallest rating that counts.
        highest: largest rating that counts.

    Returns:
        `[N]`; NaN (does not apply) where there is no other image to compare with.

    Raises:
        ValueError: the completions of one image differ in opinion or data set.
    """
    check_lengths(scores, image, opinion, dataset)
    names = np.asarray(dataset)
    numbers, first, member = np.unique(image, return_index=True, return_inverse=True)
    if (opinion != opinion[first][member]).any() or (names != names[first][member]).any():
        raise ValueError("completions of one image must have one opinion and one data set")
    rated = (scores >= lowest) & (scores <= highest)
    mean, variance = np.full(numbers.size, np.nan), np.zeros(numbers.size)
    for index in range(numbers.size):
        ratings = scores[rated & (member == index)]
        if ratings.size:
            mean[index] = ratings.mean()
        if ratings.size > 1:
            variance[index] = ratings.var(ddof=1)
    rewards = np.full(scores.size, np.nan)
    for row, own in enumerate(member):
        others = (names[first] == names[first][own]) & ~np.isnan(mean)
        others[own] = False
        if not others.any():
            continue
        if not rated[row]:
            rewards[row] = 0.0
            continue
        spread = np.sqrt(variance[own] + variance[others] + _FIDELITY_EPSILON)
        believed = ndtr((scores[row] - mean[others]) / spread)
        true = 0.5 + 0.5 * np.sign(opinion[row] - opinion[first][others])
        agreement = np.sqrt(true * believed + _FIDELITY_EPSILON)
        agreement += np.sqrt((1.0 - true) * (1.0 - believed) + _FIDELITY_EPSILON)
        rewards[row] = agreement.mean()
    return rewards


def is_stock_text(text: str) -> bool:
    """Whether a text holds one of TimeMaster's stock phrases, letter case and spacing aside."""
    plain = " ".join(text.casefold().split())
    return any(phrase in plain for phrase in STOCK_PHRASES)


def judge_bonus(
    correct: BoolArray,
    well_formed: BoolArray,
    judged: FloatArray,
    stock: BoolArray,
    *,
    weight: float = 0.5,
    stock_cap: float = 0.4,
) -> FloatArray:
    """TimeMaster's bonus for a good recommendation, open only to right answers in the right form.

    Formula: `weight * c` if right and well formed, else 0, with `c` the judge's score, at most `stock_cap` for a
    text of stock phrases. It is added to `0.9 correct + 0.1 well_formed`, which makes 1.5 at most. Range 0..weight.
    Source: TimeMaster (arXiv 2506.13705).

    Args:
        correct: `[N]`.
        well_formed: `[N]`.
        judged: `[N]` mean of the judge's marks, 0..1; NaN = the judge gave none, 0 for an empty recommendation.
        stock: `[N]`, see `is_stock_text`.
        weight: of the bonus.
        stock_cap: most that a stock text can get.

    Returns:
        `[N]`; NaN (does not apply) where the gate is open and the judge gave nothing.

    Raises:
        ValueError: a mark is outside 0..1.
    """
    check_lengths(correct, well_formed, judged, stock)
    if ((judged < 0.0) | (judged > 1.0)).any():
        raise ValueError("the judge's marks must lie between 0 and 1")
    capped = np.where(stock, np.minimum(judged, stock_cap), judged)
    return np.where(correct & well_formed, weight * capped, 0.0)


def calibrate(
    scores: FloatArray, patterns: FloatArray, *, threshold: float = 0.5, coefficient: float = 0.1
) -> FloatArray:
    """Correct a weak reward model upwards where it is likeliest to be wrong: at low scores of sound reasoning.

    Formula: `s` if `s >= threshold`, else `min(1, s + coefficient * RPR)`. Range 0..1.
    Source: Noisy Rewards in Learning to Reason (arXiv 2505.22653).

    Args:
        scores: `[N]` of the reward model, 0..1; NaN stays NaN.
        patterns: `[N]` values of the reward `reasoning_pattern`.
        threshold: the paper's tau.
        coefficient: the paper's alpha.

    Returns:
        `[N]`.
    """
    check_lengths(scores, patterns)
    return np.where(scores < threshold, np.minimum(1.0, scores + coefficient * patterns), scores)


def flip_per_question(
    rewards: FloatArray, questions: Sequence[str], readable: BoolArray, *, share: float, seed: int = 0
) -> FloatArray:
    """Turn the verdicts of some questions round, to study how much noise training bears.

    Formula: with probability `share` per question, `r` becomes `1 - r` for all its completions; those without a
    readable answer keep their reward. The draw depends on the seed and the question's id alone: the same question is
    wrong at every step. In GRPO the expected gradient shrinks to `1 - 2 share` of itself. Range 0..1.
    Source: Noisy Rewards in Learning to Reason (arXiv 2505.22653).

    Args:
        rewards: `[N]`, 0..1; NaN stays NaN.
        questions: `[N]` ids of the rows.
        readable: `[N]`, an answer could be read.
        share: probability q of a wrong verdict, 0..1.
        seed: of the draw.

    Returns:
        `[N]`.
    """
    check_lengths(rewards, questions, readable)
    flipped = np.array([_uniform(seed, question) < share for question in questions], dtype=np.bool_)
    return np.where(flipped & readable, 1.0 - rewards, rewards)


def _uniform(seed: int, question: str) -> float:
    """A number in 0..1 (1 left out) that depends on its arguments alone, on every machine."""
    digest = hashlib.blake2b(f"{seed}:{question}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
