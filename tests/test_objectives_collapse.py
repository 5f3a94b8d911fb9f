"""The collapse guard of PAPO: quiet on healthy runs, early on the published trajectory, exact after a restart."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.objectives.collapse import SIGNS, CollapseGuard, GuardOptions, GuardVerdict, StepSignals

HEALTHY = StepSignals(0.05, 0.0005, 0.3, 0.4, 0.5, 0.1)
COLLAPSED = StepSignals(0.8, 0.008, 1.2, 1.6, 0.1, 0.84)
seeds = st.integers(0, 2**31)


def noisy(signals: StepSignals, rng: np.random.Generator, low: float, high: float) -> StepSignals:
    return StepSignals(*(getattr(signals, field.name) * rng.uniform(low, high) for field in fields(signals)))


def collapse(seed: int, start: int = 40, fall: int = 125, steps: int = 160) -> list[StepSignals]:
    """The published shape: from `start` everything climbs by a constant factor a step; the reward rises until `fall`, then falls."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(steps):
        way = min(1.0, max(0.0, (step - start) / (fall - start)))
        level = StepSignals(
            *(
                getattr(HEALTHY, field.name) * (getattr(COLLAPSED, field.name) / getattr(HEALTHY, field.name)) ** way
                for field in fields(HEALTHY)
            )
        )
        reward = 0.5 + 0.001 * step if step <= fall else max(0.1, 0.6 - 0.03 * (step - fall))
        found.append(noisy(replace(level, reward=reward), rng, 0.9, 1.1))
    return found


def watch(signals: list[StepSignals], guard: CollapseGuard | None = None) -> list[GuardVerdict]:
    guard = guard or CollapseGuard()
    return [guard.observe(step, signal) for step, signal in enumerate(signals)]


def alarms(verdicts: list[GuardVerdict]) -> list[int]:
    return [step for step, verdict in enumerate(verdicts) if verdict.alarm]


# ---------------------------------------------------------------------- quiet


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.001, 0.4), st.floats(0.0, 0.1), st.floats(0.01, 3), st.integers(20, 150))
def test_stationary_noise_raises_nothing(seed: int, kl: float, clip: float, entropy: float, steps: int) -> None:
    rng = np.random.default_rng(seed)
    # Noise within a factor of 1.9 in all: below every rise, and K stays under its limit.
    level = StepSignals(kl, clip, entropy, entropy, 0.5, 10 * kl)
    verdicts = watch([noisy(level, rng, 0.65, 1.23) for _ in range(steps)])
    assert alarms(verdicts) == []
    assert all(verdict.factor == 1.0 for verdict in verdicts)
    assert {sign.name for verdict in verdicts for sign in verdict.signs} <= {"reward"}


def test_a_model_that_learns_to_look_is_left_alone() -> None:
    """K rises thirtyfold while entropies and clips stay: not a collapse."""
    signals = [replace(HEALTHY, perception_kl=0.01 * 30 ** min(1.0, step / 100)) for step in range(150)]
    verdicts = watch(signals)
    assert alarms(verdicts) == []
    assert [sign.name for sign in verdicts[-1].signs] == ["perception_kl"]


def test_one_outlier_raises_nothing() -> None:
    signals = [HEALTHY] * 60
    signals[30] = signals[31] = COLLAPSED
    assert alarms(watch(signals)) == []


def test_other_trouble_is_not_blamed_on_the_perception_term() -> None:
    """Entropies, clips and reward go wrong, K does not move."""
    bad = replace(COLLAPSED, perception_kl=HEALTHY.perception_kl)
    verdicts = watch([HEALTHY] * 20 + [bad] * 30)
    assert alarms(verdicts) == []
    assert [sign.name for sign in verdicts[-1].signs] == ["clip_high", "entropies", "reward", "perception_kl_variance"]


# ---------------------------------------------------------------------- loud


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(12, 80))
def test_the_published_collapse_is_seen_before_the_reward_falls(seed: int, start: int) -> None:
    verdicts = watch(collapse(seed, start))
    first = alarms(verdicts)[0]
    assert start < first < 125
    verdict = verdicts[first]
    assert "reward" not in {sign.name for sign in verdict.signs}
    assert verdict.factor == 0.5
    assert f"step {first}" in verdict.alarm
    assert "perception_kl" in verdict.alarm
    last = [sign.name for sign in verdicts[-1].signs]
    assert last == list(SIGNS), "all of them in the published order"


def test_signs_say_since_when_and_how_far() -> None:
    verdicts = watch(collapse(0))
    signs = {sign.name: sign for sign in verdicts[-1].signs}
    assert signs["perception_kl"].first == pytest.approx(0.05, rel=0.1)
    assert signs["perception_kl"].recent == pytest.approx(0.8, rel=0.1)
    assert signs["entropies"].recent == pytest.approx(1.6, rel=0.1), "the masked one is shown"
    for name, sign in signs.items():
        standing = [name in {s.name for s in verdict.signs} for verdict in verdicts]
        assert all(standing[sign.since_step :])
        assert not standing[sign.since_step - 1]
    assert signs["reward"].since_step > max(signs[n].since_step for n in SIGNS if n != "reward")


def test_a_large_k_is_enough_even_in_the_first_steps() -> None:
    verdicts = watch([StepSignals(perception_kl=0.9)] * 10)
    assert alarms(verdicts)[0] == 4  # three steps to see it, and three in a row
    assert alarms(watch([StepSignals(perception_kl=0.49)] * 40)) == []


def test_cuts_wait_and_pile_up() -> None:
    options = GuardOptions(cooldown_steps=7, cut=0.25, patience_steps=1)
    verdicts = watch([HEALTHY] * 10 + [COLLAPSED] * 30, CollapseGuard(options))
    found = alarms(verdicts)
    assert len(found) >= 3
    assert {late - early for early, late in pairwise(found)} == {7}
    assert verdicts[-1].factor == 0.25 ** len(found)
    factors = [verdict.factor for verdict in verdicts]
    assert factors == sorted(factors, reverse=True), "it never rises"


def test_a_cut_to_nothing_is_the_last_word() -> None:
    verdicts = watch([COLLAPSED] * 80, CollapseGuard(GuardOptions(cut=0.0)))
    assert len(alarms(verdicts)) == 1
    assert verdicts[-1].factor == 0.0


def test_alarms_without_cuts() -> None:
    signals = collapse(2)
    verdicts = watch(signals, CollapseGuard(GuardOptions(enabled=False)))
    assert alarms(verdicts) == alarms(watch(signals))
    assert {verdict.factor for verdict in verdicts} == {1.0}
    assert "Nothing is cut" in verdicts[alarms(verdicts)[0]].alarm


def test_on_policy_training_without_masked_entropy() -> None:
    """Nothing is ever clipped and one entropy is not measured: the other still counts."""
    drop: dict[str, Any] = {"clip_high": 0.0, "masked_entropy": math.nan, "perception_kl_variance": math.nan}
    verdicts = watch([replace(signals, **drop) for signals in collapse(1)])
    assert alarms(verdicts)[0] < 125
    assert [sign.name for sign in verdicts[-1].signs] == ["perception_kl", "entropies", "reward"]


def test_both_entropies_must_climb() -> None:
    half = replace(COLLAPSED, entropy=HEALTHY.entropy, clip_high=0.0, perception_kl=0.3, perception_kl_variance=0.1)
    verdicts = watch([HEALTHY] * 20 + [half] * 20)
    assert [sign.name for sign in verdicts[-1].signs] == ["perception_kl", "reward"]
    assert alarms(verdicts) == []


@settings(deadline=None)
@given(seeds, st.integers(0, 159))
def test_steps_without_numbers_change_nothing(seed: int, at: int) -> None:
    signals = collapse(seed)[:100]
    guard, other = CollapseGuard(), CollapseGuard()
    for step, signal in enumerate(signals):
        if step == at:
            empty = StepSignals(math.nan, math.inf, -math.inf)
            before = {key: value for key, value in other.state_dict().items() if key in ("first", "recent")}
            other.observe(step, empty)
            assert {key: other.state_dict()[key] for key in before} == before
        guard.observe(step, signal)
        other.observe(step, signal)
    assert guard.state_dict()["recent"] == other.state_dict()["recent"]


# ---------------------------------------------------------------------- saved


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 160))
def test_a_restart_at_any_step_changes_nothing(seed: int, at: int) -> None:
    signals = collapse(seed)
    whole = watch(signals)
    first = CollapseGuard()
    verdicts = [first.observe(step, signal) for step, signal in enumerate(signals[:at])]
    second = CollapseGuard()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    verdicts += [second.observe(at + step, signal) for step, signal in enumerate(signals[at:])]
    assert verdicts == whole
    assert second.factor == whole[-1].factor


@pytest.mark.parametrize(
    "state", [{}, {"factor": 1.0}, {**CollapseGuard().state_dict(), "first": [1]}, {"factor": "x"}]
)
def test_other_states_are_refused(state: dict[str, Any]) -> None:
    guard = CollapseGuard()
    guard.observe(0, HEALTHY)
    before = guard.state_dict()
    with pytest.raises(ValueError, match="no saved state"):
        guard.load_state_dict(state)
    assert guard.state_dict() == before


@pytest.mark.parametrize(
    "options",
    [{"cut": 1.0}, {"cut": -0.1}, {"rise_entropy": 1.0}, {"patience_steps": 0}, {"max_perception_kl": math.nan}],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"collapse guard: {next(iter(options))}"):
        GuardOptions(**options)  # type: ignore[arg-type]


def rising(seed: int, entropy_rise: float, steps: int = 40) -> list[str]:
    """Alarms of a run whose K is large from the start and rises slowly, with the entropy or without."""
    random = np.random.default_rng(seed)
    guard = CollapseGuard(GuardOptions(max_perception_kl=9.0))
    told = []
    for step in range(steps):
        noise = random.normal(0, 0.02, 3)
        signals = StepSignals(
            perception_kl=2.0 + 0.015 * step + noise[0],
            entropy=0.35 + entropy_rise * step + noise[1],
            masked_entropy=2.7 + 0.02 * step + noise[2],
            reward=0.6,
        )
        told.append(guard.observe(step + 1, signals).alarm)
    return [text for text in told if text]


@pytest.mark.parametrize("seed", range(5))
def test_a_joint_trend_is_an_alarm_at_any_level(seed: int) -> None:
    assert "all rise: entropy" in rising(seed, 0.006)[0]


@pytest.mark.parametrize("seed", range(5))
def test_learning_to_look_does_not_raise_the_entropy(seed: int) -> None:
    """K and the masked entropy rise, the entropy with the picture stays or falls."""
    assert not rising(seed, 0.0)
    assert not rising(seed, -0.002)


def test_noise_rarely_looks_like_a_joint_trend() -> None:
    """Independent noise in all three, 200 runs of 100 steps."""
    fired = 0
    for seed in range(200):
        random = np.random.default_rng([7, seed])
        guard = CollapseGuard(GuardOptions(max_perception_kl=9.0))
        for step in range(100):
            kl, entropy, masked = np.array([2.0, 0.4, 2.7]) + random.normal(0, 0.1, 3)
            if guard.observe(step, StepSignals(kl, 0.0, entropy, masked, 0.5, 1.0)).alarm:
                fired += 1
                break
    assert fired <= 2
