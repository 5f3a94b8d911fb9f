"""How well answered scores order the pictures: Spearman's and Pearson's correlation over an evaluation.

What enters: rollouts whose targets hold a `score`, or pairs of numbers. What leaves: a `ScoreCorrelation` for each data set. Scores
of different data sets stand on different scales, so they are never correlated together; the figure to quote for several is the mean.
The measures are those of VisualQuality-R1 (arXiv 2505.14460): SRCC and PLCC.

Legend of shapes: N answers that hold a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr

from mmreason.records import Rollout
from mmreason.rewards.answer_text import short_answer
from mmreason.rewards.numeric import parse_number


@dataclass(frozen=True, slots=True)
class ScoreCorrelation:
    """Agreement of answered with true scores.

    Attributes:
        srcc: Spearman's rank correlation, -1 to 1; NaN below two answers, or where all answers or all scores are equal.
        plcc: Pearson's linear correlation, as `srcc`.
        n: answers that hold a number.
        unread: answers that hold none; they are left out of both.
    """

    srcc: float
    plcc: float
    n: int
    unread: int = 0


def correlate(answered: Sequence[float], true: Sequence[float]) -> ScoreCorrelation:
    """Correlations of `N` answered scores with `N` true ones; a NaN among the answers counts as unread.

    Raises:
        ValueError: the two differ in length, or a true score or an answer is infinite, or a true score is NaN.
    """
    given, wanted = np.asarray(answered, np.float64), np.asarray(true, np.float64)
    if given.shape != wanted.shape or given.ndim != 1:
        raise ValueError(f"{given.shape} answered and {wanted.shape} true scores: give as many of each, in one row")
    if not np.isfinite(wanted).all() or np.isinf(given).any():
        raise ValueError("true scores must be finite numbers, and answers finite or NaN")
    read = ~np.isnan(given)
    given, wanted = given[read], wanted[read]
    unread = int((~read).sum())
    if len(given) < 2 or np.ptp(given) == 0 or np.ptp(wanted) == 0:
        return ScoreCorrelation(math.nan, math.nan, len(given), unread)
    srcc, plcc = spearmanr(given, wanted).statistic, pearsonr(given, wanted).statistic
    return ScoreCorrelation(float(srcc), float(plcc), len(given), unread)


def score_correlations(rollouts: Iterable[Rollout]) -> dict[str, ScoreCorrelation]:
    """Data set -> correlation of the answers with `target["score"]`; rollouts without a score are left out.

    Takes the rollouts of an `EvalResult`, or those that `mmreason.rescoring` reads back from `rollouts.jsonl`.
    """
    answered: dict[str, list[float]] = {}
    true: dict[str, list[float]] = {}
    for rollout in rollouts:
        score = rollout.row.target.get("score")
        if score is None:
            continue
        said = short_answer(rollout.answer)
        number = None if said is None else parse_number(said)
        answered.setdefault(rollout.row.dataset, []).append(math.nan if number is None else float(number))
        true.setdefault(rollout.row.dataset, []).append(float(score))
    return {name: correlate(answered[name], true[name]) for name in sorted(true)}
