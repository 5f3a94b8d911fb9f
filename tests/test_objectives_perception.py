"""PAPO's terms, means over tokens and schedules: golden values, gradients in closed form, micro-batches that add up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.objectives import terms
from mmreason.objectives.perception import (
    keep_top_quantile,
    perception_kl_per_token,
)
from mmreason.objectives.schedules import constant, cosine, linear, piecewise_linear
from mmreason.objectives.tokens import k3_kl_per_token, masked_mean, sequence_mean, sequence_sum

seeds = st.integers(0, 2**31)


class Batch:
    """Random completions: log-probs of two policies, a ragged mask, and a split of the rows into micro-batches."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        rows, columns = (int(x) for x in torch.randint(1, 9, (2,), generator=generator))
        self.log_probs = -6 * draw(rows, columns)
        self.masked_log_probs = -6 * draw(rows, columns)
        lengths = torch.randint(0, columns + 1, (rows, 1), generator=generator)
        self.mask = (torch.arange(columns) < lengths).long()
        self.correct = draw(rows) < 0.5
        self.order = torch.randperm(rows, generator=generator)
        cuts = int(torch.randint(1, rows + 1, (1,), generator=generator))
        self.parts = self.order.chunk(cuts)


# ---------------------------------------------------------------------- K


@pytest.mark.parametrize(
    ("log_prob", "masked", "value", "slope"),
    [
        (-1.0, -2.0, 0.367879, 0.632121),
        (-2.0, -1.0, 0.718282, -1.718282),
        (-1.5, -1.5, 0.0, 0.0),
        (-5.0, -2.0, 10.0, 0.0),
        (-1.0, -15.0, 10.0, 0.0),
    ],
)
def test_published_form_of_k(log_prob: float, masked: float, value: float, slope: float) -> None:
    seen = torch.tensor([[log_prob]], requires_grad=True)
    found = perception_kl_per_token(seen, torch.tensor([[masked]]))
    found.sum().backward()
    assert found.item() == pytest.approx(value, abs=1e-6)
    assert seen.grad is not None
    assert seen.grad.item() == pytest.approx(slope, abs=1e-6)


def test_plain_form_is_the_log_ratio() -> None:
    seen = torch.tensor([[-1.0, -40.0]], requires_grad=True)
    found = perception_kl_per_token(seen, torch.tensor([[-3.0, -1.0]]), kind="plain")
    found.sum().backward()
    assert found.tolist() == [[2.0, -39.0]]
    assert seen.grad is not None
    assert seen.grad.tolist() == [[1.0, 1.0]]


@given(seeds, st.floats(0.5, 20), st.floats(0.05, 10))
def test_gradient_of_k_is_one_minus_the_ratio_where_nothing_is_clamped(seed: int, ratio: float, value: float) -> None:
    batch = Batch(seed)
    seen = batch.log_probs.requires_grad_()
    masked = batch.masked_log_probs.requires_grad_()
    found = perception_kl_per_token(seen, masked, log_ratio_clamp=ratio, value_clamp=value)
    slopes = torch.autograd.grad(found.sum(), (seen, masked))
    x = (masked - seen).detach()
    free = (x.abs() < ratio) & (x.exp() - x - 1 < value)
    expected = torch.where(free, 1 - x.exp(), 0.0)
    assert torch.allclose(slopes[0], expected)
    assert torch.allclose(slopes[1], -expected)
    assert ((found >= 0) & (found <= value)).all()


def test_the_clamps_bite_where_the_source_says() -> None:
    x = torch.tensor([[2.610, 2.612, -10.99, -11.01]], dtype=torch.float64)
    seen = torch.zeros_like(x, requires_grad=True)
    perception_kl_per_token(seen, x).sum().backward()
    assert seen.grad is not None
    assert (seen.grad != 0).tolist() == [[True, False, True, False]]


def test_masking_that_changes_nothing_gives_nothing() -> None:
    seen = Batch(3).log_probs.requires_grad_()
    found = perception_kl_per_token(seen, seen.detach().clone())
    found.sum().backward()
    assert seen.grad is not None
    assert not found.any()
    assert not seen.grad.any()


def test_in_the_loss_it_pushes_up_what_the_masked_policy_likes_less() -> None:
    """-γ K: a token with x < 0 gets a negative gradient of the loss, of at most γ; one with x > 0 a positive one."""
    gamma = 0.02
    seen = torch.tensor([[-1.0, -1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    masked = torch.tensor([[-2.0, -9.0, -1.0]], dtype=torch.float64)
    (-gamma * perception_kl_per_token(seen, masked)).sum().backward()
    assert seen.grad is not None
    first, second, third = seen.grad[0].tolist()
    assert -gamma < second < first < 0
    assert third == pytest.approx(gamma * (math.exp(2) - 1))


def test_half_precision_is_lifted_first() -> None:
    seen, masked = torch.tensor([[-1.0]]).bfloat16(), torch.tensor([[-2.0]]).bfloat16()
    assert perception_kl_per_token(seen, masked).dtype == torch.float32
    assert perception_kl_per_token(seen, masked).item() == pytest.approx(0.367879, abs=1e-6)


@pytest.mark.parametrize("call", [
    lambda: perception_kl_per_token(torch.zeros(2, 3), torch.zeros(1, 3)),
    lambda: perception_kl_per_token(torch.zeros(1, 1), torch.zeros(1, 1), kind="k1"),  # type: ignore[arg-type]
    lambda: perception_kl_per_token(torch.zeros(1, 1), torch.zeros(1, 1), value_clamp=0.0),
    lambda: masked_mean(torch.zeros(2, 3), torch.ones(2, 1)),
    lambda: masked_mean(torch.zeros(2, 3), torch.ones(2, 3), level="group"),  # type: ignore[arg-type]
    lambda: keep_top_quantile(torch.zeros(2, 3), torch.ones(2, 3), 0.0),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError):
        call()


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_numerical_gradients(seed: int) -> None:
    batch = Batch(seed)
    # Within the clamps: x in ±2.4.
    seen = (0.4 * batch.log_probs).requires_grad_()
    masked = (0.4 * batch.masked_log_probs).requires_grad_()

    def terms(seen: Tensor, masked: Tensor) -> tuple[Tensor, ...]:
        return (
            masked_mean(perception_kl_per_token(seen, masked), batch.mask),
            masked_mean(k3_kl_per_token(seen, masked), batch.mask, "sequence"),
        )

    assert torch.autograd.gradcheck(terms, (seen, masked))


# ---------------------------------------------------------------------- terms


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("top_share", [1.0, 0.5])
def test_perception_term_is_minus_the_mean_of_k(level: Any, top_share: float) -> None:
    batch = Batch(3)
    seen, masked, mask = batch.log_probs, batch.masked_log_probs, batch.mask
    made = terms.perception_kl(
        seen,
        masked,
        mask,
        lambda values: masked_mean(values, mask),
        lambda values: masked_mean(values, mask, "sequence"),
        level=level,
        top_share=top_share,
    )
    divergence = perception_kl_per_token(seen, masked)
    counted = keep_top_quantile(divergence, mask, top_share)
    assert made.loss.item() == pytest.approx(-masked_mean(counted, mask, level).item())
    assert made.loss < 0
    # What is logged is K of all tokens, whatever counts in the loss.
    assert made.metrics["kl"].item() == pytest.approx(masked_mean(divergence, mask).item())
    assert made.metrics["kl_squared"].item() == pytest.approx(masked_mean(divergence**2, mask).item())


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_both_entropies_are_added(form: Any) -> None:
    batch = Batch(3)
    full, full_masked = torch.full_like(batch.log_probs, 2.0), torch.full_like(batch.log_probs, 3.0)

    def mean(values: Tensor) -> Tensor:
        return masked_mean(values, batch.mask)

    made = terms.double_entropy(
        batch.log_probs, batch.masked_log_probs, full, full_masked, mean, original=0.5, masked=0.25, form=form
    )
    original, masked = (2.0, 3.0) if form == "full" else (-mean(batch.log_probs), -mean(batch.masked_log_probs))
    assert float(made.loss) == pytest.approx(float(0.5 * original + 0.25 * masked))
    assert float(made.metrics["entropy"]) == pytest.approx(float(original))
    assert float(made.metrics["masked_entropy"]) == pytest.approx(float(masked))


def test_nll_on_correct_is_minus_the_mean_log_prob() -> None:
    made = terms.nll_on_correct(torch.tensor([[-1.0, -3.0]]), torch.mean)
    assert (made.loss.item(), made.metrics["nll"].item()) == (2.0, 2.0)


# ---------------------------------------------------------------------- quantile


def test_top_quantile_keeps_the_highest_of_each_sequence() -> None:
    values = torch.tensor([[1.0, 2, 3, 4, 5, 99], [5, 1, 1, 1, 99, 99]], requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    kept = keep_top_quantile(values, mask, 0.2)
    # Quantile .8 of 1..5 is 4.2; of (5, 1, 1, 1) it is 2.6.
    assert kept.tolist() == [[0, 0, 0, 0, 5, 0], [5, 0, 0, 0, 0, 0]]
    mean = masked_mean(kept, mask)
    mean.backward()
    assert mean.item() == pytest.approx(10 / 9)
    assert values.grad is not None
    assert torch.equal(values.grad != 0, kept != 0)


def test_top_quantile_keeps_ties_and_the_quantile_itself() -> None:
    values = torch.tensor([[1.0, 2, 3, 4, 5], [4, 4, 1, 4, 0]])
    assert keep_top_quantile(values, torch.ones(2, 5), 0.5).tolist() == [[0, 0, 3, 4, 5], [4, 4, 0, 4, 0]]


@given(seeds, st.floats(0.01, 1.0))
def test_top_quantile_against_a_plain_count(seed: int, share: float) -> None:
    batch = Batch(seed)
    kept = keep_top_quantile(batch.log_probs, batch.mask, share)
    for row, values in enumerate(batch.log_probs):
        counted = values[batch.mask[row].bool()]
        chosen = kept[row][kept[row] != 0]
        # Values are distinct; the quantile lies at place (1 - share)(n - 1) of the sorted ones.
        place = (1 - share) * (len(counted) - 1)
        assert abs(len(chosen) - (len(counted) - place)) <= 1 + 1e-6
        assert set(chosen.tolist()) == set(counted.sort().values[len(counted) - len(chosen) :].tolist())


@given(seeds)
def test_a_share_of_one_keeps_all(seed: int) -> None:
    batch = Batch(seed)
    kept = keep_top_quantile(batch.log_probs, batch.mask, 1.0)
    assert torch.equal(kept, torch.where(batch.mask.bool(), batch.log_probs, 0.0))


# ---------------------------------------------------------------------- means


def test_means_of_tokens_and_of_sequences() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, math.nan]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(values, mask).item() == 3.0
    assert masked_mean(values, mask, "sequence").item() == 3.5
    assert masked_mean(values, mask, denominator=9).item() == 1.0
    assert masked_mean(values, mask, "sequence", denominator=torch.tensor(7)).item() == 1.0
    empty = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert masked_mean(values, empty, "sequence").item() == 1.0, "a sequence without tokens is one of the two"
    assert sequence_sum(values, mask).tolist() == [4.0, 5.0]
    assert sequence_mean(values, mask).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_nothing_counted_is_zero(level: str) -> None:
    values = torch.ones(2, 3, requires_grad=True)
    found = masked_mean(values, torch.zeros(2, 3), level)  # type: ignore[arg-type]
    found.backward()
    assert found.item() == 0.0
    assert values.grad is not None
    assert not values.grad.any()


@given(seeds)
def test_micro_batches_add_up_however_they_are_cut(seed: int) -> None:
    batch = Batch(seed)
    tokens, rows = batch.mask.sum(), len(batch.mask)

    def terms(part: Tensor) -> list[Tensor]:
        seen, masked, mask = batch.log_probs[part], batch.masked_log_probs[part], batch.mask[part]
        kl = perception_kl_per_token(seen, masked)
        return [
            masked_mean(kl, mask, "token", tokens),
            masked_mean(kl, mask, "sequence", rows),
            masked_mean(keep_top_quantile(kl, mask, 0.3), mask, "token", tokens),
        ]

    whole = terms(torch.arange(rows))
    added = [sum(found) for found in zip(*map(terms, batch.parts), strict=True)]
    assert torch.allclose(torch.stack(whole), torch.stack(added))  # type: ignore[arg-type]


@given(seeds)
def test_the_order_of_rows_does_not_matter_and_padding_does_not_count(seed: int) -> None:
    batch = Batch(seed)
    spoiled = torch.where(batch.mask.bool(), batch.log_probs, math.nan)[batch.order]
    mask = batch.mask[batch.order]
    for level in ("token", "sequence"):
        whole = masked_mean(batch.log_probs, batch.mask, level)  # type: ignore[arg-type]
        assert torch.allclose(whole, masked_mean(spoiled, mask, level))  # type: ignore[arg-type]


def test_k3_is_an_unbiased_estimate_of_the_divergence() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    per_token = k3_kl_per_token(p.log().unsqueeze(0), q.log().unsqueeze(0))[0]
    assert (p * per_token).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


# ---------------------------------------------------------------------- schedules


def test_visionary_r1_cosine() -> None:
    found = [cosine(progress, 0.04) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([0.04, 0.034142, 0.02, 0.005858, 0.0], abs=1e-6)


def test_papo_annealing_ends_half_way() -> None:
    found = [linear(progress, 0.01, until=0.5) for progress in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([0.01, 0.008, 0.005, 0.0, 0.0, 0.0])


def test_points() -> None:
    points = [(0.2, 1.0), (0.4, 0.0), (0.8, 2.0)]
    found = [piecewise_linear(progress, points) for progress in (0, 0.2, 0.3, 0.4, 0.5, 0.8, 1)]
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.5, 2.0, 2.0])
    assert constant(0.3, 0.7) == 0.7


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.floats(0.01, 1),
    st.sampled_from([linear, cosine]),
)
def test_schedules_run_from_start_to_end(
    one: float, two: float, start: float, end: float, until: float, schedule: Callable[..., float]
) -> None:
    early, late = sorted((one, two))
    assert schedule(0.0, start, end, until) == pytest.approx(start)
    assert schedule(1.0, start, end, until) == pytest.approx(end)
    values = [schedule(progress, start, end, until) for progress in (early, late)]
    assert all(min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9 for value in values)
    assert (values[1] - values[0]) * (end - start) >= -1e-9
    line = piecewise_linear(early, [(0.0, start), (until, end)])
    assert linear(early, start, end, until) == pytest.approx(line, abs=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cosine(1.5, 0.04),  # an epoch's count in place of the run's share
        lambda: linear(-0.1, 1.0),
        lambda: constant(math.nan, 1.0),
        lambda: linear(0.5, 1.0, until=0.0),
        lambda: piecewise_linear(0.5, []),
        lambda: piecewise_linear(0.5, [(0.5, 1.0), (0.5, 2.0)]),
        lambda: piecewise_linear(0.5, [(0.0, math.inf)]),
    ],
)
def test_schedules_refuse_what_is_no_share(call: Callable[[], float]) -> None:
    with pytest.raises(ValueError):
        call()
