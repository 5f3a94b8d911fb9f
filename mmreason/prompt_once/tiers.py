"""Which attention tier runs here: a probe of what is installed, a numeric self-check, and the choice.

What enters: a device, a dtype, and `policy.attention_tier`. What leaves: a `ChosenTier` with its name and the reasons why the
faster ones were passed over, as `mmreason doctor` and the metrics show them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmreason.errors import ModelError
from mmreason.prompt_once import varlen
from mmreason.prompt_once.attention import Tier, dense_tier, sdpa_tier
from mmreason.prompt_once.layout import PackedLayout

#: In order of preference. `triton` comes after `sdpa` until a benchmark on a GPU shows it ahead; see docs/performance.md.
ORDER = ("flash_attn", "varlen", "sdpa", "triton", "dense")
#: Largest error against float64 that the self-check lets pass, as a share of the largest output.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class ChosenTier:
    """The attention of packed rows.

    Attributes:
        name: one of `ORDER`.
        attend: the function.
        passed_over: faster tier -> why it is not used.
    """

    name: str
    attend: Tier
    passed_over: dict[str, str]


def load(name: str) -> Tier:
    """The function of a tier; its kernels are imported only now."""
    if name == "triton":
        from mmreason.prompt_once.triton_kernel import triton_tier

        return triton_tier
    known: dict[str, Callable[[], Tier]] = {
        "varlen": lambda: varlen.varlen_tier,
        "flash_attn": lambda: varlen.flash_attn_tier,
        "sdpa": lambda: sdpa_tier,
        "dense": lambda: dense_tier,
    }
    return known[name]()


def choose(
    device: torch.device, dtype: torch.dtype, wanted: str = "auto", num_heads: int = 4, head_dim: int = 64
) -> ChosenTier:
    """The first tier in `ORDER` that runs here and is right, or the one that is wanted.

    Raises:
        ModelError: the tier that is wanted does not run here, or gives wrong numbers.
    """
    why_not = varlen.available(device, dtype)
    passed: dict[str, str] = {}
    for name in ORDER if wanted == "auto" else (wanted,):
        reason = why_not[name] or self_check(name, device, dtype, num_heads, head_dim)
        if reason is None:
            return ChosenTier(name, load(name), passed)
        passed[name] = reason
    if wanted == "auto":
        raise ModelError(f"no attention tier runs on {device}: {passed}")
    raise ModelError(
        f"policy.attention_tier={wanted} cannot be used here: {passed[wanted]}. Use policy.attention_tier=auto."
    )


def self_check(name: str, device: torch.device, dtype: torch.dtype, num_heads: int, head_dim: int) -> str | None:
    """Compare a tier's output and gradients with float64 on a small packed row; returns what is wrong."""
    layout = PackedLayout([5, 19], [[3, 1, 7], [4, 4]])
    generator = torch.Generator().manual_seed(0)
    shape = (layout.num_tokens, num_heads, head_dim)
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    wanted = _outputs(dense_tier, exact, layout)
    try:
        found = _outputs(load(name), [x.to(device, dtype) for x in exact], layout)
    except (RuntimeError, TypeError, ValueError, ImportError) as refusal:
        # Kernels of other packages and of other releases refuse in many ways; the next tier is tried, and this is told.
        first = (str(refusal).strip().splitlines() or ["no message"])[0]
        return f"it does not run: {type(refusal).__name__}: {first}"
    for what, mine, right in zip(("output", "dq", "dk", "dv"), found, wanted, strict=True):
        error = float((mine.cpu().double() - right).abs().max() / right.abs().max())
        if not error <= TOLERANCE[dtype]:
            return f"its {what} is off by {error:.1e} of the largest value (self-check in {dtype})"
    return None


def _outputs(tier: Tier, tensors: list[torch.Tensor], layout: PackedLayout) -> list[torch.Tensor]:
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
        out = tier(q, k, v, layout, q.shape[-1] ** -0.5)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])]
