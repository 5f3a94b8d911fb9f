"""The files of `conf/study/`: what is compared, how often, by which measures.

What enters: the name of a study, or the path of a YAML file. What leaves: a frozen `StudyConfig`; everything wrong is reported
together, with line numbers, in one `ConfigError`. No torch, and no Hydra: the options of the runs are checked when the study is
planned (`mmreason.study.planning`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mmreason.config.explain import expected, suggest_word
from mmreason.config.schema import NonNegativeInt, PositiveInt, Section
from mmreason.errors import ConfigError

#: The arm that the others are compared with.
BASELINE = "baseline"
#: Names of arms, evaluations and measures: they become parts of folder names.
_NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=_NAME, max_length=40)]
Words = tuple[Annotated[str, Field(pattern=r"^[^=]+=")], ...]


class WarmUp(Section):
    """A short `mmreason sft` before every arm, so that the model knows the task; arms of one seed start from the same weights."""

    overrides: Words = Field(description="options of `mmreason sft`", min_length=1)
    each_seed: bool = Field(False, description="one for each seed; false = one for the study, at seed 0")


class Arm(Section):
    """One side of the comparison."""

    label: str = Field(min_length=1, description="its name in tables and figures")
    overrides: Words = Field((), description="options of `mmreason train` that only this arm has")


class Evaluation(Section):
    """`mmreason eval` of every trained policy."""

    overrides: Words = Field((), description="options of `mmreason eval`, on top of those of the run")


class Measure(Section):
    """One number of a finished run.

    `score`: of the held-out evaluation after training. `gain`: the same minus that before training. `metric`: mean of the last
    steps of a training metric. `eval`: a score of one of the study's own evaluations. `drop`: `score` minus `eval`.
    """

    name: Name = Field(description="its name, once in a study")
    label: str = Field(min_length=1, description="its name in tables and figures")
    kind: Literal["score", "gain", "metric", "eval", "drop"] = Field(description="where it comes from")
    score: str | None = Field(None, min_length=1, description="score, gain, eval, drop: which score")
    metric: str | None = Field(None, min_length=1, description="metric: which metric, as in metrics.jsonl")
    last: PositiveInt | None = Field(None, description="metric: mean of this many steps at the end")
    eval: Name | None = Field(None, description="eval, drop: which of the study's evaluations")
    undefined_as: float | None = Field(
        None, description="value where the score is undefined, such as 0 for an order of equal scores; null = left out"
    )
    better: Literal["higher", "lower", "neither"] = Field(
        description="which direction is better; the primary one has one"
    )
    primary: bool = Field(False, description="the one that decides the verdict")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Measure:
        needs = {"score": ("score",), "gain": ("score",), "metric": ("metric", "last")}.get(
            self.kind, ("score", "eval")
        )
        for name in ("score", "metric", "last", "eval"):
            given = getattr(self, name) is not None
            if given != (name in needs):
                wrong = "does not use" if given else "needs"
                raise ValueError(f"kind: {self.kind} {wrong} '{name}'; it needs {' and '.join(needs)}")
        return self


class Guard(Section):
    """A measure that must not get worse by more than a margin, such as accuracy where answers get shorter."""

    measure: Name = Field(description="name of a measure")
    margin: Annotated[float, Field(gt=0.0)] = Field(description="loss that is tolerated, in the measure's unit")


class Verdict(Section):
    """When a claim shows up: the interval of the paired difference of the primary measure leaves 0 on the better side."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(0.95, description="of the interval")
    guard: Guard | None = Field(
        None, description="also needed: the interval of this difference stays within the margin"
    )


class Curve(Section):
    """What the figure shows over the steps."""

    metric: str = Field(min_length=1, description="a metric of metrics.jsonl")
    label: str = Field(min_length=1, description="name of the axis")


class StudyConfig(Section):
    """A whole study."""

    title: str = Field(min_length=1, description="what is compared")
    claim: str = Field(min_length=1, description="what the paper says")
    source: str = Field(min_length=1, description="the paper")
    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1, description="one run of every arm for each")
    common: Words = Field((), description="options of `mmreason train` that all arms share")
    warm_up: WarmUp | None = Field(None, description="supervised training before every arm")
    arms: dict[Name, Arm] = Field(description="'baseline', and what is compared with it", min_length=2)
    evals: dict[Name, Evaluation] = Field(default_factory=dict, description="evaluations after training")
    measures: tuple[Measure, ...] = Field(min_length=1, description="what is measured; exactly one is primary")
    verdict: Verdict = Field(default_factory=Verdict)
    curve: Curve = Field(description="what the figure shows over the steps")
    deviations: tuple[str, ...] = Field((), description="what differs from the paper, beyond the recipe's own list")

    @property
    def primary(self) -> Measure:
        """The measure that decides."""
        return next(measure for measure in self.measures if measure.primary)

    @property
    def methods(self) -> list[str]:
        """Names of the arms that are compared with the baseline."""
        return [name for name in self.arms if name != BASELINE]

    @property
    def confidence(self) -> float:
        """Of each interval that decides: with k methods, Bonferroni's `1 - (1 - confidence) / k`."""
        return 1.0 - (1.0 - self.verdict.confidence) / len(self.methods)

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    @model_validator(mode="after")
    def _parts_fit(self) -> StudyConfig:
        names = [measure.name for measure in self.measures]
        guarded = self.verdict.guard
        problems = []
        if BASELINE not in self.arms:
            problems.append(f"arms: one must be called '{BASELINE}'; there are {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds: {list(self.seeds)} holds a seed twice; equal runs would be counted as two")
        problems += [f"measures: the name '{name}' is there twice" for name in names if names.count(name) > 1]
        primary = [measure.name for measure in self.measures if measure.primary]
        if len(primary) != 1:
            problems.append(f"measures: exactly one is primary, not {len(primary)} ({', '.join(primary) or 'none'})")
        for measure in self.measures:
            if measure.better == "neither" and (measure.primary or (guarded and measure.name == guarded.measure)):
                problems.append(f"measures.{measure.name}.better: a measure that decides needs higher or lower")
            if measure.eval is not None and measure.eval not in self.evals:
                near = suggest_word(measure.eval, list(self.evals))
                problems.append(
                    f"measures.{measure.name}.eval: there is no evaluation '{measure.eval}' in evals.{near}"
                )
        if guarded is not None and (guarded.measure not in names or guarded.measure in primary):
            near = suggest_word(guarded.measure, [name for name in names if name not in primary])
            problems.append(f"verdict.guard.measure: '{guarded.measure}' is no measure beside the primary one.{near}")
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self


# ---------------------------------------------------------------------- files


def study_files() -> dict[str, Path]:
    """Name -> file of every study of the package."""
    import mmreason.conf

    folder = Path(str(mmreason.conf.__file__)).parent / "study"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_study(name: str) -> tuple[str, Path]:
    """Name and file of a study of the package, or of a file of the user's own.

    Raises:
        ConfigError: there is none.
    """
    files = study_files()
    if name in files:
        return name, files[name]
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name).stem, Path(name)
        raise ConfigError(f"{name}: no such study file")
    raise ConfigError(
        f"there is no study '{name}'.{suggest_word(name, list(files))} There are {', '.join(files)}; "
        "or give the path of a .yaml file. `mmreason study --list` tells what each compares."
    )


def read_study(path: Path) -> StudyConfig:
    """Read and check one file.

    Raises:
        ConfigError: with everything that is wrong, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a study is a mapping with {', '.join(StudyConfig.model_fields)}")
    twice = [f"{path}:{line}" for line in _keys_twice(node, "")]
    try:
        study = StudyConfig.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        inner = {one["loc"][0] for one in errors if len(one["loc"]) > 1}
        # A list whose items are all wrong is also called too short.
        kept = [one for one in errors if one["type"] != "too_short" or one["loc"][0] not in inner]
        lines = [_problem(path, node, one) for one in kept]
        raise ConfigError("the study is refused:\n" + "\n".join(f"  - {line}" for line in [*twice, *lines])) from None
    if twice:
        raise ConfigError("the study is refused:\n" + "\n".join(f"  - {line}" for line in twice))
    return study


def _keys_twice(node: Any, key: str) -> Iterator[str]:
    """YAML keeps the last of two equal keys in silence."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys_twice(item, f"{key}.{number}".lstrip("."))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            here = f"{key}.{name.value}".lstrip(".")
            if name.value in seen:
                yield f"{name.start_mark.line + 1}: {here} is there twice"
            seen.add(name.value)
            yield from _keys_twice(value, here)


def _problem(path: Path, node: Any, error: ErrorDetails) -> str:
    """`file:line: key=value: what is allowed`, for one pydantic error."""
    parts = [part for part in error["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in parts)
    section, field = _schema_of(parts)
    where = f"{path}:{_line(node, parts)}: "
    if error["type"] == "extra_forbidden" and section is not None:
        return f"{where}{key}: unknown option.{suggest_word(str(parts[-1]), list(section.model_fields))}"
    if error["type"] == "missing":
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"{where}{key}: needs a value{meaning}"
    if error["type"] == "value_error":
        return (
            where
            + (f"{key}: " if key else "")
            + error["msg"].removeprefix("Value error, ").replace("\n", f"\n  - {where}")
        )
    value = error["input"]
    shown = f"={value}" if isinstance(value, (str, int, float)) else ""
    if "[key]" in error["loc"]:
        return f"{where}{key}: a name has small letters, digits and _ only, and begins with a letter"
    near = suggest_word(str(value), _choices(field)) if error["type"] == "literal_error" else ""
    if error["type"] == "string_pattern_mismatch" and isinstance(parts[-1], int):
        return f"{where}{key}{shown}: expected OPTION=VALUE, such as trainer.steps=40"
    wanted = f"expected {expected(field)}" if field is not None else error["msg"][:1].lower() + error["msg"][1:]
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{where}{key}{shown}: {wanted}{meaning}.{near}"


def _schema_of(parts: Sequence[int | str]) -> tuple[type[BaseModel] | None, Any]:
    """The section that a location lies in, and the field that it names; `None` for what there is not."""
    section: type[BaseModel] | None = StudyConfig
    field = None
    in_mapping = False
    for part in parts:
        if isinstance(part, int) or in_mapping:
            in_mapping, field = False, None
            continue
        field = section.model_fields.get(part) if section is not None else None
        if field is None:
            return section, None
        kinds = [field.annotation, *get_args(field.annotation)]
        found = next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
        in_mapping = found is not None and str(field.annotation).startswith("dict")
        section = found or section
    return section, field


def _choices(field: Any) -> list[str]:
    return [str(choice) for choice in get_args(field.annotation)] if field is not None else []


def _line(node: Any, parts: Sequence[int | str]) -> int:
    """Line of a location, from 1; that of the nearest part that there is."""
    line = 1
    for part in parts:
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
