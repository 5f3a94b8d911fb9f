"""PAPO's terms: does it matter to the policy that it sees the picture? (arXiv 2507.06448, the released code's form.)

What enters: log-probs of the same completion tokens with the picture and with a masked one. What leaves: values per
token or one number, always the plain quantity, without coefficient and without the sign that it has in the loss. With
the coefficients γ (`perception_kl`), η1, η2 (entropies) and the annealing factor c, PAPO minimises

    policy loss + β · reference KL - γ c · mean K + η1 c · H + η2 c · H_mask

so K is pushed up and both entropies are pushed down.

Legend of shapes: N completions, C columns; `log_probs` and `mask` are `[N, C]`.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mmreason.objectives.tokens import at_least_float32, check_shapes

Estimator: TypeAlias = Literal["k3", "plain"]

LOG_RATIO_CLAMP = 20.0
VALUE_CLAMP = 10.0


def perception_kl_per_token(
    log_probs: Tensor,
    masked_log_probs: Tensor,
    kind: Estimator = "k3",
    log_ratio_clamp: float = LOG_RATIO_CLAMP,
    value_clamp: float = VALUE_CLAMP,
) -> Tensor:
    """K, an estimate of KL(policy with the picture ‖ policy with the masked picture), per token.

        x = clamp(masked_log_probs - log_probs, ±log_ratio_clamp)
        k3:     K = clamp(exp(x) - x - 1, ±value_clamp)     0..value_clamp, 0 where masking changes nothing
        plain:  K = log_probs - masked_log_probs            any sign, not clamped, as released

    PAPO *subtracts* γ · mean K from the loss. In `log_probs` the gradient of k3 is `1 - exp(x)`, and 0 where a clamp
    acts: at the defaults where x > 2.611 or x < -11.0. In the loss a token that the masked policy likes less is thus
    pushed up with weight at most γ, and one that it likes more is pushed down with weight γ (exp(x) - 1). The gradient
    of `plain` is 1 everywhere. The paper prints the inverse ratio; this is what its code does, and the valid k3
    estimate.

    Args:
        log_probs: `[N, C]` with the picture; carries the gradient.
        masked_log_probs: `[N, C]` with the masked picture. By default a constant, from a pass without gradient; if it
            requires gradients (recomputed in every micro-batch), they flow there too, as `exp(x) - 1`.
        kind: estimator. Parity with the published runs is k3.
        log_ratio_clamp: bound of |x|, for k3.
        value_clamp: bound of K, for k3. The released option "clamp K to 0..0.2" is `value_clamp=0.2`.

    Returns:
        `[N, C]`, at least float32.

    Raises:
        ValueError: shapes differ, no such estimator, or a clamp that is not positive.

    Source: PAPO (arXiv 2507.06448) and its released code.
    """
    check_shapes(log_probs=log_probs, masked_log_probs=masked_log_probs)
    log_ratio = at_least_float32(masked_log_probs) - at_least_float32(log_probs)
    if kind == "plain":
        return -log_ratio
    if kind != "k3":
        raise ValueError(f"kind must be 'k3' or 'plain', not {kind!r}")
    if not (log_ratio_clamp > 0 and value_clamp > 0):
        raise ValueError(f"clamps must be positive, not {log_ratio_clamp} and {value_clamp}")
    bounded = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    return (torch.expm1(bounded) - bounded).clamp(-value_clamp, value_clamp)


def keep_top_quantile(values: Tensor, mask: Tensor, share: float = 0.2) -> Tensor:
    """Zero all but the highest values of each sequence; a mean over them still divides by all its tokens.

    Kept are counted tokens with `value >= quantile(1 - share)` of the counted tokens of the same sequence (linear
    interpolation, ties kept). The threshold is a constant: gradients flow through the kept values alone.

    Args:
        values: `[N, C]`, usually K.
        mask: `[N, C]`; give the same, unchanged, to `masked_mean`.
        share: of the tokens to keep, 0 < share <= 1; 1 keeps all.

    Returns:
        `[N, C]`, 0 where not kept and where the mask is 0.

    Source: PAPO's released code, off by default.
    """
    check_shapes(values=values, mask=mask)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in 0 < share <= 1, not {share}")
    counted = mask.bool()
    known = torch.where(counted, at_least_float32(values.detach()), math.nan)
    threshold = torch.nanquantile(known, 1.0 - share, dim=1, keepdim=True)
    return torch.where(counted & (known >= threshold), values, torch.zeros_like(values))
