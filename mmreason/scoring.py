"""Scoring: rollouts in, a table of rewards out. Everything a reward author or a trainer imports is here.

What enters: `Rollout` records and a `RewardConfig`. What leaves: a `ScoreTable` with one value per rollout
and reward (NaN = "does not apply" or failed), the weighted total, and what failed, counted by kind. A reward
that raises or returns nonsense becomes data here, at this one boundary; when too many calls fail, the run
stops instead of training on noise. No torch.

Shapes: N rollouts, R rewards.
"""

from __future__ import annotations

import math
import numbers
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmreason.boxes import Boxes, Frame, parse_boxes
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, RewardFailure
from mmreason.records import Rollout
from mmreason.reward_spec import (
    NEEDS,
    REWARDS,
    RewardOptions,
    RewardResult,
    RewardSpec,
    build_spec,
    load_reward_files,
    reward,
    validate_reward_config,
)

__all__ = [
    "NEEDS",
    "REWARDS",
    "FailureKind",
    "RewardFailure",
    "RewardOptions",
    "RewardResult",
    "RewardRunner",
    "RewardSpec",
    "ScoreTable",
    "build_spec",
    "load_reward_files",
    "reward",
    "validate_reward_config",
]

FloatArray: TypeAlias = NDArray[np.float64]
FailureKind = Literal["exception", "not_a_number", "non_finite", "out_of_range"]

#: A value this far outside the declared range is rounding and is moved onto the bound.
_RANGE_TOLERANCE = 1e-6
#: Kept of a traceback, from its end: a message may quote megabytes of model text.
_MAX_TRACEBACK_CHARS = 4000
#: Lines of the first traceback that `RewardFailure` shows.
_SHOWN_TRACEBACK_LINES = 6


@dataclass(frozen=True)
class ScoreTable:
    """The rewards of N rollouts.

    Attributes:
        names: R reward names, in the order of the config.
        values: `[N, R]`; NaN where a reward does not apply or failed.
        total: `[N]` weighted sum over the rewards that apply; NaN where none with a weight other than 0 does.
        parts: `reward/part` -> `[N]`, NaN where a rollout has no such part.
        failures: `(reward, kind)` -> number of failed calls.
        first_traceback: reward -> traceback (or explanation) of its first failure.
    """

    names: tuple[str, ...]
    values: FloatArray
    total: FloatArray
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    failures: Counter[tuple[str, FailureKind]] = field(default_factory=Counter)
    first_traceback: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.total.shape[0])

    def column(self, name: str) -> FloatArray:
        """The `[N]` values of one reward."""
        values: FloatArray = self.values[:, self.names.index(name)]
        return values

    def as_lists(self) -> dict[str, list[float | None]]:
        """Name -> N values with `None` for NaN: the form that rollout records take."""
        return {
            name: [None if math.isnan(value) else float(value) for value in self.values[:, index]]
            for index, name in enumerate(self.names)
        }


class _Context:
    """What rewards may ask about one rollout; each thing is worked out once and shared by all rewards."""

    def __init__(self, rollout: Rollout, progress: float) -> None:
        self.rollout = rollout
        self.progress = progress

    @property
    def completion(self) -> str:
        return self.rollout.text

    @property
    def answer(self) -> str | None:
        return self.rollout.answer

    @property
    def target(self) -> Mapping[str, Any]:
        return self.rollout.row.target

    @property
    def columns(self) -> Mapping[str, Any]:
        return self.rollout.row.columns

    @property
    def geometry(self) -> tuple[Any, ...]:
        return self.rollout.geometry

    @cached_property
    def box_frame(self) -> Frame:
        return Frame(self.rollout.box_frame)

    @cached_property
    def boxes(self) -> Boxes:
        return parse_boxes(self.rollout.answer or "", self.box_frame)


@dataclass(frozen=True)
class _Outcome:
    """One call of one reward: a value or nothing, and how it failed if it did."""

    value: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: tuple[FailureKind, str] | None = None


@dataclass(frozen=True)
class _ActiveReward:
    """A reward with the options of this run."""

    spec: RewardSpec
    weight: float
    options: Mapping[str, Any]

    def __call__(self, context: _Context) -> _Outcome:
        """Call the reward; whatever goes wrong in it comes back as an outcome."""
        try:
            needs = {need: getattr(context, need) for need in self.spec.needs}
            returned = self.spec.function(**needs, **self.options)
            return self._check(returned)
        except (Exception, SystemExit):  # noqa: BLE001 - the one boundary: a reward may raise anything
            return _Outcome(failure=("exception", traceback.format_exc()[-_MAX_TRACEBACK_CHARS:]))

    def _check(self, returned: object) -> _Outcome:
        result = returned if isinstance(returned, RewardResult) else RewardResult(returned)  # type: ignore[arg-type]
        parts: dict[str, float] = {}
        for part, number in result.parts.items():
            if problem := _not_finite_number(number):
                return self._failed(problem[0], f"{problem[1]} (its part '{part}')")
            parts[str(part)] = float(number)
        if result.value is None:
            return _Outcome(parts=parts)
        if problem := _not_finite_number(result.value):
            return self._failed(*problem)
        value, (low, high) = float(result.value), self.spec.range
        if not low - _RANGE_TOLERANCE <= value <= high + _RANGE_TOLERANCE:
            return self._failed(
                "out_of_range",
                f"returned {value:g}, outside its declared range [{low:g}, {high:g}]: "
                "correct the formula or @reward(range=...)",
            )
        return _Outcome(min(max(value, low), high), parts)

    def _failed(self, kind: FailureKind, explanation: str) -> _Outcome:
        return _Outcome(failure=(kind, f"reward '{self.spec.name}' {explanation}"))


class RewardRunner:
    """Scores rollouts with the rewards of a config, and keeps count of what failed.

    Args:
        config: active rewards, their weights and options.

    Attributes:
        names: active rewards, in the order of the config.
        weights: `[R]`.
        failures: `(reward, kind)` -> failed calls since the runner was made.
        calls: reward calls per reward since the runner was made.
        first_traceback: reward -> traceback (or explanation) of its first failure.

    Raises:
        ConfigError: no reward is active, or one is wrong; see `validate_reward_config`.
        PluginError: a reward file cannot be used.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._rewards = [_activate(name, options) for name, options in validate_reward_config(config).items()]
        if not self._rewards:
            raise ConfigError(
                f"no reward is active: choose at least one, e.g. reward.{REWARDS.names()[0]}.weight=1. "
                f"Known: {', '.join(REWARDS.names())}."
            )
        self.names = tuple(active.spec.name for active in self._rewards)
        self.weights: FloatArray = np.array([active.weight for active in self._rewards])
        self.max_failure_share = config.max_failure_share
        self.failures: Counter[tuple[str, FailureKind]] = Counter()
        self.calls = 0
        self.first_traceback: dict[str, str] = {}

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """Reward -> what it needs."""
        return {active.spec.name: active.spec.needs for active in self._rewards}

    def score(self, rollouts: Sequence[Rollout], progress: float = 0.0) -> ScoreTable:
        """Score rollouts; a value depends on its own rollout only, never on its neighbours or their order.

        Args:
            rollouts: N completions.
            progress: share of the training that is done, 0..1.

        Raises:
            RewardFailure: more than `max_failure_share` of one reward's N calls failed.
        """
        values = np.full((len(rollouts), len(self._rewards)), np.nan)
        parts: dict[str, FloatArray] = {}
        failures: Counter[tuple[str, FailureKind]] = Counter()
        first: dict[str, str] = {}
        for row, rollout in enumerate(rollouts):
            context = _Context(rollout, progress)
            for column, active in enumerate(self._rewards):
                outcome = active(context)
                values[row, column] = outcome.value
                for part, number in outcome.parts.items():
                    key = f"{active.spec.name}/{part}"
                    parts.setdefault(key, np.full(len(rollouts), np.nan))[row] = number
                if outcome.failure is not None:
                    kind, explanation = outcome.failure
                    failures[active.spec.name, kind] += 1
                    first.setdefault(active.spec.name, f"row '{rollout.row.id}': {explanation}")
        self.calls += len(rollouts)
        self.failures += failures
        self.first_traceback = first | self.first_traceback
        self._stop_past_share(failures, first, len(rollouts))
        return ScoreTable(self.names, values, weighted_total(values, self.weights), parts, failures, first)

    def _stop_past_share(
        self, failures: Counter[tuple[str, FailureKind]], first: Mapping[str, str], num_calls: int
    ) -> None:
        for name in self.names:
            kinds = {kind: count for (failed, kind), count in failures.items() if failed == name}
            failed = sum(kinds.values())
            if failed > self.max_failure_share * num_calls:
                raise RewardFailure(
                    f"reward '{name}' failed in {failed} of {num_calls} calls ({failed / num_calls:.0%}: "
                    f"{', '.join(f'{count} × {kind}' for kind, count in sorted(kinds.items()))}), more than "
                    f"reward.max_failure_share={self.max_failure_share:g} allows. First failure:\n"
                    + _last_lines(first[name])
                )


def _not_finite_number(value: object) -> tuple[FailureKind, str] | None:
    """What is wrong with a returned value, or `None` if it is a finite number."""
    if not isinstance(value, (numbers.Real, np.bool_)):
        return (
            "not_a_number",
            f"returned {value!r:.200}, a {type(value).__name__} and neither a number nor None",
        )
    if not math.isfinite(value):
        return "non_finite", f"returned {float(value)}"
    return None


def weighted_total(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Sum over the rewards that apply.

    Args:
        values: `[N, R]`, NaN = does not apply.
        weights: `[R]`.

    Returns:
        `[N]`; NaN where no reward with a weight other than 0 applies.
    """
    weighs = weights != 0.0
    applies = ~np.isnan(values[:, weighs])
    total: FloatArray = np.where(applies, values[:, weighs] * weights[weighs], 0.0).sum(axis=1)
    total[~applies.any(axis=1)] = np.nan
    return total


def _activate(name: str, options: RewardOptions) -> _ActiveReward:
    spec = REWARDS.get(name)
    return _ActiveReward(spec, options.weight, {option: getattr(options, option) for option in spec.option_names})


def _last_lines(text: str) -> str:
    lines = text.strip().splitlines()
    head = [] if len(lines) <= _SHOWN_TRACEBACK_LINES else [lines[0][:200], "  ..."]
    return "\n".join(f"  {line[:400]}" for line in head + lines[-_SHOWN_TRACEBACK_LINES:])
