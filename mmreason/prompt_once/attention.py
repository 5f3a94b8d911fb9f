"""One attention function, registered with transformers under its own name, that understands packed rows.

What enters: queries, keys and values of one layer, and, as the forward keyword `prompt_once`, what the
keys belong to: a packed row, or a generation that keeps its own keys.
What leaves: the layer's attention output. Without the keyword it is the stock function, so that evaluation, generation
with transformers and other callers are as before.

Tiers (see `tiers.py` for how one is chosen): `varlen` (flash kernels of the torch wheel, CUDA), `triton` (our prefix kernel),
`sdpa` (any device), `dense` (a `[T, T]` mask, the oracle of the tests).

Legend of shapes: T tokens, Hq and Hkv heads of queries and keys, D head size, N suffixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mmreason.prompt_once.layout import PackedLayout
from mmreason.prompt_once.varlen import gather_keys

#: The name in transformers' registry. It must not contain "flash", which transformers takes for its own kernels.
ATTENTION_NAME = "mmreason_prompt_once"


class Tier(Protocol):
    """Attention of a packed row: `q [T, Hq, D]`, `k` and `v [T, Hkv, D]` to `[T, Hq, D]`."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float
    ) -> torch.Tensor: ...


def sdpa_tier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
    """Two kinds of padded SDPA calls: prefixes causally, suffixes over the gathered keys of prefix and self."""
    calls = layout.padded(q.device)
    gqa = q.shape[1] != k.shape[1]
    parts: list[torch.Tensor] = []
    for prefix in calls.prefixes:
        qp, kp, vp = (_rows(x, prefix.index) for x in (q, k, v))
        out = scaled_dot_product_attention(qp, kp, vp, is_causal=True, scale=scale, enable_gqa=gqa)
        parts.append(out.transpose(1, 2).flatten(0, 1)[prefix.real])
    for call in calls.suffixes:
        qs, ks, vs = _rows(q, call.queries), _rows(k, call.keys), _rows(v, call.keys)
        out = scaled_dot_product_attention(qs, ks, vs, attn_mask=call.mask, scale=scale, enable_gqa=gqa)
        parts.append(out.transpose(1, 2).flatten(0, 1)[call.real])
    return torch.cat(parts)[calls.back]


def _rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`[T, H, D]` gathered by `[N, L]` to `[N, H, L, D]`; shared keys add up their gradients in float32."""
    return gather_keys(x, index.flatten()).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def dense_tier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
    """One SDPA call with a `[T, T]` mask: simple, right, and quadratic in the length of the row."""
    qt, kt, vt = (x.transpose(0, 1)[None] for x in (q, k, v))
    mask = layout.dense_mask(q.device)
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(qt, kt, vt, attn_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


class Forward(Protocol):
    """What one forward of the model with the keyword `prompt_once` is about.

    Attributes:
        image_index: for each image of the input in order of its placeholders, which of the encoded images it is; None = the
            encoded images are the input's, in order.
        scored: `[n]` positions whose hidden states are needed at the end; None = all.
    """

    @property
    def image_index(self) -> tuple[int, ...] | None: ...

    @property
    def scored(self) -> torch.Tensor | None: ...

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """`q [B, Hq, T, D]`, `k` and `v [B, Hkv, T, D]` to `[B, T, Hq, D]`."""
        ...


@dataclass(frozen=True)
class PackedForward:
    """One packed row through the model, with gradients or without."""

    layout: PackedLayout
    tier: Tier
    image_index: tuple[int, ...] | None = None
    scored: torch.Tensor | None = None

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        del layer
        if q.shape[0] != 1 or q.shape[2] != self.layout.num_tokens:
            raise ValueError(f"queries of shape {tuple(q.shape)} are no packed row of {self.layout.num_tokens} tokens")
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return self.tier(q, k, v, self.layout, scale)[None]


def prompt_once_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prompt_once: Forward | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function behind `ATTENTION_NAME`: stock SDPA, or what the `prompt_once` keyword asks for."""
    if prompt_once is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return cast(torch.Tensor, output), None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return prompt_once.attend(int(module.layer_idx), query, key, value, scale), None


def register() -> None:
    """Make the name known to transformers; its masks are SDPA's."""
    AttentionInterface.register(ATTENTION_NAME, prompt_once_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


register()
