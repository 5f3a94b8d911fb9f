"""What losses over completions are made of: sums and means over counted tokens, and the usual KL estimate.

What enters: per-token values and the mask of the tokens that count. What leaves: values per sequence, or one number
that can be divided by what a whole optimizer step counts, so that micro-batches add up.

Legend of shapes: N completions, C columns; `mask` is `[N, C]`, 1 (or True) where a token counts. Values under a 0 of
the mask are never looked at. Logarithms are natural.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

#: Each token weighs the same, or each sequence does.
Level: TypeAlias = Literal["token", "sequence"]


def check_shapes(**tensors: Tensor) -> None:
    """Refuse tensors over the same tokens that differ in shape, which torch might stretch silently."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these must have one shape: {found}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is already: exponentials of 16-bit log-probs are too coarse."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """`[N]` sum over the counted tokens of each sequence; 0 for a sequence without any."""
    check_shapes(values=values, mask=mask)
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum(dim=1)


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """`[N]` mean over the counted tokens of each sequence; 0 for a sequence without any."""
    return sequence_sum(values, mask) / mask.bool().sum(dim=1).clamp(min=1)


def divided(total: Tensor, denominator: Tensor | float) -> Tensor:
    """`total / denominator`; a step that counts nothing (denominator 0) has a sum of 0, and 0 comes out."""
    by = torch.as_tensor(denominator, dtype=total.dtype, device=total.device)
    return total / torch.where(by > 0, by, torch.ones_like(by))


def masked_mean(
    values: Tensor, mask: Tensor, level: Level = "token", denominator: Tensor | float | None = None
) -> Tensor:
    """Mean over counted tokens.

        token:     Σ_i Σ_t m v / denominator, by default the counted tokens of this batch
        sequence:  Σ_i (Σ_t m v / |o_i|) / denominator, by default the N sequences of this batch

    Sign and range are those of the values. A sequence without a counted token adds 0 and, at level `sequence`, still
    counts as one of the N.

    Args:
        values: `[N, C]`.
        mask: `[N, C]`.
        level: what weighs the same.
        denominator: tokens (or sequences) of the whole optimizer step. With it, the results of micro-batches add up to
            that of the step, however the rows are split; divide by no number of accumulation steps then.

    Returns:
        A scalar, 0 where nothing counts.

    Raises:
        ValueError: shapes differ, or no such level.
    """
    if level == "token":
        total, default = sequence_sum(values, mask).sum(), mask.bool().sum()
    elif level == "sequence":
        total, default = sequence_mean(values, mask).sum(), torch.tensor(len(values))
    else:
        raise ValueError(f"level must be 'token' or 'sequence', not {level!r}")
    return divided(total, default if denominator is None else denominator)


def k3_kl_per_token(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """KL(policy ‖ other) at the policy's own samples, Schulman's k3: `exp(x) - x - 1`, `x = other - log_probs`.

    The same as TRL's KL to the reference, without clamps. Range 0..∞, 0 where both agree; added to a loss it pulls the
    policy towards the other. Its gradient is `1 - exp(x)` in `log_probs`, `exp(x) - 1` in the other.

    Args:
        log_probs: `[N, C]` of the tokens under the policy.
        other_log_probs: `[N, C]` under the other policy.

    Returns:
        `[N, C]`, at least float32.
    """
    check_shapes(log_probs=log_probs, other_log_probs=other_log_probs)
    log_ratio = at_least_float32(other_log_probs) - at_least_float32(log_probs)
    return torch.expm1(log_ratio) - log_ratio
