"""What a reward is: the `@reward` decorator, the registry it fills, and the check of a reward's options.

What enters: plain functions that name what they need, in the package, in a user's file or in a plug-in
package. What leaves: a `RewardSpec` each, and validated options for a `RewardConfig`. No torch. Scores are
computed in `mmreason.scoring`, from where a reward author imports everything:

    from mmreason.scoring import reward

    @reward(range=(0.0, 1.0))
    def brevity(completion: str, *, max_chars: int = 400) -> float:
        '''1 for an empty completion, falling to 0 at `max_chars` characters.'''
        return max(0.0, 1.0 - len(completion) / max_chars)
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, MMReasonError, PluginError
from mmreason.registry import Registry, did_you_mean

#: What a reward may name as a parameter, and what it then receives.
NEEDS: Mapping[str, str] = {
    "rollout": "Rollout: everything about the completion",
    "completion": "str: all text the model wrote",
    "answer": "str | None: content of the last complete answer block outside the thinking",
    "target": "Mapping[str, Any]: what is right, see Row.target",
    "geometry": "tuple[ImageGeometry, ...]: how the model sees each image",
    "box_frame": "Frame: the frame in which the model writes boxes",
    "boxes": "Boxes: boxes in the answer, in box_frame; empty if there are none",
    "columns": "Mapping[str, Any]: the row's other columns",
    "progress": "float: share of the training that is done, 0..1",
}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: Prefix of the module names under which users' reward files are imported.
_FILE_MODULE_PREFIX = "_mmreason_reward_file_"
_WEIGHT = Annotated[float, Field(description="weight in the sum of rewards; 0 = computed and logged only")]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A reward with its parts, for rewards that are made of several terms.

    Attributes:
        value: the reward, or `None` if it does not apply.
        parts: name -> number, shown in metrics and the report; a part may lie outside the reward's range.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)


class RewardOptions(BaseModel):
    """Base of every reward's options: immutable, unknown keys refused; `weight` belongs to all."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    weight: _WEIGHT = 1.0


@dataclass(frozen=True)
class RewardSpec:
    """One registered reward.

    Attributes:
        name: `iou` for a built-in or a reward in a user's file, `package/name` for a plug-in package.
        function: the function as its author wrote it.
        needs: which of `NEEDS` it takes.
        options_model: pydantic model of `weight` and its own options.
        range: `(lowest, highest)` value it may return; either may be infinite.
        source: the paper or page of its formula; may be empty.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    options_model: type[RewardOptions]
    range: tuple[float, float]
    source: str = ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        lines = (inspect.getdoc(self.function) or "").splitlines()
        return lines[0] if lines else ""

    @property
    def option_names(self) -> tuple[str, ...]:
        """The reward's own options, without `weight`."""
        return tuple(name for name in self.options_model.model_fields if name != "weight")

    def __repr__(self) -> str:
        return f"reward in {self.function.__module__}:{self.function.__code__.co_firstlineno}"

    def options(self, given: Mapping[str, Any]) -> RewardOptions:
        """Check options; raises `ConfigError` naming each wrong one as `reward.<name>.<option>`."""
        try:
            return self.options_model.model_validate(dict(given))
        except ValidationError as error:
            raise ConfigError("\n".join(self._explain(problem) for problem in error.errors())) from None

    def _explain(self, problem: Mapping[str, Any]) -> str:
        path = ".".join([f"reward.{self.name}", *(str(part) for part in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            known = list(self.options_model.model_fields)
            unknown = str(problem["loc"][0])
            return f"{path}: no such option.{did_you_mean(unknown, known)} Known: {', '.join(known)}."
        return f"{path}={problem['input']!r}: {problem['msg']}."


REWARDS: Registry[RewardSpec] = Registry("reward", "mmreason.rewards", "mmreason.rewards")


def reward(
    name: str | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
) -> Callable[[FunctionT], FunctionT]:
    """Register a function as a reward; the function itself stays as it is and can be called directly.

    The function names what it needs (see `NEEDS`) as parameters. Every other parameter is an option of its
    own: it needs a default and a simple type (`float`, `int`, `bool`, `str`, `Literal`, `X | None`, `tuple[X,
    ...]`, or `Annotated[X, pydantic.Field(ge=...)]` for a range), and is set with
    `reward.<name>.<option>=value`. The function returns a number, `None` if it does not apply to this
    rollout, or a `RewardResult`.

    Args:
        name: registered name; default is the function's. In an installed package, `package/` is put before.
        range: `(lowest, highest)` value it can return. A value outside counts as a failure.
        source: the paper or page of its formula.

    Raises:
        PluginError: the function cannot be a reward, or the name is taken.
    """
    if callable(name):
        raise PluginError("write @reward() with brackets, also without arguments")

    def register(function: FunctionT) -> FunctionT:
        spec = build_spec(function, name, range, source)
        REWARDS.add(spec.name, spec)
        return function

    return register


def build_spec(
    function: Callable[..., Any],
    name: str | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    source: str = "",
) -> RewardSpec:
    """Make the spec of a function without registering it; arguments and errors as for `reward`."""
    if not inspect.isfunction(function):
        raise PluginError(f"@reward goes on a plain function, not on {function!r:.100}")
    code = function.__code__
    where = f"reward '{name or function.__name__}' ({code.co_filename}:{code.co_firstlineno})"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(f"{where}: must be a plain function that returns a number, not async or a generator")
    full_name = _full_name(name or function.__name__, function.__module__, where)
    try:
        low, high = (float(bound) for bound in value_range)
    except (TypeError, ValueError):
        raise PluginError(f"{where}: range must be two numbers (lowest, highest), not {value_range!r}") from None
    if not low < high:
        raise PluginError(f"{where}: range=({low:g}, {high:g}) must be (lowest, highest), lowest first")
    needs, parameters = _split_parameters(function, where)
    model = _options_model(full_name, function, parameters, where)
    return RewardSpec(full_name, function, needs, model, (low, high), source)


def load_reward_files(paths: Iterable[str | Path]) -> None:
    """Import Python files that register rewards with `@reward`; a file already imported is not run again.

    The code of the file is run, with the rights of this process: load only files that you trust.

    Raises:
        PluginError: naming the file, if it is missing, does not run, or registers nothing.
    """
    for path in paths:
        _load_reward_file(Path(path))


def validate_reward_config(config: RewardConfig) -> dict[str, RewardOptions]:
    """Load `config.files` and check every reward's name and options.

    Returns:
        Name -> validated options of every active reward, in the order of the config.

    Raises:
        ConfigError: an unknown reward or option, a value out of range; it names `reward.<name>.<option>`.
        PluginError: a reward file cannot be used.
    """
    load_reward_files(config.files)
    checked: dict[str, RewardOptions] = {}
    problems: list[str] = []
    for name, given in (config.model_extra or {}).items():
        try:
            options = _check_reward(name, given)
        except ConfigError as error:
            problems.append(str(error))
        else:
            if options is not None:
                checked[name] = options
    if problems:
        raise ConfigError("\n".join(problems))
    return checked


def _check_reward(name: str, given: object) -> RewardOptions | None:
    """Options of one entry of the section; `None` if it is switched off."""
    if name not in REWARDS:
        raise ConfigError(f"reward.{name}: {_unknown_reward(name)}")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"reward.{name}={given!r}: a reward takes options, e.g. reward.{name}.weight=1 "
            f"(reward.{name}=null switches it off)."
        )
    return REWARDS.get(name).options({str(key): value for key, value in given.items()})


def _unknown_reward(name: str) -> str:
    settings = list(RewardConfig.model_fields)
    known = REWARDS.names()
    broken = f" Its plug-in failed to load: {REWARDS.broken[name]}." if name in REWARDS.broken else ""
    others = [other for other in REWARDS.broken if other != name]
    unloaded = f" Plug-ins that failed to load: {', '.join(others)}." if others else ""
    return (
        f"no such reward or setting.{broken}{did_you_mean(name, known + settings)} "
        f"Rewards: {', '.join(known)}. Settings: {', '.join(settings)}.{unloaded}"
    )


def _full_name(name: str, module: str, where: str) -> str:
    """Put the package before the name, unless the function is a built-in's, a user's file's or a script's."""
    if not _NAME.match(name):
        raise PluginError(f"{where}: the name must be a letter followed by letters, digits and underscores")
    package = module.split(".")[0]
    if package not in ("mmreason", "__main__") and not package.startswith(_FILE_MODULE_PREFIX):
        return f"{package}/{name}"
    if name in RewardConfig.model_fields:
        raise PluginError(f"{where}: '{name}' is a setting of the section `reward`; choose another name")
    return name


def _split_parameters(function: Callable[..., Any], where: str) -> tuple[tuple[str, ...], dict[str, inspect.Parameter]]:
    """Tell the needs of a function from its options."""
    needs: list[str] = []
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PluginError(f"{where}: {parameter} is not allowed; name what the reward needs: {', '.join(NEEDS)}")
        if name in NEEDS:
            needs.append(name)
        elif parameter.default is parameter.empty:
            raise PluginError(
                f"{where}: nothing is called '{name}'.{did_you_mean(name, list(NEEDS))} A reward may need "
                f"{', '.join(NEEDS)}; an option of its own must have a default."
            )
        elif name == "weight" or hasattr(RewardOptions, name) or name.startswith("_"):
            raise PluginError(f"{where}: an option cannot be called '{name}' (reserved); choose another name")
        else:
            options[name] = parameter
    return tuple(needs), options


def _options_model(
    name: str, function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], where: str
) -> type[RewardOptions]:
    fields: dict[str, Any] = {}
    for option, parameter in parameters.items():
        annotation = _option_type(function, option, parameter, where)
        fields[option] = (annotation, parameter.default)
    try:
        model = create_model(f"{name} options", __base__=RewardOptions, **fields)
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
    before = set(REWARDS.names())
    try:
        spec.loader.exec_module(module)
    except MMReasonError as error:
        del sys.modules[module_name]
        raise PluginError(f"reward file {path}: {error}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        line = _line_in_file(error, resolved)
        raise PluginError(f"reward file {path}{line}: does not run: {type(error).__name__}: {error}") from error
    if set(REWARDS.names()) == before:
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
