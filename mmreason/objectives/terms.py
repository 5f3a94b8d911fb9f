"""The built-in loss terms; each is added to the policy loss with its coefficient.

What enters: tensors of one micro-batch (`LOSS_NEEDS`). What leaves: a `Term`. The formulas are in `mmreason.objectives.perception`;
torch is imported when a term is worked out, so that a configuration is checked without it.

Legend of shapes: n rows of a micro-batch, C columns of completions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mmreason.objectives.registry import Term, loss_term

if TYPE_CHECKING:
    import torch

    Mean = Callable[[torch.Tensor], torch.Tensor]

_PAPO = "PAPO (arXiv 2507.06448)"
_Positive = Annotated[float, Field(gt=0.0)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]


@loss_term(source=_PAPO)
def perception_kl(
    log_probs: torch.Tensor,
    masked_log_probs: torch.Tensor,
    mask: torch.Tensor,
    mean: Mean,
    sequence_mean: Mean,
    *,
    kind: Literal["k3", "plain"] = "k3",
    level: Literal["token", "sequence"] = "token",
    log_ratio_clamp: _Positive = 20.0,
    value_clamp: _Positive = 10.0,
    top_share: _Share = 1.0,
) -> Term:
    """Minus the divergence between seeing and not seeing the images: the policy is pushed to use what it sees.

    `- mean K`, K of `perception_kl_per_token` with the images masked as `objective.mask` says. Published coefficients: 0.01 to 0.02;
    far above that training collapses (`objective.guard`). 0, with no gradient, where masking changes nothing.

    Args:
        kind: estimator; k3 as in the published runs, or the plain difference of log-probs.
        level: mean over all tokens of the step, or over completions.
        log_ratio_clamp: bound of the log-ratio, nats.
        value_clamp: bound of K, nats.
        top_share: share of each completion's tokens that count, those of highest K; the mean still divides by all.
    """
    from mmreason.objectives.perception import keep_top_quantile, perception_kl_per_token

    divergence = perception_kl_per_token(log_probs, masked_log_probs, kind, log_ratio_clamp, value_clamp)
    kept = keep_top_quantile(divergence, mask, top_share) if top_share < 1.0 else divergence
    seen = divergence.detach()
    return Term(
        -(mean if level == "token" else sequence_mean)(kept), {"kl": mean(seen), "kl_squared": mean(seen.square())}
    )


@loss_term(source=_PAPO)
def double_entropy(
    log_probs: torch.Tensor,
    masked_log_probs: torch.Tensor,
    entropies: torch.Tensor,
    masked_entropies: torch.Tensor,
    mean: Mean,
    *,
    original: Annotated[float, Field(ge=0.0)] = 1.0,
    masked: Annotated[float, Field(ge=0.0)] = 1.0,
    form: Literal["sampled", "full"] = "sampled",
) -> Term:
    """Entropy with the images and with masked images, both pushed down; keeps the perception term from collapse.

    `original * H + masked * H_masked`, times the coefficient (published: 0.03 to 0.05). H is minus the mean log-prob of the
    sampled tokens (`sampled`, as released), or the entropy over the whole vocabulary (`full`). The masked part moves no weights
    unless `objective.mask.gradient=true`: as released, it is measured only.

    Args:
        original: factor of the entropy with the images.
        masked: factor of the entropy with masked images.
        form: how entropy is measured.
    """
    sampled, unseen = -mean(log_probs), -mean(masked_log_probs)
    if form == "full":
        sampled, unseen = mean(entropies), mean(masked_entropies)
    return Term(original * sampled + masked * unseen, {"entropy": sampled.detach(), "masked_entropy": unseen.detach()})


@loss_term(source=f"{_PAPO}, an option of its released code")
def nll_on_correct(log_probs: torch.Tensor, correct_mean: Mean) -> Term:
    """Negative log-likelihood of the completions that are correct (`reward.correct`); published coefficient: 0.001.

    `- mean log_probs` over the tokens of correct completions, 0 where none is.
    """
    nll = -correct_mean(log_probs)
    return Term(nll, {"nll": nll.detach()})
