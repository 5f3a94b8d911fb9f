"""Losses that replace the policy gradient: TRPA's preference levels, DPO for steps of a turn, and filtered likelihood.

What enters: per-token log-probs of sampled (or given) completions and what they are worth. What leaves: a scalar to
minimise, with what there is to log. Each can be divided by what the whole optimizer step holds, so that micro-batches
add up to it; TRPA compares completions of a group, so its micro-batches hold whole groups, and split ones are refused.

Legend of shapes: N completions, C columns, P pairs. `log_probs` and `mask` (1 = token counts) are `[N, C]`, `group` and
`level` are `[N]` long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmreason.objectives.tokens import (
    at_least_float32,
    check_shapes,
    divided,
    k3_kl_per_token,
    masked_mean,
    sequence_mean,
    sequence_sum,
)

#: TRPA's preference levels, best first.
RIGHT, WRONG, UNREADABLE, BAD_FORM = 1, 2, 3, 4


class TRPALoss(NamedTuple):
    """`loss = preference + kl_coefficient * kl`, the scalar to minimise, and what there is to log.

    Attributes:
        loss: with gradient.
        preference: the pair (and fallback) part, detached, divided as in the loss.
        kl: to the sampling policy, detached, divided as in the loss.
        num_pairs: pairs compared.
        num_fallback_groups: groups of which all completions have one level.
        ranked_right: share of the pairs whose better completion scores higher; NaN without pairs.
    """

    loss: Tensor
    preference: Tensor
    kl: Tensor
    num_pairs: int
    num_fallback_groups: int
    ranked_right: float


def preference_levels(has_form: Tensor, has_answer: Tensor, correct: Tensor) -> Tensor:
    """`[N]` long levels of TRPA from three bool `[N]`, best first.

    1 good form and right; 2 good form and wrong; 3 good form, answer missing or unreadable; 4 bad form.
    """
    check_shapes(has_form=has_form, has_answer=has_answer, correct=correct)
    answered = torch.where(correct, RIGHT, WRONG)
    return torch.where(has_form, torch.where(has_answer, answered, UNREADABLE), BAD_FORM)


def preference_pairs(level: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (better, worse) within groups: two `[P]` long tensors of row numbers.

    Levels (1, 1, 2, 3) of one group give 5 pairs. Takes memory for N² flags.
    """
    check_shapes(level=level, group=group)
    better = (group.unsqueeze(1) == group) & (level.unsqueeze(1) < level)
    winner, loser = better.nonzero(as_tuple=True)
    return winner, loser


def trpa_loss(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    sampling_log_probs: Tensor,
    mask: Tensor,
    level: Tensor,
    group: Tensor,
    group_size: int,
    beta: float = 0.1,
    kappa: float = 2.5,
    kl_coefficient: float = 1e-3,
    num_groups: Tensor | float | None = None,
    num_tokens: Tensor | float | None = None,
) -> TRPALoss:
    """TRPA: within each group, completions of a better level should score above those of a worse one.

        s(y) = mean over tokens of (log_probs - ref_log_probs)
        h    = κ β (s(w) - s(l)),  κ = `kappa` if w has level 1, else 1
        preference of a group = mean over its pairs of -log σ(h)
        ... without a pair    = mean over its completions of -log σ(+s) at level 1, -log σ(-s) at the others
        kl   = mean over tokens of k3(log_probs; sampling_log_probs)
        loss = Σ over groups of preference / num_groups + kl_coefficient * kl

    All parts are 0 or more and added. Each group weighs the same, whatever its number of pairs (the source leaves open
    how groups are joined). A completion without a counted token takes part in nothing; a group of such adds 0.

    The released code makes pairs inside micro-batches, after sequences were re-balanced over them, and so loses pairs.
    Here every group must be whole.

    Args:
        log_probs: `[N, C]`, with gradient.
        ref_log_probs: `[N, C]` of the fixed reference.
        sampling_log_probs: `[N, C]` of the policy that wrote the completions.
        mask: `[N, C]`.
        level: `[N]` in 1..4, see `preference_levels`.
        group: `[N]`.
        group_size: completions that every group has.
        beta: β.
        kappa: κ.
        kl_coefficient: of the trust region.
        num_groups: groups of the whole optimizer step; by default of this batch.
        num_tokens: counted tokens of the whole optimizer step; by default of this batch.

    Raises:
        ValueError: a split group, a level outside 1..4, or shapes that differ.

    Source: TRPA (arXiv 2504.04524) and its released code.
    """
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs, sampling_log_probs=sampling_log_probs, mask=mask)
    check_shapes(level=level, group=group, rows=mask[:, 0])
    if ((level < RIGHT) | (level > BAD_FORM)).any():
        raise ValueError(f"levels must be 1 (best) to 4, not {sorted(set(level.tolist()))}")
    index, present = _whole_groups(group, group_size)
    score = sequence_mean(at_least_float32(log_probs) - at_least_float32(ref_log_probs.detach()), mask)
    live = mask.bool().any(dim=1)

    winner, loser = preference_pairs(level, group)
    both = live[winner] & live[loser]
    winner, loser = winner[both], loser[both]
    gap = score[winner] - score[loser]
    strength = torch.where(level[winner] == RIGHT, kappa * beta, beta)
    pairs_of = torch.bincount(index[winner], minlength=present)
    terms = (softplus(-strength * gap) / pairs_of[index[winner]]).sum()

    alone = live & (pairs_of[index] == 0)
    size_of = torch.bincount(index[alone], minlength=present)
    sign = torch.where(level[alone] == RIGHT, 1.0, -1.0).to(score.dtype)
    terms = terms + (softplus(-sign * score[alone]) / size_of[index[alone]]).sum()

    preference = divided(terms, present if num_groups is None else num_groups)
    per_token = k3_kl_per_token(log_probs, sampling_log_probs.detach())
    kl = masked_mean(per_token, mask, "token", num_tokens)
    return TRPALoss(
        loss=preference + kl_coefficient * kl,
        preference=preference.detach(),
        kl=kl.detach(),
        num_pairs=len(winner),
        num_fallback_groups=int((size_of > 0).sum()),
        ranked_right=float((gap > 0).float().mean()) if len(winner) else math.nan,
    )


class PairLogProbs(NamedTuple):
    """Log-probs of P pairs, each summed over the counted tokens of its turn (`sequence_sum`): four `[P]`.

    Chosen and rejected need not share a prompt: VisRL's answer turns each carry their own crop.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor


def dpo_loss(pairs: PairLogProbs, beta: float = 0.1, num_pairs: Tensor | float | None = None) -> Tensor:
    """DPO, sigmoid form: `-log σ(β [(lp - lp_ref) of chosen - (lp - lp_ref) of rejected])`, mean over pairs.

    Minimised; 0..∞, and log 2 where the policy is the reference. Pushes the chosen up and the rejected down.

    Args:
        pairs: sums of log-probs, `[P]` each; the reference's are constants.
        beta: β.
        num_pairs: pairs of the whole optimizer step; by default of this batch.

    Returns:
        A scalar, 0 without pairs.

    Source: DPO (arXiv 2305.18290), as in VisRL (arXiv 2503.07523). lp -10 (reference -12) against -11 (-9) at β .1:
    0.513015.
    """
    check_shapes(**pairs._asdict())
    chosen = at_least_float32(pairs.chosen) - pairs.ref_chosen.detach()
    rejected = at_least_float32(pairs.rejected) - pairs.ref_rejected.detach()
    total = softplus(-beta * (chosen - rejected)).sum()
    return divided(total, len(pairs.chosen) if num_pairs is None else num_pairs)


def step_dpo_loss(
    steps: Mapping[str, PairLogProbs],
    weights: Mapping[str, float],
    beta: float = 0.1,
    num_pairs: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of DPO losses, one per step of a turn: `Σ weights[step] * dpo(step)`.

    VisRL trains with weights {"box": 1} first, then {"box": 0.5, "answer": 0.5}.

    Args:
        steps: pairs by step.
        weights: by step; every step needs a weight, every weight a step; finite, not negative.
        beta: β of all steps.
        num_pairs: pairs of the whole optimizer step (the same for all steps); by default of this batch.

    Returns:
        The loss, and the unweighted loss of each step, detached, to log.

    Raises:
        ValueError: steps and weights do not match, or there are none.

    Source: VisRL (arXiv 2503.07523) and its released code.
    """
    if not steps or set(steps) != set(weights):
        raise ValueError(f"steps {sorted(steps)} need exactly one weight each, there are weights for {sorted(weights)}")
    if not all(0 <= weight < math.inf for weight in weights.values()):
        raise ValueError(f"step weights must be finite and not negative: {dict(weights)}")
    losses = {name: dpo_loss(pairs, beta, num_pairs) for name, pairs in steps.items()}
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}


def filtered_nll(
    log_probs: Tensor,
    mask: Tensor,
    weights: Tensor,
    per_sequence: Literal["sum", "mean"] = "sum",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """SOPHIA's off-policy loss: `- Σ_i R_i Σ_t log_probs / denominator`, likelihood of what earned a reward.

    Minimised, 0..∞ for R >= 0; makes trajectories with R > 0 likelier. The importance ratio of trajectories that
    another model wrote counts as 1; no KL, no baseline.

    Args:
        log_probs: `[N, C]`.
        mask: `[N, C]`.
        weights: R, `[N]`, finite and not negative; SOPHIA's are 0 or 1.
        per_sequence: `sum` over a trajectory's tokens, as the formula says, or their `mean`, so that long ones weigh no
            more.
        denominator: trajectories of the whole optimizer step; by default the N of this batch, those with R = 0
            included, as the expectation has it. To average over kept ones, give their number.

    Raises:
        ValueError: shapes, a bad weight, or no such `per_sequence`.

    Source: SOPHIA (arXiv 2507.16814).
    """
    if weights.shape != mask.shape[:1]:
        raise ValueError(f"weights must be [{len(mask)}], not {list(weights.shape)}")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(
            "weights must be finite and not negative: a negative one would make its trajectory ever unlikelier"
        )
    if per_sequence not in ("sum", "mean"):
        raise ValueError(f"per_sequence must be 'sum' or 'mean', not {per_sequence!r}")
    reduced = (sequence_sum if per_sequence == "sum" else sequence_mean)(at_least_float32(log_probs), mask)
    # A trajectory that is filtered out may have log-probs of -inf.
    chosen = torch.where(weights > 0, reduced, torch.zeros_like(reduced))
    return -divided((weights.detach() * chosen).sum(), len(mask) if denominator is None else denominator)


def _whole_groups(group: Tensor, group_size: int) -> tuple[Tensor, int]:
    """`[N]` groups numbered from 0, and how many there are."""
    found, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    if (sizes != group_size).any():
        split = {int(g): int(n) for g, n in zip(found, sizes, strict=True) if n != group_size}
        shown = ", ".join(f"group {g}: {n}" for g, n in list(split.items())[:4])
        raise ValueError(
            f"TRPA compares whole groups of {group_size} completions, but this batch holds parts ({shown}): make the "
            "micro-batch a multiple of the group size and keep rows of a group together"
        )
    return index, len(found)
