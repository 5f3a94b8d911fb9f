"""Attention of the vision tower over many windows in few calls.

What enters: queries, keys and values of all patches of a batch of pictures, and where each window or picture begins. What
leaves: the attention output. The towers' own path calls SDPA once for every window, 1,792 times for one picture of 1,024
tokens; here windows of equal length go into one call, and on CUDA in 16 bits all of them go into one ragged flash kernel.

Legend of shapes: T patches of the batch, W windows, L patches of a window, H heads, D head size.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mmreason.prompt_once import varlen

#: The towers hand over all windows at once only to an attention with "flash" in its name. It is set on the tower's config
#: itself, because `set_attn_implementation` would look for the flash-attn package.
WINDOW_ATTENTION_NAME = "mmreason_windows_in_flash_form"


def window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`[1, H, T, D]` to `[1, T, H, D]`: patches attend within their window, both ways."""
    del module, attention_mask, kwargs
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if ragged_problem(q.device, q.dtype) is None:
        return varlen.window_kernel(q, k, v, cu_seq_lens_q, int(max_length_q), scale)[None], None
    return _by_length(q, k, v, cu_seq_lens_q, scale)[None], None


@functools.cache
def ragged_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the ragged kernel is not used on this device, after comparing it with SDPA on a few windows; None if it is."""
    problem = varlen.windows_problem(device, dtype)
    if problem is not None:
        return problem
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(23, 4, 64, generator=generator).to(device, dtype) for _ in range(3))
    bounds = torch.tensor([0, 8, 16, 23], dtype=torch.int32, device=device)
    try:
        ragged = varlen.window_kernel(q, k, v, bounds, 8, 0.125)
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        problem = f"the ragged kernel does not run: {type(error).__name__}: {error}"
    else:
        wrong = float((ragged - _by_length(q, k, v, bounds, 0.125)).abs().max())
        problem = None if wrong < 3e-2 else f"the ragged kernel is off by {wrong:.1e}"
    if problem is not None:
        warnings.warn(f"vision tower: {problem}; windows of equal length go into one SDPA call instead", stacklevel=2)
    return problem


def _by_length(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """One SDPA call for each distinct window length: `[T, H, D]` to `[T, H, D]`."""
    bounds = cu_lengths.tolist()
    by_length: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        if end > start:
            by_length.setdefault(end - start, []).append(start)
    if len(by_length) == 1:
        return _equal_windows(q, k, v, next(iter(by_length)), scale)
    outputs, places = [], []
    for length, starts in by_length.items():
        place = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten().to(q.device)
        outputs.append(_equal_windows(q[place], k[place], v[place], length, scale))
        places.append(place)
    return torch.cat(outputs)[torch.cat(places).argsort()]


def _equal_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, scale: float) -> torch.Tensor:
    """Consecutive windows of one length, `[W·L, H, D]`."""
    shape = q.shape
    q, k, v = (x.reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(shape)


AttentionInterface.register(WINDOW_ATTENTION_NAME, window_attention)
