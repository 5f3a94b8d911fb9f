"""The built-in advantage transforms: weights of whole groups, tokens of one completion all alike.

What enters: the advantages of a step over all processes, with what is known of the completions (`ADVANTAGE_NEEDS`). What leaves: new
advantages. The formulas are in `mmreason.objectives.advantages`; torch is imported when a transform runs.

Legend of shapes: N completions of the step over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmreason.objectives.registry import advantage

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float64]


@advantage(source="UniVG-R1 (arXiv 2505.14231)")
def difficulty_weight(
    advantages: FloatArray,
    group: NDArray[np.int64],
    values: Mapping[str, FloatArray],
    *,
    reward: str = "iou",
    kind: Literal["exp", "power", "log"] = "exp",
    exponent: Annotated[float, Field(gt=0.0)] = 1.0,
    mean_one: bool = False,
) -> FloatArray:
    """Hard prompts count more: advantages times a falling function of the group's mean of one reward.

    `exp(1 - m)`, `(1.05 - m)^exponent` or `-ln(0.02 + m)`, never negative; on the policy term only, the KL term is not weighed.

    Args:
        reward: a reward of the run in 0..1 that says how well the group does (IoU in the paper), without form.
        kind: the function.
        exponent: of `power`.
        mean_one: divide the weights by their mean over the step, which keeps the step size.
    """
    from mmreason.objectives import advantages as formulas

    def weight(told: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        found = formulas.difficulty_weight(formulas.group_mean(told, groups), kind, exponent)
        return formulas.mean_one(found) if mean_one else found

    return advantages * _worked_out(weight, values[reward], group)


@advantage(source="GRPO-LEAD, its released code")
def pass_rate_weight(
    advantages: FloatArray,
    group: NDArray[np.int64],
    correct: FloatArray,
    *,
    low: Annotated[float, Field(gt=0.0)] = 0.4,
    high: Annotated[float, Field(gt=0.0)] = 1.5,
    midpoint: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75,
    steepness: Annotated[float, Field(gt=0.0)] = 10.0,
) -> FloatArray:
    """Rare successes and rare failures count more: w(p) where the advantage is positive, w(1 - p) where it is negative.

    w falls from `high` to `low` along a logistic curve in the group's share of correct completions p (`reward.correct`).

    Args:
        low: weight of what is common.
        high: weight of what is rare.
        midpoint: p at which the curve is half way.
        steepness: of the curve.
    """
    from mmreason.objectives import advantages as formulas

    def weight(told: torch.Tensor, groups: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
        return formulas.pass_rate_weight(signed, formulas.group_mean(told, groups), low, high, midpoint, steepness)

    return advantages * _worked_out(weight, correct, group, advantages)


@advantage()
def dataset_weight(
    advantages: FloatArray,
    dataset: Sequence[str],
    *,
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {},  # noqa: B006 - pydantic copies it
    default: Annotated[float, Field(ge=0.0)] = 1.0,
) -> FloatArray:
    """Advantages times the weight of the row's data set.

    Args:
        weights: data set (or task) -> weight: `objective.advantages.dataset_weight.weights.NAME=2`.
        default: weight of those that are not listed.
    """
    from mmreason.objectives import advantages as formulas

    found: FloatArray = formulas.dataset_weight(dataset, weights, default).double().numpy()
    return advantages * found


@advantage(source="DAPO (arXiv 2503.14476), the filter without the refill")
def pass_rate_band(
    advantages: FloatArray,
    group: NDArray[np.int64],
    correct: FloatArray,
    *,
    low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    high: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0,
) -> FloatArray:
    """Only groups whose share of correct completions (`reward.correct`) lies strictly between two bounds teach.

    Args:
        low: share at and below which a group is left out.
        high: share at and above which a group is left out.
    """
    from mmreason.objectives import advantages as formulas

    def kept(told: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        return formulas.pass_rate_band(told, groups, low, high)

    return advantages * _worked_out(kept, correct, group)


def _worked_out(formula: Callable[..., Any], *columns: NDArray[Any]) -> FloatArray:
    """The formula, which takes tensors, on numpy columns `[N]`."""
    import torch

    found: FloatArray = (
        formula(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns)).double().numpy()
    )
    return found
