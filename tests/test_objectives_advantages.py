"""Advantages, weights, filters and the replay buffer: golden values, TRL's own formulas, NaN, order, saved states."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmreason.objectives import transforms
from mmreason.objectives.advantages import (
    dataset_weight,
    difficulty_weight,
    group_advantages,
    group_mean,
    group_std,
    informative_groups,
    mean_one,
    pass_rate_band,
    pass_rate_curve,
    pass_rate_weight,
)
from mmreason.objectives.replay import ReplayBuffer, replay_score, stack_groups

NAN = math.nan


@st.composite
def steps(draw: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """Rewards `[N]`, some not judged, and group numbers of groups of unequal size."""
    # On a grid, so that no spread is lost to rounding.
    reward = st.one_of(st.integers(-8, 8).map(lambda n: n / 4), st.just(NAN))
    rows = draw(st.lists(st.tuples(st.integers(-2, 4), reward), min_size=1, max_size=24))
    return torch.tensor([r for _, r in rows], dtype=torch.float64), torch.tensor([g for g, _ in rows])


# ---------------------------------------------------------------------- advantages


@pytest.mark.parametrize(("right", "good", "bad"), [(1, 2.4742, -0.3535), (4, 0.9352, -0.9352), (7, 0.3535, -2.4742)])
def test_golden_advantages_of_eight(right: int, good: float, bad: float) -> None:
    rewards = torch.tensor([1.0] * right + [0.0] * (8 - right))
    found = group_advantages(rewards, torch.zeros(8, dtype=torch.long))
    assert found.tolist() == pytest.approx([good] * right + [bad] * (8 - right), abs=1e-4)


def test_without_std_it_is_the_distance_to_the_mean() -> None:
    rewards, group = torch.tensor([1.0, 0, 0, 0, 5, 5]), torch.tensor([3, 3, 3, 3, 1, 1])
    assert group_advantages(rewards, group, "none").tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0]
    by_batch = group_advantages(rewards, group, "batch")
    assert torch.allclose(by_batch, group_advantages(rewards, group, "none") / (rewards.std() + 1e-4))


def test_what_is_not_judged_gets_zero_and_changes_nothing() -> None:
    rewards = torch.tensor([1.0, NAN, 0.0, 0.0, NAN, NAN, 0.7, NAN])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    for scale in ("group", "batch", "none"):
        found = group_advantages(rewards, group, scale)  # type: ignore[arg-type]
        alone = group_advantages(torch.tensor([1.0, 0, 0, 0.7]), torch.tensor([0, 0, 0, 2]), scale)  # type: ignore[arg-type]
        assert torch.allclose(found[[0, 2, 3, 6]], alone)
        assert not found[[1, 4, 5, 6, 7]].any()


def trl_advantages(rewards: Tensor, num_generations: int, scale: str) -> Tensor:
    """The lines of `GRPOTrainer._generate_and_score_completions` (TRL 1.16), with numpy in place of `trl.nanstd`."""
    grouped = rewards.view(-1, num_generations)
    mean = torch.nanmean(grouped, dim=1).repeat_interleave(num_generations)
    with np.errstate(all="ignore"):
        if scale == "batch":
            std = torch.tensor(np.nanstd(rewards.numpy(), ddof=1)).expand_as(rewards)
        else:
            by_group = torch.tensor(np.nanstd(grouped.numpy(), ddof=1, axis=1))
            std = by_group.repeat_interleave(num_generations)
    advantages = rewards - mean
    return (advantages if scale == "none" else advantages / (std + 1e-4)).nan_to_num(nan=0.0)


@pytest.mark.filterwarnings("ignore:Degrees of freedom")
@given(st.data(), st.integers(2, 6), st.integers(1, 5), st.sampled_from(["group", "batch", "none"]))
def test_the_same_as_trl(data: Any, size: int, groups: int, scale: Any) -> None:
    reward = st.one_of(st.integers(-8, 8).map(lambda n: n / 4), st.just(NAN))
    count = size * groups
    rewards = torch.tensor(data.draw(st.lists(reward, min_size=count, max_size=count)), dtype=torch.float64)
    group = torch.arange(groups).repeat_interleave(size)
    expected = trl_advantages(rewards, size, scale)
    assert torch.allclose(group_advantages(rewards, group, scale), expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_same_as_the_installed_trl(
    scale: Any, make_config: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    """Rewards go into TRL's own step and its advantages come out; one group is not judged at all, one partly."""
    config = make_config(objective={"scale_rewards": scale}, trainer={"steps": 1})
    trainer = make_trainer(config)
    size = config.rollout.group_size
    given_rewards: list[Tensor] = []
    calculate = trainer._calculate_rewards

    def score(*args: Any, **kwargs: Any) -> Tensor:
        rewards = calculate(*args, **kwargs)
        rewards.copy_(torch.rand(rewards.shape, generator=torch.Generator().manual_seed(1)))
        rewards[: size + 1] = NAN
        weighted = (rewards * trainer.reward_weights).nansum(dim=1)
        given_rewards.append(torch.where(rewards.isnan().all(dim=1), NAN, weighted))
        return rewards

    trainer._calculate_rewards = score
    trainer.fit()
    (rewards,) = given_rewards
    found = torch.tensor(list(trainer._logs["advantages"])[: len(rewards)])
    ours = group_advantages(rewards, torch.arange(len(rewards)) // size, scale)
    assert torch.allclose(found, ours, atol=1e-4)
    assert ours.abs().max() > 0.05


@given(steps(), st.sampled_from(["group", "batch", "none"]), st.integers(0, 2**31))
def test_properties_of_advantages(step: tuple[Tensor, Tensor], scale: Any, seed: int) -> None:
    rewards, group = step
    found = group_advantages(rewards, group, scale)
    assert found.isfinite().all()
    for number in group.unique():
        own = found[group == number]
        assert abs(own.sum().item()) < 1e-9
        if not informative_groups(rewards, group)[group == number].any():
            assert not own.any()
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(group_advantages(rewards[order], 50 - 3 * group[order], scale), found[order])
    assert torch.allclose(group_advantages(rewards + 2, group, scale), found)
    assert torch.allclose(group_advantages(-rewards, group, scale), -found)


@given(st.integers(2, 16), st.floats(-1e3, 1e3, width=32))
def test_equal_rewards_teach_exactly_nothing(size: int, value: float) -> None:
    rewards = torch.full((size,), value, dtype=torch.float32)
    for scale in ("group", "batch", "none"):
        assert not group_advantages(rewards, torch.zeros(size, dtype=torch.long), scale).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [
    lambda: group_advantages(torch.tensor([1.0, math.inf]), torch.zeros(2).long()),
    lambda: group_advantages(torch.tensor([1.0, 0.0]), torch.zeros(3).long()),
    lambda: group_advantages(torch.tensor([1, 0]), torch.zeros(2).long()),
    lambda: group_advantages(torch.tensor([1.0]), torch.zeros(1).long(), "std"),  # type: ignore[arg-type]
    lambda: difficulty_weight(torch.tensor([1.2])),
    lambda: difficulty_weight(torch.tensor([0.5]), "cube"),  # type: ignore[arg-type]
    lambda: difficulty_weight(torch.tensor([0.5]), "power", 0.0),
    lambda: pass_rate_weight(torch.zeros(2), torch.zeros(3)),
    lambda: pass_rate_weight(torch.zeros(2), torch.tensor([0.5, 2.0])),
    lambda: pass_rate_weight(torch.zeros(1), torch.zeros(1), low=2.0),
    lambda: pass_rate_band(torch.zeros(1), torch.zeros(1).long(), 0.5, 0.5),
    lambda: dataset_weight(["a"], {"a": -1.0}),
    lambda: dataset_weight(["a"], {}, default=NAN),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError):
        call()


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exp", [2.7183, 2.1170, 1.6487, 1.2840, 1.0]),
        ("power", [1.05, 0.8, 0.55, 0.3, 0.05]),
        ("log", [3.912, 1.3093, 0.6539, 0.2614, 0.0]),  # the released log form goes to -.0198
    ],
)
def test_difficulty_weights_of_the_source(kind: Any, expected: list[float]) -> None:
    found = difficulty_weight(torch.tensor([0, 0.25, 0.5, 0.75, 1.0]), kind)
    assert found.tolist() == pytest.approx(expected, abs=5e-5)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["exp", "power", "log"]), st.floats(0.1, 4))
def test_harder_prompts_never_weigh_less(one: float, two: float, kind: Any, exponent: float) -> None:
    hard, easy = difficulty_weight(torch.tensor(sorted((one, two)), dtype=torch.float64), kind, exponent).tolist()
    assert hard >= easy >= 0


def test_a_group_that_nobody_judged_has_weight_one() -> None:
    for kind in ("exp", "power", "log"):
        assert difficulty_weight(torch.tensor([NAN]), kind).tolist() == [1.0]  # type: ignore[arg-type]
    assert pass_rate_weight(torch.tensor([1.0, -1.0]), torch.tensor([NAN, NAN])).tolist() == [1.0, 1.0]


def test_lead_curve_of_the_source() -> None:
    found = pass_rate_curve(torch.tensor([0, 0.25, 0.5, 0.75, 0.875, 1]))
    assert found.tolist() == pytest.approx([1.4994, 1.4926, 1.4166, 0.95, 0.645, 0.4834], abs=5e-5)


def test_lead_asymmetry() -> None:
    """One right of eight: it weighs w(1/8), the seven wrong ones w(7/8); mirrored with seven right."""
    advantages, rate = torch.tensor([2.0, -0.3, 0.0]), torch.full((3,), 0.125)
    rare = pass_rate_weight(advantages, rate)
    assert rare.tolist() == pytest.approx([1.4979, 0.645, 1.0], abs=1e-4)
    assert torch.allclose(pass_rate_weight(-advantages, 1 - rate), rare)


@given(
    st.floats(0, 1), st.sampled_from([-1.0, 1.0]), st.floats(0.1, 1), st.floats(0, 2), st.floats(0, 1), st.floats(1, 30)
)
def test_lead_weights_stay_between_their_bounds(
    rate: float, sign: float, low: float, more: float, midpoint: float, steepness: float
) -> None:
    found = pass_rate_weight(
        torch.tensor([sign], dtype=torch.float64), torch.tensor([rate], dtype=torch.float64),
        low, low + more, midpoint, steepness,
    )  # fmt: skip
    assert low - 1e-9 <= found.item() <= low + more + 1e-9


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_weights_of_mean_one(values: list[float]) -> None:
    weights = torch.tensor(values, dtype=torch.float64)
    found = mean_one(weights)
    if weights.any() and weights.mean() > 1e-300:
        assert found.mean().item() == pytest.approx(1.0)
        assert torch.allclose(found * weights.mean(), weights)
    else:
        assert (found >= 0).all()


def test_weights_of_data_sets() -> None:
    assert dataset_weight(["a", "b", "c", "a"], {"a": 0.5, "c": 0.0}).tolist() == [0.5, 1.0, 0.0, 0.5]
    assert dataset_weight(["a", "b"], {"a": 2.0}, default=0.0).tolist() == [2.0, 0.0]


def test_transforms_multiply_advantages_by_the_weights_and_obey_their_options() -> None:
    advantages, group = np.array([1.0, -1.0, 2.0, -2.0]), np.array([0, 0, 1, 1])
    scores, correct = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    hard, easy = math.exp(0.5), 1.0
    found = transforms.difficulty_weight(advantages, group, {"iou": scores}, reward="iou")
    assert found.tolist() == pytest.approx([hard, -hard, 2 * easy, -2 * easy])
    found = transforms.difficulty_weight(advantages, group, {"iou": scores}, kind="power", exponent=2.0)
    assert found.tolist() == pytest.approx([0.55**2, -(0.55**2), 2 * 0.05**2, -2 * 0.05**2])
    mean = (hard + easy) / 2
    found = transforms.difficulty_weight(advantages, group, {"iou": scores}, mean_one=True)
    assert found.tolist() == pytest.approx([hard / mean, -hard / mean, 2 * easy / mean, -2 * easy / mean])
    found = transforms.pass_rate_weight(advantages, group, correct)
    # w(p) for what is good, w(1 - p) for what is bad: p is .5 in the first group and 1 in the second.
    assert found.tolist() == pytest.approx([1.4166, -1.4166, 2 * 0.4834, -2 * 1.4994], abs=2e-4)
    found = transforms.pass_rate_weight(advantages, group, correct, low=1.0, high=1.0)
    assert found.tolist() == pytest.approx(advantages.tolist())
    assert transforms.pass_rate_band(advantages, group, correct).tolist() == [1, -1, 0, 0]
    assert transforms.pass_rate_band(advantages, group, correct, low=0.5).tolist() == [0, 0, 0, 0]
    assert transforms.pass_rate_band(advantages, group, correct, high=0.5).tolist() == [0, 0, 0, 0]
    names = ["a", "a", "b", "c"]
    found = transforms.dataset_weight(advantages, names, weights={"a": 2.0, "b": 0.0}, default=3.0)
    assert found.tolist() == [2, -2, 0, -6]


@given(steps())
def test_group_statistics_against_numpy(step: tuple[Tensor, Tensor]) -> None:
    rewards, group = step
    for row, number in enumerate(group):
        judged = rewards[(group == number) & ~rewards.isnan()].numpy()
        mean = judged.mean() if len(judged) else NAN
        std = judged.std(ddof=1) if len(judged) > 1 else NAN
        assert group_mean(rewards, group)[row].item() == pytest.approx(mean, nan_ok=True)
        assert group_std(rewards, group)[row].item() == pytest.approx(std, nan_ok=True, abs=1e-12)


# ---------------------------------------------------------------------- filters


def test_groups_that_can_teach() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, NAN, NAN, NAN, 0.3, 0.3 + 1e-9])
    group = torch.tensor([9, 9, 1, 1, 2, 2, 3, 3, 4, 4])
    assert informative_groups(rewards, group).tolist() == [True, True] + [False] * 8
    wide = torch.tensor([0.3, 0.3 + 1e-9], dtype=torch.float64)
    assert informative_groups(wide, torch.zeros(2).long(), tolerance=0.0).all()
    assert not informative_groups(torch.ones(2), torch.zeros(2).long(), tolerance=0.0).any()


def test_band_of_pass_rates() -> None:
    correct = torch.tensor([1.0, 0, 0, 0, 1, 1, NAN, 1, NAN, NAN])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert pass_rate_band(correct, group).tolist() == [True, True] + [False] * 8
    assert pass_rate_band(correct, group, -1.0, 0.4).tolist() == [False, False, True, True] + [False] * 6


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_both_filters_agree_on_right_and_wrong(rows: list[tuple[int, bool]]) -> None:
    group = torch.tensor([number for number, _ in rows])
    correct = torch.tensor([float(right) for _, right in rows])
    kept = informative_groups(correct, group)
    assert torch.equal(kept, pass_rate_band(correct, group))
    assert torch.equal(kept, (group_mean(correct, group) > 0) & (group_mean(correct, group) < 1))
    assert not group_advantages(correct, group)[~kept].any()


# ---------------------------------------------------------------------- replay


def filled(scores: list[float], max_groups: int = 100, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(max_groups, 10, seed)
    for place, score in enumerate(scores):
        buffer.add(f"row {place}", 0, score, {"ids": torch.full((2, 3), place)})
    return buffer


def test_score_of_a_group() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    advantages = group_advantages(rewards, torch.zeros(4).long())
    assert replay_score(rewards, advantages) == pytest.approx(1.5, abs=1e-3)  # (1.5 + 3 · .5) · .5
    assert replay_score(torch.ones(4), torch.zeros(4)) == 0.0
    assert replay_score(torch.tensor([1.0, NAN]), torch.zeros(2)) == 0.0
    assert replay_score(torch.tensor([1.0, 0.0, NAN]), torch.tensor([1.0, -1.0, NAN])) == pytest.approx(2 * 0.5**0.5)


def test_the_best_stay_and_nothing_uninformative_comes_in() -> None:
    buffer = ReplayBuffer(max_groups=2, max_age_steps=10)
    assert buffer.add("a", 0, 1.0, {})
    assert not buffer.add("b", 0, 0.0, {})
    assert buffer.add("c", 1, 3.0, {})
    assert buffer.add("d", 1, 2.0, {})
    assert not buffer.add("e", 1, 1.5, {})
    assert [group.key for group in buffer.groups] == ["c", "d"]
    assert buffer.add("f", 2, 2.0, {}), "among equals the newer stays"
    assert [group.key for group in buffer.groups] == ["c", "f"]
    with pytest.raises(ValueError, match="finite"):
        buffer.add("g", 2, NAN, {})


def test_a_row_is_there_once_with_its_newest_group() -> None:
    buffer = ReplayBuffer(4, 10)
    buffer.add("a", 0, 3.0, {"x": torch.zeros(1)})
    buffer.add("a", 1, 1.0, {"x": torch.ones(1)})
    assert [(group.step, group.score) for group in buffer.groups] == [(1, 1.0)]
    buffer.add("a", 2, 0.0, {})
    assert len(buffer) == 0, "it has been learned"


def test_old_groups_go() -> None:
    buffer = filled([1.0, 2.0])
    assert len(buffer.sample(5, step=10)) == 2
    assert buffer.sample(5, step=11) == []
    assert len(buffer) == 0


def test_stored_tensors_are_copies_without_gradient() -> None:
    source = torch.zeros(2, requires_grad=True)
    buffer = ReplayBuffer(1, 1)
    buffer.add("a", 0, 1.0, {"x": source})
    with torch.no_grad():
        source += 1
    stored = buffer.groups[0].tensors["x"]
    assert stored.tolist() == [0.0, 0.0]
    assert not stored.requires_grad


@given(st.lists(st.floats(0.01, 10), max_size=12), st.integers(0, 15), st.integers(0, 1000))
def test_draws_are_different_groups_and_repeatable(scores: list[float], count: int, seed: int) -> None:
    one, two = filled(scores, seed=seed), filled(scores, seed=seed)
    for _ in range(3):
        keys = [group.key for group in one.sample(count, 1, exclude=["row 0"])]
        assert keys == [group.key for group in two.sample(count, 1, exclude=["row 0"])]
        assert len(set(keys)) == len(keys) == min(count, max(0, len(scores) - 1))
        assert "row 0" not in keys
    assert len(one) == len(scores), "a draw takes nothing away"


def test_draws_follow_the_scores() -> None:
    buffer = filled([1.0, 3.0], seed=4)
    first = [buffer.sample(1, 0)[0].key for _ in range(400)]
    # 300 expected; the standard deviation is 8.7.
    assert 260 <= first.count("row 1") <= 340


@given(st.lists(st.floats(0.01, 10), max_size=8), st.integers(0, 3), st.integers(0, 99))
def test_a_saved_buffer_goes_on_as_if_nothing_had_happened(scores: list[float], draws: int, seed: int) -> None:
    buffer, restored = filled(scores, seed=seed), ReplayBuffer(100, 10, seed)
    for _ in range(draws):
        buffer.sample(2, 1)
    described, tensors = buffer.state()
    restored.load(json.loads(json.dumps(described)), tensors)
    assert [(g.key, g.step, g.score) for g in restored.groups] == [(g.key, g.step, g.score) for g in buffer.groups]
    again, expected = restored.sample(3, 2), buffer.sample(3, 2)
    assert [group.key for group in again] == [group.key for group in expected]
    for one, two in zip(again, expected, strict=True):
        assert torch.equal(one.tensors["ids"], two.tensors["ids"])


def test_the_state_fits_into_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    described, tensors = filled([1.0, 2.0]).state()
    save_file(tensors, tmp_path / "replay.safetensors")
    restored = ReplayBuffer(2, 10)
    restored.load(described, load_file(tmp_path / "replay.safetensors"))
    assert stack_groups(restored.groups, "ids")[:, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("described", "tensors"),
    [
        ({}, {}),
        ({"draws": 0, "groups": [{"key": "a"}]}, {}),
        ({"draws": 0, "groups": []}, {"0/x": torch.zeros(1)}),
        ({"draws": 0, "groups": [{"key": "a", "step": 0, "score": NAN}]}, {}),
        ({"draws": -1, "groups": []}, {}),
        ({"draws": 0, "groups": []}, {"x": torch.zeros(1)}),
    ],
)
def test_other_states_are_refused(described: Any, tensors: Any) -> None:
    buffer = filled([1.0])
    with pytest.raises(ValueError, match="no saved state"):
        buffer.load(described, tensors)
    assert len(buffer) == 1


def test_groups_of_different_lengths_are_not_joined_silently() -> None:
    buffer = ReplayBuffer(2, 1)
    buffer.add("a", 0, 1.0, {"x": torch.zeros(2, 3)})
    buffer.add("b", 0, 1.0, {"x": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="pad"):
        stack_groups(buffer.groups, "x")
