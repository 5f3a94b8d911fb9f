"""TRPA, DPO and filtered likelihood: golden values, plain loops as oracles, whole groups, micro-batches that add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.objectives.preference import (
    PairLogProbs,
    TRPALoss,
    dpo_loss,
    filtered_nll,
    preference_levels,
    preference_pairs,
    step_dpo_loss,
    trpa_loss,
)
from mmreason.objectives.tokens import sequence_sum

seeds = st.integers(0, 2**31)


def sigmoid_loss(x: float) -> float:
    return math.log1p(math.exp(-x))


class Rollouts:
    """A step of random whole groups in random order."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        self.groups, self.size, columns = (int(x) for x in torch.randint(1, 6, (3,), generator=generator))
        rows = self.groups * self.size
        self.tensors = {name: -4 * draw(rows, columns) for name in ("log_probs", "ref_log_probs", "sampling_log_probs")}
        lengths = torch.randint(0, columns + 1, (rows, 1), generator=generator)
        self.tensors["mask"] = (torch.arange(columns) < lengths).long()
        self.tensors["level"] = torch.randint(1, 5, (rows,), generator=generator)
        order = torch.randperm(rows, generator=generator)
        self.tensors["group"] = 7 * torch.arange(self.groups).repeat_interleave(self.size)
        self.tensors = {name: tensor[order] for name, tensor in self.tensors.items()}

    def loss(self, rows: Tensor | None = None, **options: Any) -> TRPALoss:
        tensors = {name: t if rows is None else t[rows] for name, t in self.tensors.items()}
        return trpa_loss(**tensors, group_size=self.size, **options)


def scored(*scores: float, level: list[int], group: list[int] | None = None, **options: Any) -> TRPALoss:
    """TRPA of completions of one token with the given length-normalised log-ratios; no trust region."""
    log_probs = torch.tensor(scores, dtype=torch.float64).unsqueeze(1) - 5
    options = {"kl_coefficient": 0.0, **options}
    return trpa_loss(
        log_probs, torch.full_like(log_probs, -5), log_probs, torch.ones_like(log_probs),
        torch.tensor(level), torch.tensor(group or [0] * len(level)),
        group_size=options.pop("group_size", len(level)), **options,
    )  # fmt: skip


# ---------------------------------------------------------------------- TRPA


@pytest.mark.parametrize(
    ("scores", "level", "value"),
    [((0.2, -0.1), [1, 3], 0.6564), ((0.2, -0.1), [2, 4], 0.6783), ((0.3, 0.3), [1, 2], 0.6931)],
)
def test_published_values(scores: tuple[float, float], level: list[int], value: float) -> None:
    found = scored(*scores, level=level)
    assert found.loss.item() == pytest.approx(value, abs=5e-5)
    assert (found.num_pairs, found.num_fallback_groups) == (1, 0)


def test_number_of_pairs() -> None:
    winner, loser = preference_pairs(torch.tensor([1, 1, 2, 3]), torch.zeros(4, dtype=torch.long))
    pairs = set(zip(winner.tolist(), loser.tolist(), strict=True))
    assert pairs == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    winner, _ = preference_pairs(torch.tensor([1, 1, 2, 3]), torch.tensor([0, 1, 0, 1]))
    assert len(winner) == 2


def test_levels() -> None:
    flags = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert preference_levels(flags[:, 0], flags[:, 1], flags[:, 2]).tolist() == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(("level", "sign"), [(1, 1.0), (2, -1.0), (3, -1.0), (4, -1.0)])
def test_a_group_without_pairs_falls_back(level: int, sign: float) -> None:
    found = scored(0.4, -0.2, level=[level] * 2)
    expected = (sigmoid_loss(sign * 0.4) + sigmoid_loss(-sign * 0.2)) / 2
    assert found.loss.item() == pytest.approx(expected)
    assert (found.num_pairs, found.num_fallback_groups) == (0, 1)
    assert math.isnan(found.ranked_right)


def test_the_better_one_is_pushed_up() -> None:
    log_probs = torch.full((2, 3), -1.0, requires_grad=True)
    fixed = torch.full((2, 3), -1.0)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    trpa_loss(log_probs, fixed, fixed, mask, torch.tensor([2, 1]), torch.tensor([4, 4]), 2).loss.backward()
    assert log_probs.grad is not None
    worse, better = log_probs.grad
    assert (better < 0).all()
    assert (worse[:2] > 0).all()
    assert worse[2] == 0


@given(seeds)
def test_against_plain_loops(seed: int) -> None:
    rollouts = Rollouts(seed)
    t = rollouts.tensors
    count = t["mask"].sum(dim=1)
    score = (((t["log_probs"] - t["ref_log_probs"]) * t["mask"]).sum(dim=1) / count.clamp(min=1)).tolist()
    level, total, num_pairs = t["level"].tolist(), 0.0, 0
    for group in set(t["group"].tolist()):
        members = [row for row in range(len(level)) if t["group"][row] == group and count[row]]
        terms = [
            sigmoid_loss((2.5 if level[w] == 1 else 1) * 0.1 * (score[w] - score[lo]))
            for w in members
            for lo in members
            if level[w] < level[lo]
        ]
        num_pairs += len(terms)
        terms = terms or [sigmoid_loss(score[row] if level[row] == 1 else -score[row]) for row in members] or [0.0]
        total += sum(terms) / len(terms)
    x = t["sampling_log_probs"] - t["log_probs"]
    kl = ((x.exp() - x - 1) * t["mask"]).sum() / max(1, int(count.sum()))
    found = rollouts.loss(kl_coefficient=0.3)
    assert found.preference.item() == pytest.approx(total / rollouts.groups)
    assert found.kl.item() == pytest.approx(kl.item())
    assert found.loss.item() == pytest.approx(total / rollouts.groups + 0.3 * kl.item())
    assert found.num_pairs == num_pairs


@given(seeds)
def test_micro_batches_of_whole_groups_add_up(seed: int) -> None:
    rollouts = Rollouts(seed)
    group = rollouts.tensors["group"]
    shared = {"num_groups": rollouts.groups, "num_tokens": rollouts.tensors["mask"].sum(), "kl_coefficient": 0.3}
    parts = [rollouts.loss((group == number).nonzero()[:, 0], **shared) for number in group.unique()]
    whole = rollouts.loss(kl_coefficient=0.3)
    assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item())  # type: ignore[union-attr]
    assert sum(part.num_pairs for part in parts) == whole.num_pairs


@given(seeds)
def test_order_and_group_numbers_do_not_matter(seed: int) -> None:
    rollouts = Rollouts(seed)
    before = rollouts.loss()
    rollouts.tensors["group"] = 100 - rollouts.tensors["group"]
    after = rollouts.loss(torch.randperm(len(rollouts.tensors["group"]), generator=torch.Generator().manual_seed(seed)))
    assert after.loss.item() == pytest.approx(before.loss.item())


def test_split_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="group 5: 1.*multiple of the group size"):
        scored(0.1, 0.2, 0.3, level=[1, 2, 1], group=[4, 4, 5], group_size=2)
    with pytest.raises(ValueError, match="levels must be 1"):
        scored(0.1, 0.2, level=[0, 1])


def test_a_completion_without_tokens_is_compared_with_nothing() -> None:
    log_probs = torch.full((3, 2), -1.0)
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    found = trpa_loss(log_probs, log_probs, log_probs, mask, torch.tensor([1, 2, 4]), torch.zeros(3).long(), 3)
    assert found.num_pairs == 1
    assert found.loss.item() == pytest.approx(math.log(2))


# ---------------------------------------------------------------------- DPO


def pair(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> PairLogProbs:
    return PairLogProbs(*(torch.tensor([float(value)]) for value in (chosen, rejected, ref_chosen, ref_rejected)))


def test_dpo_value_of_the_source() -> None:
    assert dpo_loss(pair(-10, -11, -12, -9)).item() == pytest.approx(0.513015, abs=1e-6)


def test_dpo_at_the_reference() -> None:
    assert dpo_loss(pair(-10, -3, -10, -3)).item() == pytest.approx(math.log(2))


def test_dpo_is_over_sums_of_log_probs() -> None:
    log_probs = torch.tensor([[-4.0, -6.0, -100.0]])
    chosen = sequence_sum(log_probs, torch.tensor([[1, 1, 0]]))
    found = dpo_loss(pair(0, -11, -12, -9)._replace(chosen=chosen))
    assert found.item() == pytest.approx(0.513015, abs=1e-6)


def test_dpo_pushes_the_chosen_up() -> None:
    pairs = pair(-10, -11, -12, -9)
    for tensor in pairs:
        tensor.requires_grad_()
    dpo_loss(pairs).backward()
    weight = 0.1 * (1 - 1 / (1 + math.exp(-0.4)))
    assert pairs.chosen.grad is not None
    assert pairs.rejected.grad is not None
    assert pairs.chosen.grad.item() == pytest.approx(-weight)
    assert pairs.rejected.grad.item() == pytest.approx(weight)
    assert pairs.ref_chosen.grad is None


@given(seeds, st.integers(1, 9))
def test_dpo_parts_add_up(seed: int, rows: int) -> None:
    values = -20 * torch.rand(4, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole = dpo_loss(PairLogProbs(*values))
    parts = [dpo_loss(PairLogProbs(*part), num_pairs=rows) for part in values.split(2, dim=1)]
    assert sum(parts).item() == pytest.approx(whole.item())  # type: ignore[union-attr]


def test_visrl_stages() -> None:
    box, answer = pair(-10, -11, -12, -9), pair(-1, -1, -1, -1)
    first, _ = step_dpo_loss({"box": box}, {"box": 1.0})
    second, parts = step_dpo_loss({"box": box, "answer": answer}, {"box": 0.5, "answer": 0.5})
    assert first.item() == pytest.approx(0.513015, abs=1e-6)
    assert second.item() == pytest.approx((0.513015 + math.log(2)) / 2, abs=1e-6)
    assert {name: round(loss.item(), 4) for name, loss in parts.items()} == {"box": 0.513, "answer": 0.6931}
    for weights in ({"box": 1.0}, {"box": 1.0, "answer": -1.0}, {"box": 1.0, "answer": 1.0, "crop": 1.0}):
        with pytest.raises(ValueError, match="weight"):
            step_dpo_loss({"box": box, "answer": answer}, weights)


# ---------------------------------------------------------------------- SOPHIA


def test_filtered_likelihood() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-5.0, -math.inf], [-4.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]])
    weights = torch.tensor([1.0, 0.0, 0.5])
    assert filtered_nll(log_probs, mask, weights).item() == pytest.approx((3 + 2) / 3)
    assert filtered_nll(log_probs, mask, weights, "mean").item() == pytest.approx((1.5 + 2) / 3)
    found = filtered_nll(log_probs, mask, weights, denominator=2)
    assert found.item() == pytest.approx(2.5)
    found.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.5, -0.5], [0.0, 0.0], [-0.25, 0.0]]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_filtered_likelihood_refuses_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="weights"):
        filtered_nll(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([weight]))


# ---------------------------------------------------------------------- all


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_numerical_gradients(seed: int) -> None:
    rollouts = Rollouts(seed)
    log_probs = rollouts.tensors["log_probs"].requires_grad_()

    mask, weights = rollouts.tensors["mask"], rollouts.tensors["level"] - 1
    reference = sequence_sum(rollouts.tensors["ref_log_probs"], mask)

    def losses(log_probs: Tensor) -> tuple[Tensor, ...]:
        rollouts.tensors["log_probs"] = log_probs
        sums = sequence_sum(log_probs, mask)
        pairs = PairLogProbs(sums, sums.flip(0) * 0.5, reference, reference.flip(0))
        return rollouts.loss(kl_coefficient=0.1).loss, filtered_nll(log_probs, mask, weights), dpo_loss(pairs)

    assert torch.autograd.gradcheck(losses, (log_probs,))
