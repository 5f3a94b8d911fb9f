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

import hashlib
import importlib.util
import inspect
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic.errors import PydanticUserError

from mmreason.config.schema import PositiveFloat, RewardConfig
from mmreason.errors import ConfigError, MMReasonError, PluginError
from mmreason.registry import Registry, did_you_mean
from mmreason.reward_kit.composition import Condition, check_schedule
from mmreason.reward_kit.needs import NEEDS_PER, SHAPER_NEEDS

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: Prefix of the module names under which users' reward files are imported.
_FILE_MODULE_PREFIX = "_mmreason_reward_file_"
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
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
MarkT = TypeVar("MarkT")


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


@dataclass(frozen=True, slots=True)
class MustBeSet:
    """Marks an option whose default stands for nothing, so that a run must set it: `Annotated[str, MustBeSet("FOLDER")]`.

    Attributes:
        example: a value, for the refusal of a run that leaves it out.
    """

    example: str


class PluginOptions(BaseModel):
    """Base of the options of rewards and shapers: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


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


@dataclass(frozen=True)
class _Spec:
    """What rewards and shapers have in common: a function, what it needs, its options."""

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    options_model: type[PluginOptions]
    source: str

    #: The part of the config section in which the options stand.
    _section = "reward"

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        lines = (inspect.getdoc(self.function) or "").splitlines()
        return lines[0] if lines else ""

    @property
    def option_names(self) -> tuple[str, ...]:
        """Its own options, without `weight` and the others that all rewards have."""
        return tuple(name for name in self.options_model.model_fields if name not in COMMON_OPTIONS)

    @property
    def references(self) -> dict[str, RewardInRun]:
        """Its options that name other rewards of the run."""
        return self._marked(RewardInRun)

    @property
    def must_be_set(self) -> dict[str, MustBeSet]:
        """Its options without which it cannot be used."""
        return self._marked(MustBeSet)

    def _marked(self, kind: type[MarkT]) -> dict[str, MarkT]:
        """Options whose type is annotated with a mark of this kind."""
        marked = {name: field.metadata for name, field in self.options_model.model_fields.items()}
        return {name: mark for name, marks in marked.items() for mark in marks if isinstance(mark, kind)}

    def __repr__(self) -> str:
        kind = type(self).__name__.removesuffix("Spec").lower()
        return f"{kind} in {self.function.__module__}:{self.function.__code__.co_firstlineno}"

    def options(self, given: Mapping[str, Any]) -> Any:
        """Check options; raises `ConfigError` naming each wrong one as `reward.<name>.<option>`."""
        missing = [
            f"{self._section}.{self.name}.{name}: needs a value: {self._section}.{self.name}.{name}={mark.example}."
            for name, mark in self.must_be_set.items()
            if name not in given
        ]
        if missing:
            raise ConfigError("\n".join(missing))
        try:
            return self.options_model.model_validate(dict(given))
        except ValidationError as error:
            raise ConfigError("\n".join(self._explain(problem) for problem in error.errors())) from None

    def _explain(self, problem: Mapping[str, Any]) -> str:
        path = ".".join([f"{self._section}.{self.name}", *(str(part) for part in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            known = list(self.options_model.model_fields)
            unknown = str(problem["loc"][0])
            return f"{path}: no such option.{did_you_mean(unknown, known)} Known: {', '.join(known)}."
        return f"{path}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}."


@dataclass(frozen=True, repr=False)
class RewardSpec(_Spec):
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

    range: tuple[float, float]
    per: Per = "rollout"
    isolated: bool = False
    deadline_s: float | None = None

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
class ShaperSpec(_Spec):
    """One registered shaper; attributes as in `RewardSpec`, needs from `SHAPER_NEEDS`."""

    _section = "reward.shapers"

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
        where = _where("shaper", function, name)
        if inspect.iscoroutinefunction(function) or _yields(function):
            raise PluginError(f"{where}: must be a plain function that returns a matrix, not async or a generator")
        full_name = _full_name(name or function.__name__, function.__module__, where)
        needs, parameters = _split_parameters(function, where, SHAPER_NEEDS)
        if "values" not in needs:
            raise PluginError(f"{where}: it must name `values`, the matrix that it shapes")
        model = _options_model(full_name, function, parameters, where, PluginOptions)
        SHAPERS.add(full_name, ShaperSpec(full_name, function, needs, model, source))
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
    where = _where("reward", function, name)
    is_async = inspect.iscoroutinefunction(function)
    if _yields(function):
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
    full_name = _full_name(name or function.__name__, function.__module__, where)
    try:
        low, high = (float(bound) for bound in value_range)
    except (TypeError, ValueError):
        raise PluginError(f"{where}: range must be two numbers (lowest, highest), not {value_range!r}") from None
    if not low < high:
        raise PluginError(f"{where}: range=({low:g}, {high:g}) must be (lowest, highest), lowest first")
    needs, parameters = _split_parameters(function, where, NEEDS_PER[per])
    if "state" in needs and (isolated or is_async):
        raise PluginError(f"{where}: only a plain function that runs in the training process can keep a state")
    if "judge" in needs and not is_async:
        raise PluginError(f"{where}: a judge is waited for: write async def, and `await judge.ask(...)` in it")
    base = DeadlineOptions if isolated or is_async else RewardOptions
    model = _options_model(full_name, function, parameters, where, base)
    return RewardSpec(full_name, function, needs, model, source, (low, high), per, isolated, deadline_s)


def is_file_module(module: str) -> bool:
    """True for the module name of a user's reward file, which nothing can import by name."""
    return module.startswith(_FILE_MODULE_PREFIX)


def load_reward_files(paths: Iterable[str | Path]) -> None:
    """Import Python files that register rewards or shapers; a file already imported is not run again.

    The code of the file is run, with the rights of this process: load only files that you trust.

    Raises:
        PluginError: naming the file, if it is missing, does not run, or registers nothing.
    """
    for path in paths:
        _load_reward_file(Path(path))


def _where(kind: str, function: Callable[..., Any], name: str | None) -> str:
    """How messages name a function; raises `PluginError` for anything else."""
    if not inspect.isfunction(function):
        raise PluginError(f"@{kind} goes on a plain function, not on {function!r:.100}")
    code = function.__code__
    return f"{kind} '{name or function.__name__}' ({code.co_filename}:{code.co_firstlineno})"


def _yields(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _full_name(name: str, module: str, where: str) -> str:
    """Put the package before the name, unless the function is a built-in's, a user's file's or a script's."""
    if not _NAME.match(name):
        raise PluginError(f"{where}: the name must be a letter followed by letters, digits and underscores")
    package = module.split(".")[0]
    if package not in ("mmreason", "__main__") and not is_file_module(package):
        return f"{package}/{name}"
    if name in RewardConfig.model_fields:
        raise PluginError(f"{where}: '{name}' is a setting of the section `reward`; choose another name")
    return name


def _split_parameters(
    function: Callable[..., Any], where: str, known: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, inspect.Parameter]]:
    """Tell the needs of a function from its options."""
    needs: list[str] = []
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PluginError(f"{where}: {parameter} is not allowed; name what it needs: {', '.join(known)}")
        if name in known:
            needs.append(name)
        elif parameter.default is parameter.empty:
            teller = next((scope for scope in ("group", "batch") if name in NEEDS_PER[scope]), None)
            only = f" Only a @{teller}_reward is told it." if teller else ""
            raise PluginError(
                f"{where}: nothing is called '{name}'.{only or did_you_mean(name, list(known))} It may need "
                f"{', '.join(known)}; an option of its own must have a default."
            )
        elif name in COMMON_OPTIONS or hasattr(RewardOptions, name) or name.startswith("_"):
            raise PluginError(f"{where}: an option cannot be called '{name}' (reserved); choose another name")
        else:
            options[name] = parameter
    return tuple(needs), options


def _options_model(
    name: str,
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    where: str,
    base: type[PluginOptions],
) -> type[PluginOptions]:
    fields: dict[str, Any] = {}
    for option, parameter in parameters.items():
        annotation = _option_type(function, option, parameter, where)
        fields[option] = (annotation, parameter.default)
    try:
        model = create_model(f"{name} options", __base__=base, **fields)
        model()
    except (ValidationError, PydanticUserError, TypeError) as error:
        raise PluginError(f"{where}: its options cannot be used with their own defaults: {error}") from None
    return model


def _option_type(function: Callable[..., Any], option: str, parameter: inspect.Parameter, where: str) -> Any:
    """The annotation of one option, resolved; of its default if it has none."""
    if parameter.annotation is parameter.empty:
        annotation: Any = type(parameter.default)
    else:
        # One annotation at a time: those of the needs may exist for type checkers only.
        holder = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
        holder.__annotations__ = {option: parameter.annotation}
        try:
            annotation = get_type_hints(holder, include_extras=True)[option]
        except (NameError, TypeError, SyntaxError, AttributeError) as error:
            raise PluginError(f"{where}: the type of option '{option}' cannot be resolved: {error}") from None
    if not _is_simple(annotation):
        raise PluginError(
            f"{where}: option '{option}' has type {annotation}, which the command line cannot set. Use "
            "float, int, bool, str, Literal, X | None, tuple[X, ...], or Annotated[X, pydantic.Field(...)]."
        )
    return annotation


def _is_simple(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_simple(get_args(annotation)[0])
    if origin is Literal:
        return all(isinstance(choice, (str, int, bool, type(None))) for choice in get_args(annotation))
    if origin is Union or origin is types.UnionType:
        return all(part is type(None) or _is_simple(part) for part in get_args(annotation))
    if origin is dict:
        return get_args(annotation)[0] is str and _is_simple(get_args(annotation)[1])
    if origin is tuple:
        return all(part is Ellipsis or _is_simple(part) for part in get_args(annotation))
    return annotation in (float, int, bool, str)


def _load_reward_file(path: Path) -> None:
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise PluginError(f"reward file {path}: no such file (looked for {resolved}). Check reward.files.")
    module_name = _FILE_MODULE_PREFIX + hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, resolved)
    if spec is None or spec.loader is None:
        raise PluginError(f"reward file {path}: not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    # Type hints of the file's functions are looked up through sys.modules, and so is "already imported".
    sys.modules[module_name] = module
    before = {*REWARDS.names(), *SHAPERS.names()}
    try:
        spec.loader.exec_module(module)
    except MMReasonError as error:
        del sys.modules[module_name]
        raise PluginError(f"reward file {path}: {error}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        line = _line_in_file(error, resolved)
        raise PluginError(f"reward file {path}{line}: does not run: {type(error).__name__}: {error}") from error
    if {*REWARDS.names(), *SHAPERS.names()} == before:
        del sys.modules[module_name]
        raise PluginError(f"reward file {path}: registers no reward. Put @reward() on a function in it.")


def _line_in_file(error: BaseException, path: Path) -> str:
    """`:12` for the last frame of the traceback that lies in the file, or for its syntax error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    number: int | None = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            number = trace.tb_lineno
        trace = trace.tb_next
    return "" if number is None else f":{number}"
