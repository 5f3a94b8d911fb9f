"""Scoring: rollouts in, a table of rewards out. Everything a reward author or a trainer imports is here.

What enters: `Rollout` records and a `RewardConfig`. What leaves: a `ScoreTable` with one value per rollout
and reward (NaN = "does not apply" or failed), the total, and what failed, counted by kind. A reward that raises,
hangs, crashes or returns nonsense becomes data (`mmreason.reward_kit.outcome`); when too many calls fail, the run
stops instead of training on noise. No torch.

    rollouts ─▶ rewards of single rollouts ─▶ group and batch rewards ─▶ shapers ─▶ gates, weights, combine ─▶ total
                └─── here, on the event loop, or in child processes ───┘

Shapes: n rollouts of this process, N of all processes, R rewards.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, RewardFailure
from mmreason.plugin_functions import MustBeSet
from mmreason.records import Rollout
from mmreason.reward_kit.composition import Composition, Condition, FloatArray, weighted_total
from mmreason.reward_kit.execution import Executor
from mmreason.reward_kit.groups import Alone, Exchange, GroupFacts, Groups, Member, RolloutFacts
from mmreason.reward_kit.needs import BATCH_NEEDS, GROUP_NEEDS, NEEDS, SHAPER_NEEDS
from mmreason.reward_kit.outcome import Call, FailureKind, Outcome, failed, raised
from mmreason.reward_kit.settings import no_judge, shaper_options, validate_reward_config
from mmreason.reward_kit.spec import (
    REWARDS,
    SHAPERS,
    DeadlineOptions,
    Per,
    RewardInRun,
    RewardOptions,
    RewardResult,
    RewardSpec,
    ShaperSpec,
    batch_reward,
    build_spec,
    group_reward,
    load_reward_files,
    reward,
    shaper,
)
from mmreason.reward_kit.state import States

if TYPE_CHECKING:
    from mmreason.judge.service import JudgeService

__all__ = [
    "BATCH_NEEDS",
    "GROUP_NEEDS",
    "NEEDS",
    "REWARDS",
    "SHAPERS",
    "SHAPER_NEEDS",
    "Exchange",
    "FailureKind",
    "FloatArray",
    "MustBeSet",
    "RewardFailure",
    "RewardInRun",
    "RewardOptions",
    "RewardResult",
    "RewardRunner",
    "RewardSpec",
    "ScoreTable",
    "ShaperSpec",
    "batch_reward",
    "build_spec",
    "group_reward",
    "load_reward_files",
    "reward",
    "shaper",
    "validate_reward_config",
    "weighted_total",
]

#: Lines of the first traceback that `RewardFailure` shows.
_SHOWN_TRACEBACK_LINES = 6
#: What shapers are told about single rollouts.
_ROLLOUT_COLUMNS = frozenset({"completion", "answer", "target", "columns", "row_id"})


@dataclass(frozen=True)
class ScoreTable:
    """The rewards of the n rollouts of this process.

    Attributes:
        names: `[R]` rewards in the order of the config.
        values: `[n, R]`, NaN where a reward does not apply or failed; before shapers, gates and weights.
        total: `[n]` what is trained on; NaN where no reward with a weight other than 0 applies.
        terms: `[n, R]` whose sum, weighted with the runner's `weights` and NaN left out, is `total`.
        parts: `reward/part` -> `[n]`, NaN where a rollout has no such part.
        part_means: `reward/part` -> mean over the rollouts of all processes that have it; `reward/shaped` -> mean of
            a reward after the shapers, where they changed it.
        failures: `(reward, kind)` -> number of failed calls, of all processes.
        first_traceback: reward -> traceback (or explanation) of its first failure.
    """

    names: tuple[str, ...]
    values: FloatArray
    total: FloatArray
    terms: FloatArray
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    part_means: Mapping[str, float] = field(default_factory=dict)
    failures: Counter[tuple[str, FailureKind]] = field(default_factory=Counter)
    first_traceback: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.total.shape[0])

    def column(self, name: str) -> FloatArray:
        """The `[n]` values of one reward."""
        values: FloatArray = self.values[:, self.names.index(name)]
        return values

    def as_lists(self) -> dict[str, list[float | None]]:
        """Name -> n values with `None` for NaN: the form that rollout records take."""
        return {
            name: [None if math.isnan(value) else float(value) for value in self.values[:, index]]
            for index, name in enumerate(self.names)
        }


@dataclass(frozen=True)
class _ActiveReward:
    """A reward with the options of this run."""

    spec: RewardSpec
    options: RewardOptions
    own: Mapping[str, Any]
    deadline_s: float
    judge: JudgeService | None = None

    @classmethod
    def of(cls, name: str, options: RewardOptions, config: RewardConfig, judge: JudgeService | None) -> _ActiveReward:
        spec = REWARDS.get(name)
        own = {option: getattr(options, option) for option in spec.option_names}
        asked = options.deadline_s if isinstance(options, DeadlineOptions) else None
        if "judge" in spec.needs and judge is None:
            raise ConfigError(no_judge(name))
        return cls(spec, options, own, asked or spec.deadline_s or config.deadline_s, judge)

    @property
    def keeps_state(self) -> bool:
        return "state" in self.spec.needs

    def call(
        self, facts: RolloutFacts | GroupFacts, members: int = 1, state: dict[str, Any] | None = None
    ) -> Call | Outcome:
        """The call for a rollout, group or batch; an outcome if what it needs cannot be had."""
        try:
            needs = {need: state if need == "state" else self._ask(facts, need) for need in self.spec.needs}
        except Exception:  # noqa: BLE001 - part of the reward boundary: facts are worked out from records on demand
            return raised()
        return Call(self.spec, {**needs, **self.own}, members, self.deadline_s)

    def _ask(self, facts: RolloutFacts | GroupFacts, need: str) -> Any:
        if need == "judge" and self.judge is not None:
            return facts.judged_by(self.judge)
        return facts.ask(need)


class _Sheet:
    """The outcomes of the n rollouts of this process while they come in."""

    def __init__(self, rollouts: Sequence[Rollout], names: tuple[str, ...]) -> None:
        self.rollouts = rollouts
        self.names = names
        self.values: FloatArray = np.full((len(rollouts), len(names)), np.nan)
        self.parts: dict[str, FloatArray] = {}
        self.failures: Counter[tuple[str, FailureKind]] = Counter()
        self.first: dict[str, str] = {}

    def enter(self, row: int, column: int, outcome: Outcome) -> None:
        name = self.names[column]
        self.values[row, column] = outcome.value
        for part, number in outcome.parts.items():
            self.parts.setdefault(f"{name}/{part}", np.full(len(self.rollouts), np.nan))[row] = number
        if outcome.failure is not None:
            kind, explanation = outcome.failure
            self.failures[name, kind] += 1
            self.first.setdefault(name, f"row '{self.rollouts[row].row.id}': {explanation}")

    def sums(self) -> dict[str, tuple[float, int]]:
        """Part -> its sum and how many rollouts have it."""
        return {name: (float(np.nansum(v)), int(np.isfinite(v).sum())) for name, v in self.parts.items()}


class RewardRunner:
    """Scores rollouts with the rewards of a config, and keeps count of what failed.

    Args:
        config: active rewards with weights and options, shapers, how the total is made of them, deadlines.
        judge: for rewards that ask one.

    Attributes:
        names: active rewards, in the order of the config.
        weights: `[R]`, before schedules: `ScoreTable.terms` holds what they multiply.
        failures: `(reward, kind)` -> failed calls since the runner was made.
        calls: reward calls per reward since the runner was made.
        first_traceback: reward -> traceback (or explanation) of its first failure.

    All counts are over all processes that share the batches.

    Raises:
        ConfigError: no reward is active, one is wrong (see `validate_reward_config`), or one asks a judge and none is
            given.
        PluginError: a reward file cannot be used.
    """

    def __init__(self, config: RewardConfig, judge: JudgeService | None = None) -> None:
        checked = validate_reward_config(config)
        self._rewards = [_ActiveReward.of(name, options, config, judge) for name, options in checked.items()]
        if not self._rewards:
            raise ConfigError(
                f"no reward is active: choose at least one, e.g. reward.{REWARDS.names()[0]}.weight=1. "
                f"Known: {', '.join(REWARDS.names())}."
            )
        self.names = tuple(active.spec.name for active in self._rewards)
        self.weights: FloatArray = np.array([active.options.weight for active in self._rewards])
        self.max_failure_share = config.max_failure_share
        self.failures: Counter[tuple[str, FailureKind]] = Counter()
        self.calls = 0
        self.first_traceback: dict[str, str] = {}
        gates = tuple(active.options.gate for active in self._rewards)
        self._composition = Composition(
            self.names,
            self.weights,
            tuple(Condition.parse(gate) if gate is not None else None for gate in gates),
            tuple(active.options.schedule for active in self._rewards),
            config.combine,
        )
        self._shapers = [(SHAPERS.get(name), options) for name, options in shaper_options(config).items()]
        self._correct = Condition.parse(config.correct) if config.correct is not None else None
        asks = judge is not None and any("judge" in active.spec.needs for active in self._rewards)
        self._executor = Executor(
            config, (active.spec for active in self._rewards), judge.desk if judge is not None and asks else None
        )
        self._states = States(
            [active.spec.name for active in self._rewards if active.keeps_state],
            [spec.name for spec, _ in self._shapers if "state" in spec.needs],
        )

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """Reward -> what it needs."""
        return {active.spec.name: active.spec.needs for active in self._rewards}

    @property
    def needs_groups(self) -> bool:
        """A value depends on other rollouts: `score` must be given whole groups, or whole batches, at once."""
        return bool(self._shapers) or any(active.spec.per != "rollout" for active in self._rewards)

    @property
    def keeps_state(self) -> bool:
        """A value depends on earlier batches: `score` must be given them in order."""
        return bool(self._states)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What rewards and shapers noted from batch to batch, as JSON can hold it; of the first process, who calls them."""
        return self._states.state_dict()

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; raises `ResumeError` if it is that of other rewards or shapers."""
        self._states.load_state_dict(states)

    def take_over(self, other: RewardRunner) -> None:
        """Go on with the states and counts of a runner of the same rewards with other options."""
        self._states.load_state_dict(other.state_dict())
        self.failures, self.calls, self.first_traceback = other.failures, other.calls, other.first_traceback

    def score(self, rollouts: Sequence[Rollout], progress: float = 0.0, exchange: Exchange | None = None) -> ScoreTable:
        """Score rollouts.

        The value of a reward depends on its own rollout only, never on its neighbours or their order; that of a group
        reward on the rollouts of its group, that of a batch reward on those of all processes. Where several processes
        share a batch, all of them call this with their exchange; they all return, or all raise the same failure.

        Args:
            rollouts: n completions of this process.
            progress: share of the training that is done, 0..1.
            exchange: with the other processes; default: there is none.

        Raises:
            RewardFailure: more than `max_failure_share` of one reward's N calls failed, or a shaper did.
        """
        exchange = exchange or Alone()
        facts = [RolloutFacts(rollout, progress) for rollout in rollouts]
        sheet = _Sheet(rollouts, self.names)
        self._score_rollouts(facts, sheet)
        groups = Groups(rollouts, exchange) if self.needs_groups else None
        if groups is not None:
            self._score_together("group", facts, sheet, groups)
            self._score_together("batch", facts, sheet, groups)
        total_sheet, part_means = self._tell(sheet, exchange)
        shaped = sheet.values
        if groups is not None and self._shapers:
            shaped, more = self._shape(facts, sheet.values, groups, progress)
            part_means |= more
        terms = self._composition.terms(shaped, sheet.values, progress)
        total = weighted_total(terms, self.weights)
        failures, first = total_sheet
        return ScoreTable(self.names, sheet.values, total, terms, sheet.parts, part_means, failures, first)

    # ------------------------------------------------------------------ calls

    def _score_rollouts(self, facts: Sequence[RolloutFacts], sheet: _Sheet) -> None:
        single = [(column, active) for column, active in enumerate(self._rewards) if active.spec.per == "rollout"]
        places = [(row, column) for row in range(len(facts)) for column, _ in single]
        calls = [active.call(one) for one in facts for _, active in single]
        for (row, column), (outcome,) in zip(places, self._made(calls), strict=True):
            sheet.enter(row, column, outcome)

    def _score_together(self, per: Per, facts: Sequence[RolloutFacts], sheet: _Sheet, groups: Groups) -> None:
        """Group rewards, each group on one process, or batch rewards, on the first; the values go to where the rollouts were sampled."""
        together = [(column, active) for column, active in enumerate(self._rewards) if active.spec.per == per]
        if not together:
            return
        alone = [column for column, active in enumerate(self._rewards) if active.spec.per == "rollout"]
        correct = self._is_correct(sheet.values)
        members = [
            Member(
                groups.exchange.rank,
                row,
                one,
                {self.names[column]: float(sheet.values[row, column]) for column in alone},
                float(correct[row]),
            )
            for row, one in enumerate(facts)
        ]
        with_images = any("rollout" in active.spec.needs for _, active in together)
        whole = groups.whole(members, with_images, per)
        places = [(found, column, active) for found in whole for column, active in together]
        states = [
            self._states.copy_of("rewards", active.spec.name) if active.keeps_state else None for _, _, active in places
        ]
        calls = [
            active.call(found, len(found.members), state)
            for (found, _, active), state in zip(places, states, strict=True)
        ]
        outcomes: dict[tuple[int, int, int], Outcome] = {}
        for (found, column, active), state, made in zip(places, states, self._made(calls), strict=True):
            each = made if len(made) == len(found.members) else made * len(found.members)
            if state is not None:
                each = self._kept(active.spec, state, each)
            for member, outcome in zip(found.members, each, strict=True):
                outcomes[member.rank, member.row, column] = outcome
        for (row, column), outcome in sorted(groups.home(outcomes, per).items(), key=lambda item: item[0]):
            sheet.enter(row, column, outcome)

    def _kept(self, spec: RewardSpec, state: Mapping[str, Any], made: list[Outcome]) -> list[Outcome]:
        """Keep the state that a call has changed, unless the call failed; a state that cannot be kept is a failure."""
        if any(outcome.failure is not None for outcome in made):
            return made
        problem = self._states.keep("rewards", spec.name, state)
        return failed(spec, "exception", problem, len(made)) if problem else made

    def _made(self, calls: Sequence[Call | Outcome]) -> list[list[Outcome]]:
        """Make the calls that can be made; `[calls][members]`, one outcome for all members of a call that cannot."""
        made = iter(self._executor.run([call for call in calls if isinstance(call, Call)]))
        return [[call] if isinstance(call, Outcome) else next(made) for call in calls]

    def _is_correct(self, values: FloatArray) -> FloatArray:
        """`[n]`: 1 where `reward.correct` holds, 0 where not, NaN where it cannot be told or is not set."""
        if self._correct is None:
            return np.full(len(values), np.nan)
        return self._correct.holds(values[:, self.names.index(self._correct.name)])

    # ------------------------------------------------------------------ all processes

    def _tell(
        self, sheet: _Sheet, exchange: Exchange
    ) -> tuple[tuple[Counter[tuple[str, FailureKind]], dict[str, str]], dict[str, float]]:
        """Add up what all processes found: `(failures, first tracebacks)` and means of the parts; stop past the share."""
        told = exchange.gather((sheet.failures, sheet.first, len(sheet.rollouts), sheet.sums()))
        failures: Counter[tuple[str, FailureKind]] = Counter()
        first: dict[str, str] = {}
        sums: dict[str, tuple[float, int]] = {}
        for their_failures, their_first, _, their_sums in told:
            failures += their_failures
            first = their_first | first
            for name, (amount, count) in their_sums.items():
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + amount, before[1] + count)
        num_calls = sum(count for _, _, count, _ in told)
        self.calls += num_calls
        self.failures += failures
        self.first_traceback = first | self.first_traceback
        self._stop_past_share(failures, first, num_calls)
        return (failures, first), {name: amount / count for name, (amount, count) in sums.items()}

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

    def _shape(
        self, facts: Sequence[RolloutFacts], values: FloatArray, groups: Groups, progress: float
    ) -> tuple[FloatArray, dict[str, float]]:
        """Run the shapers on the table of all processes, on the first of them.

        Returns:
            The shaped values of this process `[n, R]`, and `reward/shaped` -> mean over the batch where it changed.
        """
        exchange = groups.exchange
        asked = {need for spec, _ in self._shapers for need in spec.needs}
        columns: dict[str, Any] = {
            "values": values,
            "group": groups.numbers,
            "num_tokens": np.array([one.num_tokens for one in facts], dtype=np.int64),
            "correct": self._is_correct(values),
            **{need: [one.ask(need) for one in facts] for need in _ROLLOUT_COLUMNS & asked},
        }
        told = exchange.gather(columns)
        result = None
        if exchange.rank == 0:
            result = _shape_batch(self._shapers, told, self.names, progress, self._states)
        shaped, problem, means = next(one for one in exchange.gather(result) if one is not None)
        if shaped is None:
            raise RewardFailure(problem)
        begin = sum(len(theirs["values"]) for theirs in told[: exchange.rank])
        return shaped[begin : begin + len(values)], dict(means)


def _shape_batch(
    shapers: Sequence[tuple[ShaperSpec, Any]],
    told: Sequence[Mapping[str, Any]],
    names: tuple[str, ...],
    progress: float,
    states: States,
) -> tuple[FloatArray | None, str, Mapping[str, float]]:
    """Run shapers one after the other on the whole batch.

    Args:
        shapers: with their options.
        told: the table's columns, by process.
        names: `[R]`.
        progress: share of the training that is done.
        states: of the shapers that keep one; changed.

    Returns:
        Shaped values `[N, R]`, or `None` and what is wrong; means of the columns that changed.
    """
    table: dict[str, Any] = {
        need: np.concatenate([theirs[need] for theirs in told])
        if isinstance(told[0][need], np.ndarray)
        else [entry for theirs in told for entry in theirs[need]]
        for need in told[0]
    }
    known = {**table, "names": names, "progress": progress}
    before: FloatArray = known["values"]
    shaped = before
    for spec, options in shapers:
        own = {option: getattr(options, option) for option in spec.option_names}
        state = states.copy_of("shapers", spec.name) if "state" in spec.needs else None
        needs = {**{need: known[need] for need in spec.needs if need != "state"}, "values": shaped.copy()}
        if state is not None:
            needs["state"] = state
        try:
            result = np.asarray(spec.function(**needs, **own), dtype=np.float64)
        except (Exception, SystemExit):  # noqa: BLE001 - the boundary of plug-ins: a shaper may raise anything
            return None, f"shaper '{spec.name}' failed:\n{_last_lines(traceback.format_exc())}", {}
        if result.shape != shaped.shape:
            return None, f"shaper '{spec.name}' returned a matrix {result.shape}, not {shaped.shape}", {}
        if np.isinf(result).any():
            return None, f"shaper '{spec.name}' returned an infinite value", {}
        if state is not None and (problem := states.keep("shapers", spec.name, state)):
            return None, f"shaper '{spec.name}' {problem}", {}
        shaped = result
    changed = {
        f"{name}/shaped": float(np.nanmean(shaped[:, k]))
        for k, name in enumerate(names)
        if not np.array_equal(shaped[:, k], before[:, k], equal_nan=True) and not np.isnan(shaped[:, k]).all()
    }
    return shaped, "", changed


def _last_lines(text: str) -> str:
    lines = text.strip().splitlines()
    head = [] if len(lines) <= _SHOWN_TRACEBACK_LINES else [lines[0][:200], "  ..."]
    return "\n".join(f"  {line[:400]}" for line in head + lines[-_SHOWN_TRACEBACK_LINES:])
