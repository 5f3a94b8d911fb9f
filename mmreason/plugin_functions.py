"""Plug-ins that are plain functions: what they need, their options, the files that they come in.

What enters: a function whose parameters are things that it needs, by name, and options with defaults. What leaves: a `Spec` with a
pydantic model of the options. Rewards, shapers, loss terms and advantage transforms are registered through it. No torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from mmreason.errors import ConfigError, MMReasonError, PluginError
from mmreason.registry import Registry, did_you_mean

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: Prefix of the module names under which users' files are imported.
_FILE_MODULE_PREFIX = "_mmreason_reward_file_"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
MarkT = TypeVar("MarkT")


@dataclass(frozen=True, slots=True)
class MustBeSet:
    """Marks an option whose default stands for nothing, so that a run must set it: `Annotated[str, MustBeSet("FOLDER")]`.

    Attributes:
        example: a value, for the refusal of a run that leaves it out.
    """

    example: str


class PluginOptions(BaseModel):
    """Base of the options of all plug-ins: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


@dataclass(frozen=True)
class Spec:
    """What plug-ins have in common: a function, what it needs, its options.

    Attributes:
        name: `NAME`, or `package/NAME` for a plug-in package.
        function: as its author wrote it.
        needs: what it takes, by name.
        options_model: pydantic model of its options.
        source: the paper or page of its formula; may be empty.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    options_model: type[PluginOptions]
    source: str

    #: The part of the configuration in which the options stand.
    section: ClassVar[str] = ""
    #: Options that all plug-ins of the kind have.
    common_options: ClassVar[frozenset[str]] = frozenset()

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        lines = (inspect.getdoc(self.function) or "").splitlines()
        return lines[0] if lines else ""

    @property
    def option_names(self) -> tuple[str, ...]:
        """Its own options, without those that all plug-ins of its kind have."""
        return tuple(name for name in self.options_model.model_fields if name not in self.common_options)

    @property
    def must_be_set(self) -> dict[str, MustBeSet]:
        """Its options without which it cannot be used."""
        return self.marked(MustBeSet)

    def marked(self, kind: type[MarkT]) -> dict[str, MarkT]:
        """Options whose type is annotated with a mark of this kind."""
        marked = {name: field.metadata for name, field in self.options_model.model_fields.items()}
        return {name: mark for name, marks in marked.items() for mark in marks if isinstance(mark, kind)}

    def __repr__(self) -> str:
        kind = type(self).__name__.removesuffix("Spec").lower()
        return f"{kind} in {self.function.__module__}:{self.function.__code__.co_firstlineno}"

    def options(self, given: Mapping[str, Any]) -> Any:
        """Check options; raises `ConfigError` naming each wrong one as `<section>.<name>.<option>`."""
        missing = [
            f"{self.section}.{self.name}.{name}: needs a value: {self.section}.{self.name}.{name}={mark.example}."
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
        path = ".".join([f"{self.section}.{self.name}", *(str(part) for part in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            known = list(self.options_model.model_fields)
            unknown = str(problem["loc"][0])
            return f"{path}: no such option.{did_you_mean(unknown, known)} Known: {', '.join(known)}."
        return f"{path}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}."


def is_file_module(module: str) -> bool:
    """True for the module name of a user's file, which nothing can import by name."""
    return module.startswith(_FILE_MODULE_PREFIX)


def load_plugin_files(kind: str, paths: Iterable[str | Path], registries: Iterable[Registry[Any]]) -> None:
    """Import Python files that register plug-ins; a file already imported is not run again.

    The code of the file is run, with the rights of this process: load only files that you trust.

    Args:
        kind: section that names the files, for messages: `reward` for `reward.files`.
        paths: the files.
        registries: those that a file must add something to.

    Raises:
        PluginError: naming the file, if it is missing, does not run, or registers nothing.
    """
    found = tuple(registries)
    for path in paths:
        _load_file(kind, Path(path), found)


def where_defined(kind: str, function: Callable[..., Any], name: str | None) -> str:
    """How messages name a function; raises `PluginError` for anything else."""
    if not inspect.isfunction(function):
        raise PluginError(f"@{kind} goes on a plain function, not on {function!r:.100}")
    code = function.__code__
    return f"{kind} '{name or function.__name__}' ({code.co_filename}:{code.co_firstlineno})"


def yields(function: Callable[..., Any]) -> bool:
    """It is a generator, which returns nothing when it is called."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def full_name(name: str, module: str, where: str, reserved: Collection[str] = ()) -> str:
    """Put the package before the name, unless the function is a built-in's, a user's file's or a script's.

    Args:
        name: as its author wrote it.
        module: of the function.
        where: how messages name it.
        reserved: names that are settings of the section.

    Raises:
        PluginError: it is no name, or reserved.
    """
    if not _NAME.match(name):
        raise PluginError(f"{where}: the name must be a letter followed by letters, digits and underscores")
    package = module.split(".")[0]
    if package not in ("mmreason", "__main__") and not is_file_module(package):
        return f"{package}/{name}"
    if name in reserved:
        raise PluginError(f"{where}: '{name}' is a setting of the same section; choose another name")
    return name


def split_parameters(
    function: Callable[..., Any],
    where: str,
    known: Mapping[str, str],
    base: type[PluginOptions],
    elsewhere: Callable[[str], str] = lambda name: "",
) -> tuple[tuple[str, ...], dict[str, inspect.Parameter]]:
    """Tell the needs of a function from its options.

    Args:
        function: the plug-in.
        where: how messages name it.
        known: what it may need.
        base: of its options: the names there are taken.
        elsewhere: a sentence about who is told a thing that this kind is not, or nothing.

    Raises:
        PluginError: a parameter is neither.
    """
    needs: list[str] = []
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PluginError(f"{where}: {parameter} is not allowed; name what it needs: {', '.join(known)}")
        if name in known:
            needs.append(name)
        elif parameter.default is parameter.empty:
            hint = elsewhere(name) or did_you_mean(name, list(known))
            raise PluginError(
                f"{where}: nothing is called '{name}'.{hint} It may need "
                f"{', '.join(known)}; an option of its own must have a default."
            )
        elif name in base.model_fields or hasattr(base, name) or name.startswith("_"):
            raise PluginError(f"{where}: an option cannot be called '{name}' (reserved); choose another name")
        else:
            options[name] = parameter
    return tuple(needs), options


def options_model(
    name: str,
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    where: str,
    base: type[PluginOptions],
) -> type[PluginOptions]:
    """A pydantic model of options; raises `PluginError` for a type that the command line cannot set."""
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


def _load_file(kind: str, path: Path, registries: tuple[Registry[Any], ...]) -> None:
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise PluginError(f"{kind} file {path}: no such file (looked for {resolved}). Check {kind}.files.")
    module_name = _FILE_MODULE_PREFIX + hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, resolved)
    if spec is None or spec.loader is None:
        raise PluginError(f"{kind} file {path}: not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    # Type hints of the file's functions are looked up through sys.modules, and so is "already imported".
    sys.modules[module_name] = module
    before = [registry.names() for registry in registries]
    try:
        spec.loader.exec_module(module)
    except MMReasonError as error:
        del sys.modules[module_name]
        raise PluginError(f"{kind} file {path}: {error}") from error
    except KeyboardInterrupt:
        del sys.modules[module_name]
        raise
    except BaseException as error:  # a stranger's code may raise anything, also what is no `Exception`
        del sys.modules[module_name]
        line = _line_in_file(error, resolved)
        raise PluginError(f"{kind} file {path}{line}: does not run: {type(error).__name__}: {error}") from error
    if [registry.names() for registry in registries] == before:
        del sys.modules[module_name]
        raise PluginError(
            f"{kind} file {path}: registers no {registries[0].kind}. Put its decorator on a function in it."
        )


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
