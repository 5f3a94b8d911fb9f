"""Reward `thurstone_fidelity`: quality scores that rank pictures as people do.

The formula is in `mmreason.rewards.rating_formulas`.

Shapes: N completions of the batch, over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

from mmreason.rewards import rating_formulas
from mmreason.rewards.answer_text import short_answer
from mmreason.rewards.numeric import parse_number
from mmreason.scoring import batch_reward


def _in_order(scale: tuple[float, float]) -> tuple[float, float]:
    if not scale[0] < scale[1]:
        raise ValueError("the scale is [lowest, highest], lowest first, such as [1, 5]")
    return scale


Scale = Annotated[tuple[float, float], AfterValidator(_in_order)]


@batch_reward(range=(0.0, 1.002), source="VisualQuality-R1 (arXiv 2505.14460)")
def thurstone_fidelity(
    answer: list[str | None],
    target: list[Mapping[str, Any]],
    group: list[int],
    dataset: list[str],
    columns: list[Mapping[str, Any]],
    *,
    scale: Scale = (1.0, 5.0),
    dataset_column: str = "dataset_name",
) -> list[float | None]:
    """Does a score rank its picture rightly among the other pictures of the batch, given how sure the model is?

    Formula: for pictures `i` with scores `q_k(i)`, their mean `mu_i` and unbiased variance `var_i`,
    `p_k(i, j) = Phi((q_k(i) - mu_j) / sqrt(var_i + var_j + e))`, `p(i, j)` = 1, 0.5 or 0 as the people's score of `i` is
    above, equal to or below that of `j`, and the reward the mean over the other pictures `j` of
    `sqrt(p p_k + e) + sqrt((1 - p)(1 - p_k) + e)`, with `e = 1e-6`. Range 0..1.0011.

    Pictures are compared within their data set only, whose people's scores may have any scale: the one that the row's
    column `dataset_column` names, or the row's task or file. An answer that is not one number within
    `scale` is worth 0 and enters no mean and no variance. A batch must hold several prompts
    (`rollout.prompts_per_step`); where all scores are the same, the reward is too.

    Args:
        answer: one number; several, or none, are no score.
        target: `{"score": people's mean score}`.
        group: number of each completion's picture.
        dataset: the row's task or file.
        columns: looked through for `dataset_column`.
        scale: smallest and largest score that counts.
        dataset_column: column with the name of the data set, for files that mix several.

    Returns:
        N rewards; `None` for rows without a people's score, and where there is no other picture to compare with.
    """
    opinions = [_opinion(wanted) for wanted in target]
    rated = [row for row, opinion in enumerate(opinions) if opinion is not None]
    values: list[float | None] = [None] * len(answer)
    found = rating_formulas.thurstone_fidelity(
        np.array([_score(answer[row]) for row in rated], dtype=np.float64),
        np.array([group[row] for row in rated], dtype=np.int64),
        np.array([opinions[row] for row in rated], dtype=np.float64),
        [str(columns[row].get(dataset_column, dataset[row])) for row in rated],
        lowest=scale[0],
        highest=scale[1],
    )
    for row, value in zip(rated, found, strict=True):
        values[row] = None if math.isnan(value) else float(value)
    return values


def _opinion(target: Mapping[str, Any]) -> float | None:
    """The people's score; `None` if the row has none."""
    score = target.get("score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"target['score']={score!r:.80} is no finite number")
    return float(score)


def _score(answer: str | None) -> float:
    """The score that an answer gives; NaN for none."""
    said = short_answer(answer)
    number = None if said is None else parse_number(said)
    # Beyond every scale, and beyond floats.
    return math.nan if number is None or abs(number) > 10**9 else float(number)
