"""What a reward is: `@reward`, `@group_reward`, `@batch_reward` and `@shaper`, and the registries that they fill.

What enters: functions that name what they need, in the package, in a user's file or in a plug-in package. What
leaves: a `RewardSpec` or `ShaperSpec` each. No torch. The section `reward` of a run is checked against them in
`mmreason.reward_kit.settings`; scores are computed in `mmreason.scoring`, from where a reward author imports everything:

    from mmreason.scoring import reward

    @reward(range=(0.0, 1.0))
    def brevity(completion: str, *, max_chars: int = 400) -> float:
        '''1 for an empty completion, falling to 0 at `max_chars` characters.'''
        return max(0.0, 1.0 - len(completion) / max_chars)

A `@group_reward` gets every argument as a list over the completions of one prompt and returns a list, a `@batch_reward`
over those of the whole batch; a `@shaper` gets the values of the whole batch as a matrix and returns one. All of them see
what all processes sampled.

Shapes: G completions of a group, N rollouts of a batch over all processes, R rewards.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from mmreason.config.schema import PositiveFloat, RewardConfig
from mmreason.errors import PluginError
from mmreason.plugin_functions import (
    FunctionT,
    PluginOptions,
    Spec,
    full_name,
    load_plugin_files,
    options_model,
    split_parameters,
    where_defined,
    yields,
)
from mmreason.registry import Registry
from mmreason.reward_kit.composition import Condition, check_schedule
from mmreason.reward_kit.needs import NEEDS_PER, SHAPER_NEEDS

_WEIGHT = Annotated[float, Field(description="weight in the total; 0 = computed and logged only")]
_GATE = Annotated[
    str | None,
    Field(description="NAME OP NUMBER, such as 'exact > 0': worth 0 where the other reward's value fails it"),
]
_SCHEDULE = Annotated[
    tuple[tuple[float, float], ...] | None,
    Field(description="[[progress, factor], ...]: piecewise linear factor of the weight over training"),
]
_DEADLINE = Annotated[PositiveFloat | None, Field(description="seconds for one call; null = reward.deadline_s")]

#: What a spec scores at once.
Per: TypeAlias = Literal["rollout", "group", "batch"]


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A reward with its parts, for rewards that are made of several terms.

    Attributes:
        value: the reward, or `None` if it does not apply.
        parts: name -> number, shown in metrics and the report; a part may lie outside the reward's range.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardInRun:
    """Marks an option that names another reward of the run: `Annotated[str, RewardInRun()]`.

    That the reward is there, scores single rollouts and lies in the range is checked with the rest of the config.

    Attributes:
        within: range that the reward must declare, or a part of it; `None` = any.
    """

    within: tuple[float, float] | None = None


class RewardOptions(PluginOptions):
    """Base of every reward's options: how it enters the total (`mmreason.reward_kit.composition`)."""

    weight: _WEIGHT = 1.0
    gate: _GATE = None
    schedule: _SCHEDULE = None

    @field_validator("gate")
    @classmethod
    def _gate_can_be_read(cls, text: str | None) -> str | None:
        if text is not None:
            Condition.parse(text)
        return text

    @field_validator("schedule")
    @classmethod
    def _schedule_can_be_read(cls, points: tuple[tuple[float, float], ...] | None) -> Any:
        if points is not None:
            check_schedule(points)
        return points


class DeadlineOptions(RewardOptions):
    """Base of the options of isolated and async rewards."""

    deadline_s: _DEADLINE = None


#: Options that are not a reward's own.
COMMON_OPTIONS = frozenset(DeadlineOptions.model_fields)


@dataclass(frozen=True, repr=False)
class RewardSpec(Spec):
    """One registered reward.

    Attributes:
        name: `iou` for a built-in or a reward in a user's file, `package/name` for a plug-in package.
        function: the function as its author wrote it.
        needs: which of `NEEDS` (or `GROUP_NEEDS`, `BATCH_NEEDS`) it takes.
        options_model: pydantic model of the `RewardOptions` and its own options.
        source: the paper or page of its formula; may be empty.
        range: `(lowest, highest)` value it may return; either may be infinite.
        per: what one call scores: a `rollout`, a `group` of all completions of a prompt, or a `batch` of all there are.
        isolated: it runs in a child process that is killed at the deadline.
        deadline_s: seconds that its author allows one call; `None` = `reward.deadline_s` of the run.
    """

    section = "reward"
    common_options = COMMON_OPTIONS

    range: tuple[float, float]
    per: Per = "rollout"
    isolated: bool = False
    deadline_s: float | None = None

    @property
    def references(self) -> dict[str, RewardInRun]:
        """Its options that name other rewards of the run."""
        return self.marked(RewardInRun)

    @property
    def is_async(self) -> bool:
        """It is an `async def` and runs on the event loop, beside others."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def has_deadline(self) -> bool:
        """A call can be ended: it runs elsewhere than in the thread that asks for it."""
        return self.isolated or self.is_async

    def options(self, given: Mapping[str, Any]) -> RewardOptions:
        """Check options; raises `ConfigError` naming each wrong one as `reward.<name>.<option>`."""
        checked: RewardOptions = super().options(given)
        return checked


@dataclass(frozen=True, repr=False)
class ShaperSpec(Spec):
    """One registered shaper; attributes as in `RewardSpec`, needs from `SHAPER_NEEDS`."""

    section = "reward.shapers"

    @property
    def references(self) -> dict[str, RewardInRun]:
        """Its options that name other rewards of the run."""
        return self.marked(RewardInRun)

    def options(self, given: Mapping[str, Any]) -> PluginOptions:
        """Check options; raises `ConfigError` naming each wrong one as `reward.shapers.<name>.<option>`."""
        checked: PluginOptions = super().options(given)
        return checked


REWARDS: Registry[RewardSpec] = Registry("reward", "mmreason.rewards", "mmreason.rewards")
#: Shapers come in by the same doors: the same packages and files register them.
SHAPERS: Registry[ShaperSpec] = Registry("shaper", "mmreason.rewards", "mmreason.rewards")


def reward(
    name: str | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
    *,
    isolated: bool = False,
    deadline_s: float | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Register a function as a reward; the function itself stays as it is and can be called directly.

    The function names what it needs (see `NEEDS`) as parameters. Every other parameter is an option of its
    own: it needs a default and a simple type (`float`, `int`, `bool`, `str`, `Literal`, `X | None`, `tuple[X,
    ...]`, or `Annotated[X, pydantic.Field(ge=...)]` for a range), and is set with
    `reward.<name>.<option>=value`. The function returns a number, `None` if it does not apply to this
    rollout, or a `RewardResult`.

    A plain function runs in the training process and must be quick. An `async def` runs on an event loop beside
    others, `reward.concurrency` at once, and must not block it: for requests to services. With `isolated=True` a
    plain function runs in a child process: for what is slow, may hang or crash, or is somebody else's. Both are ended
    at their deadline; a call that is ended has failed (`deadline`), as has one whose process dies (`crashed`).

    Args:
        name: registered name; default is the function's. In an installed package, `package/` is put before.
        range: `(lowest, highest)` value it can return. A value outside counts as a failure.
        source: the paper or page of its formula.
        isolated: run it in a child process, which imports the function's module anew: the function must stand at
            the top level of a module or reward file, and its arguments must pickle.
        deadline_s: seconds for one call of an isolated or async reward; default `reward.deadline_s`. Users change it
            with `reward.<name>.deadline_s`.

    Raises:
        PluginError: the function cannot be a reward, or the name is taken.
    """
    return _registering("reward", "rollout", name, range, source, isolated, deadline_s)


def group_reward(
    name: str | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
    *,
    isolated: bool = False,
    deadline_s: float | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Register a function that scores all completions of a prompt together: rankings, relative lengths.

        @group_reward(range=(0.0, 1.0))
        def brevity_rank(num_tokens: list[int]) -> list[float]:
            '''Share of the group that is longer.'''
            return [sum(other > own for other in num_tokens) / len(num_tokens) for own in num_tokens]

    As `reward`, but every need is a list over the group's G completions (`GROUP_NEEDS`; it may also name `rewards` and
    `correct`), and the function returns a list of G numbers or `None`s. The group is complete even where its
    completions were sampled by several processes, and comes sorted by text: a value cannot depend on the order of
    sampling. In an evaluation every row is a group of one. One failure is a failure of all G values.

    Args and errors: as for `reward`.
    """
    return _registering("group_reward", "group", name, range, source, isolated, deadline_s)


def batch_reward(
    name: str | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
    *,
    isolated: bool = False,
    deadline_s: float | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Register a function that scores all completions of a batch together: balances, comparisons of prompts.

        @batch_reward(range=(0.0, 1.0))
        def rarer(answer: list[str | None]) -> list[float]:
            '''Share of the batch with another answer.'''
            return [1.0 - answer.count(own) / len(answer) for own in answer]

    As `group_reward`, over the N completions that all processes sampled in a step: one call on one process, sorted by
    row, group and text. It may also name `group`, `dataset` and `state` (`BATCH_NEEDS`): a dictionary that it may change,
    and that it finds as it left it in the next batch, also in a run that is continued from a checkpoint. In an
    evaluation the batch is all held-out rows. One failure is a failure of all N values, and leaves the state as it was.

    Args and errors: as for `reward`; an isolated or async one can keep no state.
    """
    return _registering("batch_reward", "batch", name, range, source, isolated, deadline_s)


def _registering(
    decorator: str,
    per: Per,
    name: str | None,
    value_range: tuple[float, float],
    source: str,
    isolated: bool,
    deadline_s: float | None,
) -> Callable[[FunctionT], FunctionT]:
    if callable(name):
        raise PluginError(f"write @{decorator}() with brackets, also without arguments")

    def register(function: FunctionT) -> FunctionT:
        spec = build_spec(function, name, value_range, source, per=per, isolated=isolated, deadline_s=deadline_s)
        REWARDS.add(spec.name, spec)
        return function

    return register


def shaper(name: str | None = None, source: str = "") -> Callable[[FunctionT], FunctionT]:
    """Register a function that rewrites the reward matrix of the whole batch: balances, targets by difficulty.

        @shaper()
        def centred(values: FloatArray) -> FloatArray:
            '''Every reward minus its mean over the batch.'''
            return values - np.nanmean(values, axis=0)

    The function names what it needs (`SHAPER_NEEDS`); other parameters are options, as for `reward`, set with
    `reward.shapers.<name>.<option>`. It gets what all processes sampled, runs on one of them, and returns a matrix of
    the same shape, NaN where a reward does not apply. Shapers run in the order of `reward.shapers`, before gates and
    weights. What is logged and saved as a reward's value stays the value before shapers; the total is made of the
    shaped ones. A shaper that raises, or returns anything else, stops the run: there is no total without it.

    Args:
        name: registered name; default is the function's. In an installed package, `package/` is put before.
        source: the paper or page of its formula.

    Raises:
        PluginError: the function cannot be a shaper, or the name is taken.
    """
    if callable(name):
        raise PluginError("write @shaper() with brackets, also without arguments")

    def register(function: FunctionT) -> FunctionT:
        where = where_defined("shaper", function, name)
        if inspect.iscoroutinefunction(function) or yields(function):
            raise PluginError(f"{where}: must be a plain function that returns a matrix, not async or a generator")
        registered = full_name(name or function.__name__, function.__module__, where, RewardConfig.model_fields)
        needs, parameters = split_parameters(function, where, SHAPER_NEEDS, RewardOptions)
        if "values" not in needs:
            raise PluginError(f"{where}: it must name `values`, the matrix that it shapes")
        model = options_model(registered, function, parameters, where, PluginOptions)
        SHAPERS.add(registered, ShaperSpec(registered, function, needs, model, source))
        return function

    return register


def build_spec(
    function: Callable[..., Any],
    name: str | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
    *,
    per: Per = "rollout",
    isolated: bool = False,
    deadline_s: float | None = None,
) -> RewardSpec:
    """Make the spec of a function without registering it; arguments and errors as for `reward`."""
    where = where_defined("reward", function, name)
    is_async = inspect.iscoroutinefunction(function)
    if yields(function):
        raise PluginError(f"{where}: must be a function that returns its value, not a generator")
    if isolated and is_async:
        raise PluginError(f"{where}: isolated=True is for plain functions; an async one has a deadline as it is")
    if isolated and "<" in function.__qualname__:
        raise PluginError(f"{where}: isolated=True needs a function at the top level of its module")
    if deadline_s is not None and not (isolated or is_async):
        raise PluginError(
            f"{where}: nothing can end a plain function in this process; deadline_s needs isolated=True or async def"
        )
    if deadline_s is not None and not 0.0 < deadline_s < math.inf:
        raise PluginError(f"{where}: deadline_s={deadline_s} must be a number of seconds above 0")
    registered = full_name(name or function.__name__, function.__module__, where, RewardConfig.model_fields)
    try:
        low, high = (float(bound) for bound in value_range)
    except (TypeError, ValueError):
        raise PluginError(f"{where}: range must be two numbers (lowest, highest), not {value_range!r}") from None
    if not low < high:
        raise PluginError(f"{where}: range=({low:g}, {high:g}) must be (lowest, highest), lowest first")
    needs, parameters = split_parameters(function, where, NEEDS_PER[per], DeadlineOptions, _told_elsewhere)
    if "state" in needs and (isolated or is_async):
        raise PluginError(f"{where}: only a plain function that runs in the training process can keep a state")
    if "judge" in needs and not is_async:
        raise PluginError(f"{where}: a judge is waited for: write async def, and `await judge.ask(...)` in it")
    base = DeadlineOptions if isolated or is_async else RewardOptions
    model = options_model(registered, function, parameters, where, base)
    return RewardSpec(registered, function, needs, model, source, (low, high), per, isolated, deadline_s)


def load_reward_files(paths: Iterable[str | Path]) -> None:
    """Import Python files that register rewards or shapers; see `load_plugin_files`."""
    load_plugin_files("reward", paths, (REWARDS, SHAPERS))


def _told_elsewhere(name: str) -> str:
    teller = next((scope for scope in ("group", "batch") if name in NEEDS_PER[scope]), None)
    return f" Only a @{teller}_reward is told it." if teller else ""
