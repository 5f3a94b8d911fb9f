"""Attention of packed rows: the tables that say who sees whom, the tiers against a dense mask, and Triton's kernels.

The kernels run on a CPU in Triton's interpreter, which must be asked for before Triton is imported: this file, run as a
program, is that other process. It prints the errors as JSON.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.argv[1:] == ["without"]:
    sys.modules["triton"] = None  # type: ignore[assignment]  # import then fails as if it were not installed

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mmreason.errors import ModelError
from mmreason.prompt_once import triton_kernel, varlen
from mmreason.prompt_once.attention import Tier, dense_tier, sdpa_tier
from mmreason.prompt_once.layout import GroupShape, PackedLayout, VarlenIndex, plan, token_ratio

CPU = torch.device("cpu")
NAMES = ("output", "dq", "dk", "dv")

#: prefixes, suffixes, heads of queries, heads of keys, head size. Tiles are 32 tokens in fp32 and 64 in 16 bits.
CASES: dict[str, tuple[list[int], list[list[int]], int, int, int]] = {
    "one_group": ([37], [[12, 20, 5]], 4, 1, 32),
    "groups": ([33, 1], [[1, 40], [31]], 4, 2, 16),
    "single_suffixes": ([20, 18], [[35], []], 2, 1, 16),
    "suffixes_of_one": ([40], [[1, 1, 1, 1]], 2, 2, 16),
    "prefix_of_one": ([1], [[3, 30, 7]], 2, 1, 16),
    "whole_tiles": ([64], [[32, 32]], 2, 1, 32),
    "head_of_80": ([35], [[9, 7]], 2, 1, 80),
}
HALF_CASES = {
    "half_tiles": ([70], [[30, 41]], 4, 1, 32),
    "half_head_of_80": ([50, 4], [[20, 7], [1]], 2, 2, 80),
}

lengths = st.one_of(st.integers(1, 6), st.integers(1, 60))
groups_of_lengths = st.lists(st.tuples(lengths, st.lists(lengths, max_size=5)), min_size=1, max_size=4)
layouts = groups_of_lengths.map(lambda groups: PackedLayout([p for p, _ in groups], [s for _, s in groups]))


# ------------------------------------------------------------------------------------------------ what is compared


def inputs(layout: PackedLayout, heads: int, key_heads: int, head_dim: int, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, in fp64. The queries' scores reach about ±10: no flat softmax."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(layout.num_tokens, h, head_dim) for h in (heads, key_heads, key_heads, heads)]
    q, k, v, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [3 * q, k, v, grad]


def results(tier: Tier, tensors: list[torch.Tensor], layout: PackedLayout) -> list[torch.Tensor]:
    """Output, dq, dk, dv."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out = tier(q, k, v, layout, q.shape[-1] ** -0.5)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])]


def largest(found: list[torch.Tensor], right: list[torch.Tensor]) -> dict[str, float]:
    """Largest error as a share of the largest value."""
    pairs = zip(NAMES, found, right, strict=True)
    return {name: float((a.cpu().double() - b).abs().max() / b.abs().max()) for name, a, b in pairs}


def relative(found: list[torch.Tensor], right: list[torch.Tensor]) -> dict[str, float]:
    """Norm of the error over norm of the value."""
    pairs = zip(NAMES, found, right, strict=True)
    return {name: float((a.cpu().double() - b).norm() / b.norm()) for name, a, b in pairs}


def half_errors(
    tier: Tier, case: tuple[list[int], list[list[int]], int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Errors of a tier in 16 bits, and of the dense tier in the same 16 bits."""
    layout = PackedLayout(*case[:2])
    rounded = [x.to(dtype) for x in inputs(layout, *case[2:])]
    right = results(dense_tier, [x.double() for x in rounded], layout)
    there = [x.to(device) for x in rounded]
    return {
        "ours": relative(results(tier, there, layout), right),
        "dense": relative(results(dense_tier, rounded, layout), right),
    }


def interpreted_errors() -> dict[str, Any]:
    """What the other process prints."""
    report: dict[str, Any] = {"problems": varlen.available(CPU, torch.float32), "float32": {}, "half": {}}
    tier = triton_kernel.triton_tier
    for name, case in CASES.items():
        layout = PackedLayout(*case[:2])
        single = [x.float() for x in inputs(layout, *case[2:])]
        right = results(dense_tier, [x.double() for x in single], layout)
        report["float32"][name] = largest(results(tier, single, layout), right)
        if name == "groups":  # heads before tokens in memory, and an expanded gradient
            apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in single[:3]]
            ones = torch.ones(()).expand_as(single[3])
            expected = results(dense_tier, [*(x.double() for x in single[:3]), ones.double()], layout)
            report["float32"]["strides"] = largest(results(tier, [*apart, ones], layout), expected)
    for name, case in HALF_CASES.items():
        for dtype in (torch.bfloat16, torch.float16):
            report["half"][f"{name}_{dtype}"] = half_errors(tier, case, dtype, CPU)
    return report


def another_process(*arguments: str, interpret: bool) -> Any:
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ Triton's kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@functools.cache
def interpreted() -> Any:
    return another_process("interpret", interpret=True)


@needs_triton
@pytest.mark.parametrize("name", [*CASES, "strides"])
def test_kernels_in_fp32_equal_the_dense_mask_in_fp64(name: str) -> None:
    errors = interpreted()["float32"][name]
    assert set(errors) == set(NAMES)
    assert max(errors.values()) < 1e-5, errors


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF_CASES)
def test_kernels_in_16_bits_are_as_near_to_fp64_as_torch_is(name: str, dtype: torch.dtype) -> None:
    report = interpreted()["half"][f"{name}_{dtype}"]
    for what in NAMES:
        assert report["ours"][what] <= 1.25 * report["dense"][what], report


@needs_triton
def test_interpreter_makes_the_triton_tier_available_on_a_cpu() -> None:
    assert interpreted()["problems"]["triton"] is None


def compile_kernels() -> dict[str, dict[str, Any]]:
    """Compile the kernels for GPUs that need not be there, down to machine code."""
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from triton.compiler import ASTSource  # type: ignore[import-untyped, import-not-found, unused-ignore]

    report = {}
    kernels = (triton_kernel.forward_kernel, triton_kernel.query_gradient_kernel, triton_kernel.key_gradient_kernel)
    jobs = [(kernel, "bf16", 128, 90) for kernel in kernels]
    for kernel, kind, head_dim, architecture in [*jobs, (kernels[2], "bf16", 128, 86), (kernels[0], "fp32", 16, 90)]:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        constants = triton_kernel.constants(8, head_dim, dtype)
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        known = dict.fromkeys(("tiles_ptr", "starts_ptr"), "*i32") | dict.fromkeys(constants, "constexpr")
        known |= dict.fromkeys(("lse_ptr", "delta_ptr", "dk_ptr", "dv_ptr"), "*fp32")
        endings = {"_ptr": f"*{kind}", "scale": "fp32"}
        signature = {
            name: known.get(name) or next((type_ for end, type_ in endings.items() if name.endswith(end)), "i32")
            for name in kernel.arg_names
        }
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
        ptx = compiled.asm["ptx"]
        report[f"{kernel.__name__}_{kind}_{architecture}"] = {
            "shared": compiled.metadata.shared,
            "tensor_cores": "mma.sync" in ptx or "wgmma.mma_async" in ptx,
            "tf32": "tf32" in ptx,
        }
    return report


@needs_triton
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """99 KB is what a program may have on compute capability 8.6 and 8.9, the smallest of those served."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    report = another_process("compile", interpret=False)
    assert len(report) == 5
    for name, facts in report.items():
        assert facts["shared"] <= 99 * 1024, name
        assert facts["tensor_cores"] == ("bf16" in name), name
        assert not facts["tf32"], name


# ------------------------------------------------------------------------------------------------ tables


@settings(max_examples=60, deadline=None)
@given(layouts, st.sampled_from([16, 32]), st.sampled_from([16, 32]))
def test_tiles_show_every_pair_of_the_mask_once(layout: PackedLayout, block_queries: int, block_keys: int) -> None:
    """What the kernels' loops and masks visit, pair by pair, is the layout's mask."""
    queries, keys, starts = triton_kernel.make_tiles(layout, block_queries, block_keys)
    tokens = np.arange(layout.num_tokens)
    own = (tokens[None, :] <= tokens[:, None]) & (tokens[None, :] >= starts[:, None])
    forward = np.zeros((layout.num_tokens,) * 2, np.int64)
    backward = np.zeros_like(forward)
    for first, last, shared_first, shared_last, own_first in queries:
        assert last - first <= block_queries
        forward[first:last, shared_first:shared_last] += 1
        forward[first:last, own_first:last] += own[first:last, own_first:last]
        # The first key that a loop meets is one that all its queries see: no row of scores is empty.
        assert shared_last > shared_first or own[first:last, own_first].all()
    for first, last, own_last, shared_last in keys:
        assert last - first <= block_keys
        backward[first:own_last, first:last] += own[first:own_last, first:last]
        backward[own_last:shared_last, first:last] += 1
    mask = layout.dense_mask(CPU)[0, 0].numpy()
    assert (forward == mask).all()
    assert (backward == mask).all()


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_padded_calls_hold_every_token_once_and_its_keys(layout: PackedLayout) -> None:
    calls = layout.padded(CPU)
    seen = [call.index.flatten()[call.real] for call in calls.prefixes]
    seen += [call.queries.flatten()[call.real] for call in calls.suffixes]
    assert torch.cat(seen)[calls.back].tolist() == list(range(layout.num_tokens))
    mask = layout.dense_mask(CPU)[0, 0]
    for call in calls.suffixes:
        assert call.mask.any(-1).all()
        for cell in call.real.tolist():
            row, column = divmod(cell, call.queries.shape[1])
            visible = call.keys[row][call.mask[row, 0, column]]
            assert sorted(visible.tolist()) == mask[call.queries[row, column]].nonzero()[:, 0].tolist()


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_ragged_keys_end_with_the_query_itself(layout: PackedLayout) -> None:
    """Bottom-right alignment: query `i` of `n` sees all but the last `n - 1 - i` of its sequence's keys."""
    index = layout.varlen(CPU)
    mask = layout.dense_mask(CPU)[0, 0]
    for segment in range(layout.num_segments):
        keys = index.keys[index.cu_keys[segment] : index.cu_keys[segment + 1]]
        queries = range(int(index.cu_queries[segment]), int(index.cu_queries[segment + 1]))
        for back, query in enumerate(reversed(queries)):
            assert keys[: len(keys) - back].tolist() == mask[query].nonzero()[:, 0].tolist()


shapes = st.builds(
    lambda prompt, completions: GroupShape(prompt, tuple(range(len(completions))), tuple(completions)),
    st.integers(2, 80),
    st.lists(st.integers(0, 60), min_size=1, max_size=6),
)


@given(st.lists(shapes, max_size=8), st.integers(1, 400))
def test_plan_keeps_groups_whole_and_rows_within_the_budget(groups: list[GroupShape], budget: int) -> None:
    planned = plan(groups, budget)
    shares = [share for row in planned.packed_rows for share in row]
    for index, group in enumerate(groups):
        mine = [share for share in shares if share.group == index]
        assert [member for share in mine for member in share.members] == list(range(len(group.rows)))
        assert len(mine) == 1 or group.packed_tokens > budget
    assert [share.group for share in shares] == sorted(share.group for share in shares)
    assert planned.split_groups == sum([share.group for share in shares].count(i) > 1 for i in range(len(groups)))
    for row in planned.packed_rows:
        tokens = sum(
            groups[share.group].prompt_length - 1 + sum(groups[share.group].suffix_lengths[m] for m in share.members)
            for share in row
        )
        assert tokens <= budget or (len(row) == 1 and len(row[0].members) == 1)


def test_token_ratio_of_a_page_sized_image() -> None:
    group = GroupShape(1124, tuple(range(8)), (256,) * 8)
    assert token_ratio([group]) == 8 * 1380 / (1123 + 2048)


# ------------------------------------------------------------------------------------------------ tiers on a CPU


@settings(max_examples=40, deadline=None)
@given(layouts, st.sampled_from([(2, 2), (4, 1), (6, 2)]), st.integers(0, 1000))
def test_sdpa_tier_equals_the_dense_mask(layout: PackedLayout, heads: tuple[int, int], seed: int) -> None:
    tensors = inputs(layout, *heads, 8, seed)
    errors = largest(results(sdpa_tier, tensors, layout), results(dense_tier, tensors, layout))
    assert max(errors.values()) <= 1e-12, errors


def test_sdpa_tier_with_lengths_far_apart() -> None:
    layout = PackedLayout([300, 1, 40], [[1, 500, 2, 80], [400], [1]])
    tensors = inputs(layout, 2, 1, 8)
    errors = largest(results(sdpa_tier, tensors, layout), results(dense_tier, tensors, layout))
    assert max(errors.values()) <= 1e-12, errors


def ragged_on_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: VarlenIndex, scale: float) -> torch.Tensor:
    """Sequence by sequence what the ragged kernels document: causal, aligned at the bottom right."""
    parts = []
    edges = zip(index.cu_queries.tolist(), index.cu_keys.tolist(), strict=True)
    for (q0, k0), (q1, k1) in itertools.pairwise(edges):
        assert q1 - q0 <= index.max_queries
        assert k1 - k0 <= index.max_keys
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
        qs, ks, vs = (x.transpose(0, 1)[None] for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        gqa = q.shape[1] != k.shape[1]
        parts.append(scaled_dot_product_attention(qs, ks, vs, attn_mask=mask, scale=scale, enable_gqa=gqa)[0])
    return torch.cat(parts, 1).transpose(0, 1)


@settings(max_examples=30, deadline=None)
@given(layouts)
def test_ragged_attention_equals_the_dense_mask(layout: PackedLayout) -> None:
    def tier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PackedLayout, scale: float) -> torch.Tensor:
        return varlen.ragged_attention(q, k, v, layout, scale, ragged_on_cpu)

    tensors = inputs(layout, 4, 2, 8)
    errors = largest(results(tier, tensors, layout), results(dense_tier, tensors, layout))
    assert max(errors.values()) <= 1e-12, errors


def test_installed_varlen_attn_takes_our_arguments() -> None:
    """On the device "meta" torch checks arguments and shapes without computing."""
    pytest.importorskip("torch.nn.attention.varlen")
    layout = PackedLayout([20], [[5, 7]])
    q, k, v = (torch.randn(32, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (4, 2, 2))
    k.requires_grad_()
    out = varlen.ragged_attention(q, k, v, layout, 0.125, varlen.torch_kernel)
    assert out.shape == q.shape
    (grad,) = torch.autograd.grad(out.sum(), k)
    assert grad.shape == k.shape


# ------------------------------------------------------------------------------------------------ the gather


def test_gather_has_the_gradient_of_index_select() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    index = torch.tensor([0, 1, 2, 1, 1, 8, 0, 5])
    weight = torch.randn(8, 2, 4, generator=generator, dtype=torch.float64)
    (mine,) = torch.autograd.grad((varlen.gather_keys(x, index) * weight).sum(), x)
    (right,) = torch.autograd.grad((x.index_select(0, index) * weight).sum(), x)
    torch.testing.assert_close(mine, right, rtol=1e-14, atol=1e-14)


def test_gather_sums_gradients_in_fp32() -> None:
    """In bf16, 256 + 1 is 256: a sum of 512 ones would stop there, as the gradient of `x[index]` does."""
    x = torch.zeros(3, 2, 16, dtype=torch.bfloat16, requires_grad=True)
    index = torch.ones(512, dtype=torch.long)
    (grad,) = torch.autograd.grad(varlen.gather_keys(x, index).sum(), x)
    assert grad.dtype == torch.bfloat16
    assert (grad[1] == 512).all()
    assert (grad[[0, 2]] == 0).all()


# ------------------------------------------------------------------------------------------------ what runs where


def test_reasons_on_a_cpu() -> None:
    reasons = varlen.available(CPU)
    assert set(reasons) == {"varlen", "flash_attn", "triton", "sdpa", "dense"}
    assert reasons["sdpa"] is None
    assert reasons["dense"] is None
    assert "CUDA" in str(reasons["varlen"])
    assert reasons["triton"]
    if importlib.util.find_spec("flash_attn") is None:
        assert "not installed" in str(varlen.available()["flash_attn"])
    if not torch.cuda.is_available():
        assert varlen.available() == reasons


@pytest.mark.parametrize("tier", [varlen.varlen_tier, varlen.flash_attn_tier, triton_kernel.triton_tier])
def test_kernels_of_gpus_refuse_tensors_of_a_cpu_by_name(tier: Tier) -> None:
    layout = PackedLayout([4], [[2]])
    q, k, v, _ = (x.bfloat16() for x in inputs(layout, 2, 1, 16))
    with pytest.raises(ModelError, match=tier.__name__.removesuffix("_tier")):  # type: ignore[attr-defined]
        tier(q, k, v, layout, 0.25)


def test_dtypes_that_differ_are_refused_but_for_autocast() -> None:
    x, y = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="one dtype"):
        varlen.same_dtype(x, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {t.dtype for t in varlen.same_dtype(x, x, y)} == {torch.bfloat16}


def test_without_triton_the_package_imports_and_the_tier_says_so() -> None:
    report = another_process("without", interpret=False)
    assert "triton is not installed" in report["reason"]
    assert "triton is not installed" in report["error"]


def without_triton() -> dict[str, str | None]:
    """What a torch without Triton sees: called where the import of Triton fails."""
    layout = PackedLayout([4], [[2]])
    q, k, v, _ = inputs(layout, 2, 1, 16)
    try:
        triton_kernel.triton_tier(q, k, v, layout, 0.25)
    except ModelError as error:
        return {"reason": varlen.available()["triton"], "error": str(error)}
    raise AssertionError("no error")


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["varlen", "flash_attn", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiers_on_a_gpu_are_as_near_to_fp64_as_torch_is(name: str, dtype: torch.dtype) -> None:
    reason = varlen.available(torch.device("cuda"), dtype)[name]
    if reason is not None:
        pytest.skip(reason)
    tier = {
        "varlen": varlen.varlen_tier,
        "flash_attn": varlen.flash_attn_tier,
        "triton": triton_kernel.triton_tier,
    }[name]
    for case in (([300, 64], [[130, 1, 70], [64]], 8, 2, 128), ([200], [[90, 33]], 4, 4, 64)):
        report = half_errors(tier, case, dtype, torch.device("cuda"))
        for what in NAMES:
            assert report["ours"][what] <= 1.25 * report["dense"][what], report


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_triton_tier_on_a_gpu_in_fp32(name: str) -> None:
    reason = varlen.available(torch.device("cuda"), torch.float32)["triton"]
    if reason is not None:
        pytest.skip(reason)
    layout = PackedLayout(*CASES[name][:2])
    single = [x.float() for x in inputs(layout, *CASES[name][2:])]
    right = results(dense_tier, [x.double() for x in single], layout)
    there = [x.cuda() for x in single]
    first = results(triton_kernel.triton_tier, there, layout)
    errors = largest(first, right)
    assert max(errors.values()) < 1e-5, errors
    again = results(triton_kernel.triton_tier, there, layout)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "sums in another order"


if __name__ == "__main__":
    torch.set_num_threads(1)
    programs = {"interpret": interpreted_errors, "compile": compile_kernels, "without": without_triton}
    print(json.dumps(programs[sys.argv[1]]()))
