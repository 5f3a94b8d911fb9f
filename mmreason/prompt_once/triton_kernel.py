"""Attention of a packed row as Triton kernels of our own, forward and backward.

What enters: queries, keys and values of one layer for a packed row, and its `PackedLayout`. What leaves: the attention output,
differentiable in all three. Keys of a prefix are neither copied nor masked: the suffixes of a group lie side by side behind
their prefix, so a tile of queries, which may span several suffixes, reads the prefix as keys that all of it sees, and then
its own tokens with a mask, in one online softmax. In the backward pass a tile of prefix keys meets all queries of its group
in one program, so that its gradient is a sum in fp32 in a fixed order, without atomics.

The recurrences are those of FlashAttention-2 (arXiv 2307.08691): recomputed probabilities from the log-sum-exp, `delta` =
row sum of output times its gradient. Nothing outside this file sees the log-sum-exp.

With `TRITON_INTERPRET=1` in the environment before the first import, the kernels run on a CPU, slowly: that is for tests.

Legend of shapes: T tokens of the packed row, Hq and Hkv heads of queries and keys, D head size, R = Hq / Hkv, n tiles.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from mmreason.errors import ModelError
from mmreason.prompt_once.layout import Ints, PackedLayout
from mmreason.prompt_once.varlen import cuda_problem, refuse, same_dtype

try:
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
except ImportError:  # torch for CPUs comes without it
    triton = None
    tl = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Larger heads would need other tiles than those below to fit the shared memory of a multiprocessor.
MAX_HEAD_DIM = 128


def _jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or nothing where there is no Triton, so that this module can say so itself."""
    return function if triton is None else triton.jit(function)


# ------------------------------------------------------------------------------------------------ tiles


@dataclass(frozen=True)
class Tiles:
    """Which work a program does, as int32 tables on the device. Longest work first, so that no program starts late.

    Attributes:
        queries: `[n, 5]` first query, end of queries, first and end of the keys that all of them see, first of the keys
            that they see in part (which end where the queries do).
        keys: `[n, 4]` first key, end of keys, end of the queries that see them in part (which begin where the keys do),
            end of the queries behind those, which see them all.
        starts: `[T]` first token of each token's segment.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True)
class Blocks:
    """Sizes of a tile and resources of a program: powers of two, at least 16 tokens."""

    queries: int
    keys: int
    head: int
    warps: int
    stages: int


def blocks_for(dtype: torch.dtype, head_dim: int) -> Blocks:
    """Tiles that fit 99 KB of shared memory (compute capability 8.6); those of 16 bits without spilling registers."""
    head = max(16, 1 << (head_dim - 1).bit_length())
    warps = 8 if head >= 64 else 4
    if dtype == torch.float32:  # no tensor cores: exact, and only for checks
        return Blocks(32, 32, head, warps, 1)
    return Blocks(64, 64, head, warps, 2)


def make_tiles(layout: PackedLayout, block_queries: int, block_keys: int) -> tuple[Ints, Ints, Ints]:
    """The three tables of `Tiles` as NumPy arrays."""
    starts = np.repeat(layout.starts, layout.lengths)
    ends = np.repeat(layout.starts + layout.lengths, layout.lengths)
    roots = np.append(layout.starts[layout.prefixes], layout.num_tokens)
    queries, keys = [], []
    for root, end, prefix in zip(roots[:-1], roots[1:], layout.lengths[layout.prefixes], strict=True):
        fork = root + prefix
        for first in (np.arange(root, fork, block_queries), np.arange(fork, end, block_queries)):
            shared = np.minimum(first, fork)
            last = np.minimum(first + block_queries, np.where(first < fork, fork, end))
            own = np.where(first < fork, first, starts[first])
            queries.append(np.stack([first, last, np.full_like(first, root), shared, own], axis=1))
        first = np.arange(root, fork, block_keys)
        last = np.minimum(first + block_keys, fork)
        keys.append(np.stack([first, last, last, np.full_like(first, end)], axis=1))
        first = np.arange(fork, end, block_keys)
        last = np.minimum(first + block_keys, end)
        keys.append(np.stack([first, last, ends[last - 1], ends[last - 1]], axis=1))
    query_table, key_table = np.concatenate(queries), np.concatenate(keys)
    query_work = (query_table[:, 3] - query_table[:, 2]) + (query_table[:, 1] - query_table[:, 4])
    key_work = key_table[:, 3] - key_table[:, 0]
    query_order = np.argsort(-query_work, kind="stable")
    return query_table[query_order], key_table[np.argsort(-key_work, kind="stable")], starts


def _tiles(layout: PackedLayout, blocks: Blocks, device: torch.device) -> Tiles:
    def make() -> Tiles:
        tables = make_tiles(layout, blocks.queries, blocks.keys)
        return Tiles(*(torch.as_tensor(table, dtype=torch.int32, device=device) for table in tables))

    tiles: Tiles = layout.once(("triton", blocks.queries, blocks.keys, device), make)
    return tiles


# ------------------------------------------------------------------------------------------------ kernels
# Token offsets are int64: T * Hq * D of a long row passes 2**31. Scores are in units of log2, for exp2.
# EMULATE is for bf16 in the interpreter, which truncates instead of rounding and multiplies the bits as if they were integers:
# with it, values are rounded and multiplied as the hardware does.


@_jit
def _load(base, tokens, kept, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[tokens, BLOCK_D]` rows of one head, zero where not kept."""
    columns = tl.arange(0, BLOCK_D)
    places = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(places, mask=kept[:, None] & (columns[None, :] < D), other=0.0)


@_jit
def _narrow(x, dtype: tl.constexpr, EMULATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Round fp32 to the dtype of an operand or of an output."""
    if EMULATE and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = ((bits + 32767 + ((bits >> 16) & 1)) >> 16) << 16
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@_jit
def _store(base, tokens, kept, stride, value, D: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write rows of one head."""
    columns = tl.arange(0, BLOCK_D)
    places = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(places, value, mask=kept[:, None] & (columns[None, :] < D))


@_jit
def _dot(total, a, b, EMULATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """`total` and the product of two tiles, in fp32, without tf32."""
    if EMULATE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@_jit
def _attend(  # type: ignore[no-untyped-def]
    total, peak, mass, q, k_base, v_base, stride_k, stride_v, queries, low, begin, end, scale,
    OWN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys `begin … end`; with `OWN`, those from `low` up to the query itself."""
    for first in range(begin, end, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        kept = keys < end
        k = _load(k_base, keys, kept, stride_k, D, BLOCK_D)
        v = _load(v_base, keys, kept, stride_v, D, BLOCK_D)
        visible = kept[None, :]
        if OWN:
            visible = visible & (keys[None, :] <= queries[:, None]) & (keys[None, :] >= low[:, None])
        scores = _dot(None, q, tl.trans(k), EMULATE) * scale
        scores = tl.where(visible, scores, float("-inf"))
        # Every query sees a key of the first block it meets, so `higher` is finite.
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        mass = mass * shrink + tl.sum(weights, 1)
        total = _dot(total * shrink[:, None], _narrow(weights, v.dtype, EMULATE), v, EMULATE)
        peak = higher
    return total, peak, mass


@_jit
def forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, tiles_ptr, starts_ptr, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh, stride_lse,
    R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EMULATE: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one tile of queries and one head."""
    row = tiles_ptr + tl.program_id(0) * 5
    head = tl.program_id(1).to(tl.int64)
    first = tl.load(row)
    last = tl.load(row + 1)
    shared_first = tl.load(row + 2)
    shared_last = tl.load(row + 3)
    own_first = tl.load(row + 4)
    queries = first + tl.arange(0, BLOCK_Q)
    kept = queries < last
    low = tl.load(starts_ptr + queries, mask=kept, other=0)
    q = _load(q_ptr + head * stride_qh, queries, kept, stride_qt, D, BLOCK_D)
    k_base = k_ptr + (head // R) * stride_kh
    v_base = v_ptr + (head // R) * stride_vh
    total = tl.zeros([BLOCK_Q, BLOCK_D], dtype=tl.float32)
    mass = tl.zeros([BLOCK_Q], dtype=tl.float32)
    peak = tl.zeros([BLOCK_Q], dtype=tl.float32) - float("inf")
    total, peak, mass = _attend(
        total, peak, mass, q, k_base, v_base, stride_kt, stride_vt, queries, low, shared_first, shared_last, scale,
        False, D, BLOCK_D, BLOCK_K, EMULATE,
    )  # fmt: skip
    total, peak, mass = _attend(
        total, peak, mass, q, k_base, v_base, stride_kt, stride_vt, queries, low, own_first, last, scale,
        True, D, BLOCK_D, BLOCK_K, EMULATE,
    )  # fmt: skip
    _store(
        out_ptr + head * stride_oh,
        queries,
        kept,
        stride_ot,
        _narrow(total / mass[:, None], out_ptr.dtype.element_ty, EMULATE),
        D,
        BLOCK_D,
    )
    tl.store(lse_ptr + head + queries.to(tl.int64) * stride_lse, peak + tl.log2(mass), mask=kept)


@_jit
def _query_gradient(  # type: ignore[no-untyped-def]
    dq, q, do, lse, delta, k_base, v_base, stride_k, stride_v, queries, low, begin, end, scale,
    OWN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Add to `dq` what keys `begin … end` contribute."""
    for first in range(begin, end, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        kept = keys < end
        k = _load(k_base, keys, kept, stride_k, D, BLOCK_D)
        v = _load(v_base, keys, kept, stride_v, D, BLOCK_D)
        visible = kept[None, :]
        if OWN:
            visible = visible & (keys[None, :] <= queries[:, None]) & (keys[None, :] >= low[:, None])
        scores = _dot(None, q, tl.trans(k), EMULATE) * scale
        weights = tl.exp2(tl.where(visible, scores, float("-inf")) - lse[:, None])
        pulled = _dot(None, do, tl.trans(v), EMULATE)
        ds = weights * (pulled - delta[:, None])
        dq = _dot(dq, _narrow(ds, k.dtype, EMULATE), k, EMULATE)
    return dq


@_jit
def query_gradient_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, tiles_ptr, starts_ptr, scale, natural_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    stride_dot, stride_doh, stride_lse,
    R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EMULATE: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries and one head; leaves `delta` for the gradient of the keys. `dq` lies as `out`."""
    row = tiles_ptr + tl.program_id(0) * 5
    head = tl.program_id(1).to(tl.int64)
    first = tl.load(row)
    last = tl.load(row + 1)
    shared_first = tl.load(row + 2)
    shared_last = tl.load(row + 3)
    own_first = tl.load(row + 4)
    queries = first + tl.arange(0, BLOCK_Q)
    kept = queries < last
    low = tl.load(starts_ptr + queries, mask=kept, other=0)
    q = _load(q_ptr + head * stride_qh, queries, kept, stride_qt, D, BLOCK_D)
    out = _load(out_ptr + head * stride_oh, queries, kept, stride_ot, D, BLOCK_D)
    do = _load(do_ptr + head * stride_doh, queries, kept, stride_dot, D, BLOCK_D)
    k_base = k_ptr + (head // R) * stride_kh
    v_base = v_ptr + (head // R) * stride_vh
    statistics = head + queries.to(tl.int64) * stride_lse
    lse = tl.load(lse_ptr + statistics, mask=kept, other=0.0)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + statistics, delta, mask=kept)
    dq = tl.zeros([BLOCK_Q, BLOCK_D], dtype=tl.float32)
    dq = _query_gradient(
        dq, q, do, lse, delta, k_base, v_base, stride_kt, stride_vt, queries, low, shared_first, shared_last, scale,
        False, D, BLOCK_D, BLOCK_K, EMULATE,
    )  # fmt: skip
    dq = _query_gradient(
        dq, q, do, lse, delta, k_base, v_base, stride_kt, stride_vt, queries, low, own_first, last, scale,
        True, D, BLOCK_D, BLOCK_K, EMULATE,
    )  # fmt: skip
    _store(
        dq_ptr + head * stride_oh,
        queries,
        kept,
        stride_ot,
        _narrow(dq * natural_scale, dq_ptr.dtype.element_ty, EMULATE),
        D,
        BLOCK_D,
    )


@_jit
def _key_gradient(  # type: ignore[no-untyped-def]
    dk, dv, k, v, q_base, do_base, lse_base, delta_base, starts_ptr, stride_q, stride_do, stride_lse,
    keys, begin, end, scale,
    OWN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Add to `dk` and `dv` what queries `begin … end` contribute. Scores are transposed: keys by queries."""
    for first in range(begin, end, BLOCK_Q):
        queries = first + tl.arange(0, BLOCK_Q)
        kept = queries < end
        q = _load(q_base, queries, kept, stride_q, D, BLOCK_D)
        do = _load(do_base, queries, kept, stride_do, D, BLOCK_D)
        lse = tl.load(lse_base + queries.to(tl.int64) * stride_lse, mask=kept, other=0.0)
        delta = tl.load(delta_base + queries.to(tl.int64) * stride_lse, mask=kept, other=0.0)
        visible = kept[None, :]
        if OWN:
            low = tl.load(starts_ptr + queries, mask=kept, other=0)
            visible = visible & (keys[:, None] <= queries[None, :]) & (keys[:, None] >= low[None, :])
        scores = _dot(None, k, tl.trans(q), EMULATE) * scale
        weights = tl.exp2(tl.where(visible, scores, float("-inf")) - lse[None, :])
        dv = _dot(dv, _narrow(weights, do.dtype, EMULATE), do, EMULATE)
        pulled = _dot(None, v, tl.trans(do), EMULATE)
        ds = weights * (pulled - delta[None, :])
        dk = _dot(dk, _narrow(ds, q.dtype, EMULATE), q, EMULATE)
    return dk, dv


@_jit
def key_gradient_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, tiles_ptr, starts_ptr, scale, natural_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dot, stride_doh,
    stride_dkt, stride_dkh, stride_lse,
    R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    EMULATE: tl.constexpr,
):  # fmt: skip
    """What one head of queries contributes to the gradient of one tile of keys and values."""
    row = tiles_ptr + tl.program_id(0) * 4
    head = tl.program_id(1).to(tl.int64)
    first = tl.load(row)
    last = tl.load(row + 1)
    own_last = tl.load(row + 2)
    shared_last = tl.load(row + 3)
    keys = first + tl.arange(0, BLOCK_K)
    kept = keys < last
    k = _load(k_ptr + (head // R) * stride_kh, keys, kept, stride_kt, D, BLOCK_D)
    v = _load(v_ptr + (head // R) * stride_vh, keys, kept, stride_vt, D, BLOCK_D)
    q_base = q_ptr + head * stride_qh
    do_base = do_ptr + head * stride_doh
    dk = tl.zeros([BLOCK_K, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_D], dtype=tl.float32)
    dk, dv = _key_gradient(
        dk, dv, k, v, q_base, do_base, lse_ptr + head, delta_ptr + head, starts_ptr, stride_qt, stride_dot, stride_lse,
        keys, first, own_last, scale, True, D, BLOCK_D, BLOCK_Q, EMULATE,
    )  # fmt: skip
    dk, dv = _key_gradient(
        dk, dv, k, v, q_base, do_base, lse_ptr + head, delta_ptr + head, starts_ptr, stride_qt, stride_dot, stride_lse,
        keys, own_last, shared_last, scale, False, D, BLOCK_D, BLOCK_Q, EMULATE,
    )  # fmt: skip
    _store(
        dk_ptr + head * stride_dkh,
        keys,
        kept,
        stride_dkt,
        _narrow(dk * natural_scale, dk_ptr.dtype.element_ty, EMULATE),
        D,
        BLOCK_D,
    )
    _store(
        dv_ptr + head * stride_dkh, keys, kept, stride_dkt, _narrow(dv, dv_ptr.dtype.element_ty, EMULATE), D, BLOCK_D
    )


# ------------------------------------------------------------------------------------------------ torch


def constants(ratio: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """What a kernel is compiled for besides its types: constants, and resources of a program."""
    blocks = blocks_for(dtype, head_dim)
    return {
        "R": ratio,
        "D": head_dim,
        "BLOCK_D": blocks.head,
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "EMULATE": dtype == torch.bfloat16 and interpreted(),
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _strides(*tensors: torch.Tensor) -> list[int]:
    """Strides of tokens and heads, tensor after tensor."""
    return [stride for x in tensors for stride in x.stride()[:2]]


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """The kernels step by one inside a head."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _on_device(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments lie on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


class _PrefixAttention(torch.autograd.Function):
    """Forward and backward; `layout` and `scale` are constants."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float
    ) -> torch.Tensor:
        q, k, v = map(_dense_heads, (q, k, v))
        tokens, heads, head_dim = q.shape
        blocks = blocks_for(q.dtype, head_dim)
        tiles = _tiles(layout, blocks, q.device)
        out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
        lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
        options = constants(heads // k.shape[1], head_dim, q.dtype)
        with _on_device(q):
            forward_kernel[(len(tiles.queries), heads)](
                q, k, v, out, lse, tiles.queries, tiles.starts, scale * math.log2(math.e),
                *_strides(q, k, v, out), heads, **options,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = _dense_heads(grad)
        tokens, heads, head_dim = q.shape
        ratio = heads // k.shape[1]
        blocks = blocks_for(q.dtype, head_dim)
        tiles = _tiles(ctx.layout, blocks, q.device)
        dq, delta = torch.empty_like(out), torch.empty_like(lse)
        # One part for each head of queries, so that enough programs run at once; their sum keeps fp32 until the end.
        part = k.dtype if ratio == 1 else torch.float32
        dk = torch.empty((tokens, heads, head_dim), dtype=part, device=k.device)
        dv = torch.empty_like(dk)
        scales = (ctx.scale * math.log2(math.e), ctx.scale)
        options = constants(ratio, head_dim, q.dtype)
        with _on_device(q):
            query_gradient_kernel[(len(tiles.queries), heads)](
                q, k, v, out, grad, lse, delta, dq, tiles.queries, tiles.starts, *scales,
                *_strides(q, k, v, out, grad), heads, **options,
            )  # fmt: skip
            key_gradient_kernel[(len(tiles.keys), heads)](
                q, k, v, grad, lse, delta, dk, dv, tiles.keys, tiles.starts, *scales,
                *_strides(q, k, v, grad, dk), heads, **options,
            )  # fmt: skip
        if ratio > 1:
            dk, dv = (x.view(tokens, -1, ratio, head_dim).sum(2).to(k.dtype) for x in (dk, dv))
        return dq, dk, dv, None, None


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return triton is not None and not isinstance(forward_kernel, triton.runtime.JITFunction)


def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this tier cannot run there, in one line; None if it can."""
    if triton is None:
        return "triton is not installed (it comes with torch for CUDA on Linux)"
    if dtype not in DTYPES:
        return f"the kernels do not do {dtype}"
    return None if interpreted() else cuda_problem(device)


def triton_tier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
    """Attention of a packed row `[T, Hq, D]`, with `k` and `v` `[T, Hkv, D]`, by the kernels of this file.

    Raises:
        ModelError: no Triton, no CUDA device, or a dtype or head size that the kernels do not do.
    """
    q, k, v = same_dtype(q, k, v)
    refuse("triton", problem(q.device, q.dtype))
    if q.shape[2] > MAX_HEAD_DIM:
        raise ModelError(f"attention tier triton: heads of {q.shape[2]}, the kernels do up to {MAX_HEAD_DIM}")
    if q.shape[0] != layout.num_tokens or q.shape[1] % k.shape[1] or k.shape != v.shape:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, layout of {layout.num_tokens} tokens"
        )
    out: torch.Tensor = _PrefixAttention.apply(q, k, v, layout, scale)
    return out
