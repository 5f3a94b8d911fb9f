"""Attention of a packed row by flash kernels for ragged sequences, and which tiers can run here.

What enters: queries, keys and values of one layer for a packed row, and its `PackedLayout`. What leaves: the attention output,
differentiable in all three. Each segment is one sequence: its queries are its own tokens, its keys those of its prefix and
then its own, copied side by side; the kernels' causal mask, aligned at the bottom right, is then the mask of the layout.

Their log-sum-exp is never asked for: its gradient is ignored in the kernels' backward, so that merging two parts by it would
train wrongly without an error.

Legend of shapes: T tokens of the packed row, Hq and Hkv heads of queries and keys, D head size, K keys after gathering.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmreason.errors import ModelError
from mmreason.prompt_once.layout import PackedLayout, VarlenIndex

#: What flash kernels are compiled for.
MIN_CAPABILITY = (8, 0)
HALF = (torch.bfloat16, torch.float16)

#: What `flash_attn_kernel` passes by name.
FLASH_KEYWORDS = frozenset(
    ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "deterministic"]
)


class RaggedKernel(Protocol):
    """Causal attention of ragged sequences, aligned at the bottom right: `q [T, Hq, D]`, `k` and `v [K, Hkv, D]`."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: VarlenIndex, scale: float
    ) -> torch.Tensor: ...


# ------------------------------------------------------------------------------------------------ gather


class _Gather(torch.autograd.Function):
    """Rows of `x` at `index`. A prefix is read G times: its gradient is summed in fp32, not in the dtype of the model."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros((ctx.rows, *grad.shape[1:]), dtype=wide, device=grad.device)
        return total.index_add_(0, index, grad.to(wide)).to(grad.dtype), None


def gather_keys(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`[T, Hkv, D]` at `index [K]` to `[K, Hkv, D]`, with a gradient that is summed in at least fp32.

    On CUDA the order of the sum is fixed only under `torch.use_deterministic_algorithms`.
    """
    gathered: torch.Tensor = _Gather.apply(x, index)
    return gathered


def same_dtype(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three in the dtype of autocast where that is on, as torch does for its own attention.

    Raises:
        ModelError: the dtypes differ otherwise.
    """
    kind = q.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    if not q.dtype == k.dtype == v.dtype:
        raise ModelError(
            f"attention of {q.dtype}, {k.dtype} and {v.dtype}: queries, keys and values must have one dtype"
        )
    return q, k, v


def ragged_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float, kernel: RaggedKernel
) -> torch.Tensor:
    """Attention of a packed row `[T, Hq, D]` by a kernel for ragged sequences."""
    index = layout.varlen(q.device)
    return kernel(q, gather_keys(k, index.keys), gather_keys(v, index.keys), index, scale)


# ------------------------------------------------------------------------------------------------ torch's own


def torch_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: VarlenIndex, scale: float) -> torch.Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, whose keywords differ from release to release."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if "scale" in known:
        options["scale"] = scale
    elif not math.isclose(scale, q.shape[2] ** -0.5):
        q = q * (scale * q.shape[2] ** 0.5)
    # cuDNN aligns a causal mask at the top left. Releases that know this avoid it here; this does so for all.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = varlen_attn(q, k, v, index.cu_queries, index.cu_keys, index.max_queries, index.max_keys, **options)
    assert isinstance(out, torch.Tensor)
    return out


def varlen_tier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
    """Attention of a packed row `[T, Hq, D]`, with `k` and `v` `[T, Hkv, D]`, by the flash kernels in torch.

    Raises:
        ModelError: no CUDA device of capability 8.0, no such function in this torch, or a dtype that is not 16 bits.
    """
    q, k, v = same_dtype(q, k, v)
    refuse("varlen", _varlen_problem(q.device, q.dtype))
    return ragged_attention(q, k, v, layout, scale, torch_kernel)


def windows_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `window_kernel` cannot be used here; None if it can."""
    return _varlen_problem(device, dtype)


def window_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_lengths: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Attention both ways inside each of many windows, `[T, H, D]`, by torch's ragged kernel."""
    from torch.nn.attention.varlen import varlen_attn

    if "scale" not in inspect.signature(varlen_attn).parameters:
        q = q * (scale * q.shape[2] ** 0.5)
        out = varlen_attn(q, k, v, cu_lengths, cu_lengths, longest, longest)
    else:
        out = varlen_attn(q, k, v, cu_lengths, cu_lengths, longest, longest, scale=scale)
    assert isinstance(out, torch.Tensor)
    return out


# ------------------------------------------------------------------------------------------------ flash-attn


@functools.cache
def _flash_function() -> Callable[..., Any] | str:
    """`flash_attn_varlen_func` of the installed package, or why there is none.

    Version 3 (`flash_attn_interface`) comes first where it runs, on compute capability 9; both take the same keywords.
    """
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    reason = "the package flash-attn is not installed"
    for name in ("flash_attn_interface", "flash_attn") if hopper else ("flash_attn",):
        try:
            function = importlib.import_module(name).flash_attn_varlen_func
        except (ImportError, AttributeError) as error:
            # Anything but its absence: built for another torch, or another package of that name.
            if getattr(error, "name", None) != name or not isinstance(error, ModuleNotFoundError):
                reason = f"the package {name} cannot be used: {error}"
            continue
        missing = FLASH_KEYWORDS - set(inspect.signature(function).parameters)
        if not missing:
            return function  # type: ignore[no-any-return]
        reason = f"{name}.flash_attn_varlen_func does not know {', '.join(sorted(missing))}"
    return reason


def flash_attn_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: VarlenIndex, scale: float
) -> torch.Tensor:
    """`flash_attn_varlen_func` of flash-attn 2.1 or later, or of its version 3."""
    function = _flash_function()
    if isinstance(function, str):
        raise ModelError(f"attention tier flash_attn: {function}")
    result = function(
        q,
        k,
        v,
        cu_seqlens_q=index.cu_queries,
        cu_seqlens_k=index.cu_keys,
        max_seqlen_q=index.max_queries,
        max_seqlen_k=index.max_keys,
        softmax_scale=scale,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    out: torch.Tensor = result[0] if isinstance(result, tuple) else result  # early releases of 3 add the log-sum-exp
    return out


def flash_attn_tier(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float
) -> torch.Tensor:
    """Attention of a packed row `[T, Hq, D]`, with `k` and `v` `[T, Hkv, D]`, by the package flash-attn.

    Raises:
        ModelError: no CUDA device of capability 8.0, no usable package, or a dtype that is not 16 bits.
    """
    q, k, v = same_dtype(q, k, v)
    refuse("flash_attn", _flash_attn_problem(q.device, q.dtype))
    return ragged_attention(q, k, v, layout, scale, flash_attn_kernel)


# ------------------------------------------------------------------------------------------------ what runs here


def cuda_problem(device: torch.device) -> str | None:
    """Why kernels for 16-bit floats cannot run on a device; None if they can."""
    if device.type != "cuda":
        return f"needs a CUDA device; the tensors are on {device.type}"
    if not torch.cuda.is_available():
        return "needs a CUDA device; torch sees none"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        return f"needs a CUDA device of capability 8.0 or more; {device} has {capability[0]}.{capability[1]}"
    return None


def _half_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    problem = cuda_problem(device)
    return problem if problem or dtype in HALF else f"flash kernels do bfloat16 and float16, not {dtype}"


def _varlen_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen; 2.11 has"
    return _half_problem(device, dtype)


def _flash_attn_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    function = _flash_function()
    return function if isinstance(function, str) else _half_problem(device, dtype)


def refuse(tier: str, reason: str | None) -> None:
    """Raise a `ModelError` that names the tier, if there is a reason."""
    if reason is not None:
        raise ModelError(f"attention tier {tier}: {reason}")


def available(device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16) -> dict[str, str | None]:
    """For each tier, None if it can run there, or in one line why it cannot.

    Args:
        device: where queries, keys and values are; None = the current CUDA device, or the CPU where there is none.
        dtype: what they are.
    """
    from mmreason.prompt_once import triton_kernel  # imports Triton, and this module

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "varlen": _varlen_problem(device, dtype),
        "flash_attn": _flash_attn_problem(device, dtype),
        "triton": triton_kernel.problem(device, dtype),
        "sdpa": None,
        "dense": None,
    }
