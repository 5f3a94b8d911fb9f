"""Advantages of groups, and the weights by which prompts, completions or data sets count more or less.

What enters: rewards (or correctness flags) and group numbers over all completions of a step, gathered from all
processes: statistics of a part of a group are wrong statistics. What leaves: tensors `[N]`. A weight multiplies
advantages; being positive, it thereby multiplies the clipped policy term and leaves KL and entropy terms alone. Weights
are constants, without gradient. Nothing is random, no argument is changed.

Legend of shapes: N completions of a step; `group` is `[N]` long and numbers the prompt of each, in any order and with
any numbers. NaN stands for "not judged".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Scale: TypeAlias = Literal["group", "batch", "none"]
DifficultyKind: TypeAlias = Literal["exp", "power", "log"]

#: Added to the standard deviation; TRL's. EasyR1 and verl (PAPO's published runs) use 1e-6.
STD_EPSILON = 1e-4
#: Float errors of a mean of values in 0..1.
ROUNDING = 1e-6


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """`[N]` mean of each completion's group over what is judged there; NaN in a group without any.

    Of correctness flags (as floats) this is the pass rate.
    """
    index, num_groups = _group_index(values, group)
    return _group_mean(values.double(), index, num_groups)[index].to(values.dtype)


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """`[N]` sample standard deviation (n - 1) of each completion's group over what is judged; NaN below two."""
    index, num_groups = _group_index(values, group)
    values64 = values.double()
    squares = (values64 - _group_mean(values64, index, num_groups)[index]) ** 2
    count = torch.zeros(num_groups, device=values.device).double().index_add(0, index, (~values.isnan()).double())
    variance = _group_mean(squares, index, num_groups) * count / (count - 1)
    return torch.where(count > 1, variance, math.nan).sqrt()[index].to(values.dtype)


def group_advantages(rewards: Tensor, group: Tensor, scale: Scale = "group", eps: float = STD_EPSILON) -> Tensor:
    """How much better a completion is than its group.

        group:  (r - mean of group) / (std of group + eps)       GRPO
        batch:  (r - mean of group) / (std of all N + eps)
        none:   r - mean of group                                Dr. GRPO, ViCrit

    Standard deviations are of samples (n - 1). The same as TRL's `scale_rewards`: completions that are not judged (NaN)
    take no part in the statistics and get 0, as do groups with a single judged completion at scale `group`. Signed; the
    sum over a group is 0 within rounding. Computed in float64, so a group of equal rewards gets exactly 0.

    Args:
        rewards: `[N]`, NaN where a completion is not judged.
        group: `[N]` long.
        scale: what to divide by.
        eps: added to the standard deviation.

    Returns:
        `[N]` in the dtype of the rewards.

    Raises:
        ValueError: shapes, an infinite reward, or no such scale.

    Source: GRPO (arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783), TRL 1.16.
    """
    index, num_groups = _group_index(rewards, group)
    if rewards.isinf().any():
        raise ValueError("rewards must not be infinite; NaN stands for 'not judged'")
    values = rewards.double()
    advantages = values - _group_mean(values, index, num_groups)[index]
    if scale == "group":
        advantages = advantages / (group_std(values, group) + eps)
    elif scale == "batch":
        advantages = advantages / (group_std(values, torch.zeros_like(group)) + eps)
    elif scale != "none":
        raise ValueError(f"scale must be 'group', 'batch' or 'none', not {scale!r}")
    return advantages.nan_to_num(nan=0.0).to(rewards.dtype)


def difficulty_weight(mean: Tensor, kind: DifficultyKind = "exp", exponent: float = 1.0) -> Tensor:
    """Hard prompts count more: a falling function of the group's mean accuracy reward m, never negative.

        exp:    e^(1 - m)                   1..2.718, the released run
        power:  (1.05 - m)^exponent         .05..1.05 at exponent 1
        log:    max(0, -ln(0.02 + m))       0..3.912 (the released form turns negative above m = .98)

    The same for good and bad completions. m is of the accuracy reward alone (IoU in the paper), without format rewards,
    and of the group: the released code takes the mean over a device's batch, which is the same only with one group
    there. Standard normalisation by the group lifts very easy and very hard prompts alike; this comes on top.

    Args:
        mean: m, `[N]` from `group_mean` (any shape works); NaN (nothing judged) gets weight 1.
        kind: shape of the function.
        exponent: of `power`, > 0.

    Returns:
        Weights, of the shape of `mean`.

    Raises:
        ValueError: m outside 0..1, no such kind, or an exponent that is not positive.

    Source: UniVG-R1 (arXiv 2505.14231) and its released code.
    """
    known = mean[~mean.isnan()]
    if ((known < -ROUNDING) | (known > 1 + ROUNDING)).any():
        raise ValueError(
            f"difficulty_weight needs group means of a reward in 0..1, not {known.min():.4g}..{known.max():.4g}: "
            "weigh by an accuracy or IoU reward, not by a sum of rewards"
        )
    m = mean.clamp(0.0, 1.0)
    if kind == "exp":
        weight = torch.exp(1.0 - m)
    elif kind == "power":
        if exponent <= 0:
            raise ValueError(f"exponent must be positive, not {exponent}")
        weight = (1.05 - m) ** exponent
    elif kind == "log":
        weight = (-torch.log(0.02 + m)).clamp(min=0.0)
    else:
        raise ValueError(f"kind must be 'exp', 'power' or 'log', not {kind!r}")
    return weight.nan_to_num(nan=1.0)


def pass_rate_curve(
    pass_rate: Tensor, low: float = 0.4, high: float = 1.5, midpoint: float = 0.75, steepness: float = 10.0
) -> Tensor:
    """GRPO-LEAD's logistic: `low + (high - low) / (1 + exp(steepness (u - midpoint)))`, falling from `high` to `low`.

    1.4994, 1.4926, 1.4166, .95, .645, .4834 at u = 0, .25, .5, .75, .875, 1.
    """
    return low + (high - low) * torch.sigmoid(-steepness * (pass_rate - midpoint))


def pass_rate_weight(
    advantages: Tensor,
    pass_rate: Tensor,
    low: float = 0.4,
    high: float = 1.5,
    midpoint: float = 0.75,
    steepness: float = 10.0,
) -> Tensor:
    """Rare successes and rare failures count more: with the curve w, `w(p)` where A > 0, `w(1 - p)` where A < 0.

    The asymmetry is the point: on a hard prompt (p small) right completions weigh up to `high` and wrong ones near
    `low`; on an easy prompt the wrong ones weigh most. 1 where A = 0, and where p is NaN. Range low..high.

    Args:
        advantages: `[N]`; only the sign is looked at.
        pass_rate: p, `[N]`, from `group_mean` of correctness flags (not of shaped rewards).
        low, high, midpoint, steepness: of the curve; 0 < low <= high.

    Returns:
        `[N]` weights.

    Raises:
        ValueError: shapes differ, p outside 0..1, or a curve that is not of this form.

    Source: GRPO-LEAD, its released code.
    """
    if advantages.shape != pass_rate.shape:
        raise ValueError(f"advantages {list(advantages.shape)} and pass_rate {list(pass_rate.shape)} differ in shape")
    if not (0 < low <= high and steepness > 0):
        raise ValueError(f"the curve needs 0 < low <= high and steepness > 0, not {low}, {high}, {steepness}")
    if ((pass_rate < -ROUNDING) | (pass_rate > 1 + ROUNDING)).any():
        raise ValueError("pass_rate must lie in 0..1: take the group mean of correctness flags")
    right = pass_rate_curve(pass_rate, low, high, midpoint, steepness)
    wrong = pass_rate_curve(1.0 - pass_rate, low, high, midpoint, steepness)
    weight = torch.where(advantages > 0, right, torch.where(advantages < 0, wrong, 1.0))
    return weight.nan_to_num(nan=1.0)


def mean_one(weights: Tensor) -> Tensor:
    """Weights of mean 1 over the step, which keeps the effective step size; all-zero weights stay zero.

    Not part of the papers, whose weights are used as they are. Give it all completions of the step.
    """
    mean = weights.mean()
    return weights / torch.where(mean > 0, mean, torch.ones_like(mean))


def dataset_weight(names: Sequence[str], weights: Mapping[str, float], default: float = 1.0) -> Tensor:
    """`[N]` weight of each completion by the data set of its row: `weights[name]`, or `default` if it is not listed.

    Raises:
        ValueError: a weight that is negative or not finite.
    """
    bad = {name: value for name, value in {**weights, "default": default}.items() if not 0 <= value < math.inf}
    if bad:
        raise ValueError(f"data set weights must be finite and not negative: {bad}")
    return torch.tensor([weights.get(name, default) for name in names], dtype=torch.float32)


def informative_groups(rewards: Tensor, group: Tensor, tolerance: float = 1e-6) -> Tensor:
    """`[N]` bool: does the completion's group hold rewards that differ by more than `tolerance`?

    A group that does not has advantages 0 and teaches nothing. For correctness flags this is 0 < p < 1.
    Rewards that are not judged (NaN) are left out.
    """
    index, num_groups = _group_index(rewards, group)
    values = rewards.double()
    extreme = torch.full((num_groups,), math.inf, dtype=values.dtype, device=values.device)
    lowest = extreme.scatter_reduce(0, index, values.nan_to_num(nan=math.inf), "amin")
    highest = (-extreme).scatter_reduce(0, index, values.nan_to_num(nan=-math.inf), "amax")
    return (highest - lowest > tolerance)[index]


def pass_rate_band(correct: Tensor, group: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """`[N]` bool: is the group's mean strictly between `low` and `high`? DAPO's filter for dynamic sampling.

    0 and 1 are the paper's (some right, some wrong; arXiv 2503.14476); PAPO's runs on DAPO use .01 and .99. A group
    without a judged completion is out.

    Args:
        correct: `[N]` 0 or 1, or an accuracy in 0..1, as floats; NaN where it cannot be judged.
        group: `[N]` long.
        low, high: bounds, both excluded, low < high.
    """
    if not low < high:
        raise ValueError(f"low must be below high, not {low} and {high}")
    mean = group_mean(correct, group)
    return (mean > low) & (mean < high)


def _group_index(values: Tensor, group: Tensor) -> tuple[Tensor, int]:
    """`[N]` groups numbered from 0, and how many there are."""
    if values.dim() != 1 or values.shape != group.shape:
        raise ValueError(f"values {list(values.shape)} and group {list(group.shape)} must both be [N]")
    if not values.is_floating_point():
        raise ValueError(f"values must be floats (NaN stands for 'not judged'), not {values.dtype}")
    found, index = torch.unique(group, return_inverse=True)
    return index, len(found)


def _group_mean(values: Tensor, index: Tensor, num_groups: int) -> Tensor:
    """`[num_groups]` means over what is not NaN; NaN where there is nothing."""
    known = ~values.isnan()
    zeros = torch.zeros(num_groups, dtype=values.dtype, device=values.device)
    total = zeros.index_add(0, index, torch.where(known, values, 0.0))
    return total / zeros.index_add(0, index, known.to(values.dtype))
