"""From command-line words to a checked `RunConfig`: Hydra composition, then the strict typed schema.

What enters: the subcommand and the `key=value` words as typed. What leaves: `Composed`, whose `config` is
frozen and complete. Everything wrong is reported together in one `ConfigError` (exit code 2), before torch is
imported.

Hydra's compose API is used rather than `@hydra.main`: no `outputs/` folder, no change of directory, and a run
folder that is the same on every process. The schema's defaults enter as Hydra's base config `schema`, so
`conf/` states only what differs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from mmreason.config import explain
from mmreason.config.answer_form import FORM, form_problems, with_form
from mmreason.config.curriculum import curriculum_problems, phase_configs
from mmreason.config.needed_files import missing_files
from mmreason.config.overrides import (
    expand_sweep,
    prepare,
    quote,
    split_search_path,
    swept_keys,
)
from mmreason.config.schema import RewardConfig, RunConfig, TaskConfig
from mmreason.errors import ConfigError, MMReasonError
from mmreason.policy.families import EMBEDDED

CONFIG_MODULE = "mmreason.conf"
COMMANDS = ("train", "sft", "collect", "dpo", "eval")
#: Longest run name that is made automatically; file systems stop at 255.
MAX_NAME_CHARS = 120


@dataclass(frozen=True)
class Composed:
    """A checked configuration and where it came from."""

    config: RunConfig
    #: The same as plain dicts, lists and scalars: what `config.yaml` in the run folder holds.
    plain: dict[str, Any]
    #: Words as typed.
    overrides: tuple[str, ...]
    #: Config group -> chosen file.
    choices: dict[str, str | None]

    @property
    def run_dir(self) -> Path:
        """Folder of this run: `<out>/<name>`."""
        return Path(self.config.out) / self.config.name

    def yaml(self) -> str:
        """The resolved configuration as YAML, in schema order."""
        return to_yaml(self.plain)


@dataclass(frozen=True)
class SweepJob:
    """One point of a sweep: its words, what it varies, and its checked configuration."""

    overrides: tuple[str, ...]
    varied: tuple[str, ...]
    composed: Composed


def compose(
    command: str,
    overrides: Sequence[str] = (),
    *,
    config_dirs: Sequence[str | Path] = (),
    config_name: str | None = None,
    check_files: bool = False,
    coming: Collection[str] = (),
) -> Composed:
    """Compose and check one configuration.

    Args:
        command: `train`, `sft`, `collect`, `dpo` or `eval`.
        overrides: Hydra overrides, plus the short forms `data=FILE` and `model=FOLDER_OR_HUB_ID`.
        config_dirs: more folders with config groups of the user's own (also: `hydra.searchpath=[…]`).
        config_name: primary config file; default: the command's own.
        check_files: also refuse data files, image roots, checkpoints and model folders that do not exist.
        coming: files and folders that earlier stages will have made by then.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems: list[str] = []
    places, words = split_search_path(overrides)
    folders = _folders([*config_dirs, *places], problems)
    with _hydra(folders, config_name):
        prepared = prepare(words, _group_choices(folders), command)
        problems += prepared.problems
        if any(word.partition("=")[0].lstrip("+") == "command" for word in overrides):
            problems.append(f"command: fixed by `mmreason {command}`; leave it out")
        words = [*prepared.words, f"++command={command}", *_search_path_words(folders)]
        composed = _compose(config_name or command, words, problems)
    if composed is None:
        raise _refusal(command, problems)
    raw, choices = composed
    config = _validated(with_form(raw), problems)
    if config is not None and not problems:
        # A chain runs nothing itself: each of its stages is checked on its own (`mmreason.stages`).
        problems += _disagreements(config) + _ignored_words(config, overrides) if not config.is_chain else []
        problems += _chain_problems(config)
        problems += _curriculum_problems(config) if config.command == "train" and not problems else []
        problems += _dataset_problems(config) if config.command == "train" and not problems else []
        if check_files:
            problems += missing_files(config, coming)
        if check_files and not problems:
            problems += [line for phase in phase_configs(config) for line in missing_files(phase, coming)]
    if problems or config is None:
        raise _refusal(command, problems)
    return Composed(config, plain_dict(config), tuple(overrides), choices)


def compose_sweep(
    command: str,
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str | Path] = (),
    config_name: str | None = None,
    check_files: bool = False,
) -> list[SweepJob]:
    """Compose every job of a `-m` sweep, each under its own name; nothing starts when one of them is wrong.

    Raises:
        ConfigError: a word outside Hydra's grammar, or a job that `compose` refuses.
    """
    try:
        grid = expand_sweep(overrides)
        keys = swept_keys(overrides)
    except ValueError as error:
        raise _refusal(command, [str(error)]) from None

    def composed(words: Sequence[str]) -> Composed:
        return compose(command, words, config_dirs=config_dirs, config_name=config_name, check_files=check_files)

    varied = [tuple(word for word in job if word.partition("=")[0] in keys) for job in grid]
    jobs = [composed(job) for job in grid]
    names = distinct_names([job.config.name for job in jobs], varied)
    sweep = []
    for words, changes, job, name in zip(grid, varied, jobs, names, strict=True):
        if name != job.config.name:
            kept = [word for word in words if word.partition("=")[0].lstrip("+") != "name"]
            words = [*kept, f"name={quote(name)}"]
            job = composed(words)
        sweep.append(SweepJob(tuple(words), changes, job))
    return sweep


def defaults_list(
    command: str, overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> list[tuple[str, str]]:
    """The files that make up a configuration, in merge order: (`group/file`, package it fills)."""
    problems: list[str] = []
    places, words = split_search_path(overrides)
    folders = _folders([*config_dirs, *places], problems)
    with _hydra(folders, None) as loader:
        prepared = prepare(words, _group_choices(folders), command)
        problems += prepared.problems
        if problems:
            raise _refusal(command, problems)
        words = [*prepared.words, *_search_path_words(folders)]
        result = loader.compute_defaults_list(command, words, RunMode.RUN).defaults
    return [
        (str(item.config_path), str(item.package or "(top level)"))
        for item in result
        if item.config_path and not str(item.config_path).startswith("hydra/")
    ]


def load(path: str | Path) -> RunConfig:
    """Read a saved `config.yaml`; raises `ConfigError` if it does not fit the schema."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable configuration ({str(error).splitlines()[0]})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not a configuration: expected a mapping of options at the top level")
    problems: list[str] = []
    config = _validated(raw, problems)
    if config is None or problems:
        raise ConfigError(f"{path} is not a valid configuration:\n" + _bullets(problems))
    return config


def plain_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain dicts, lists and scalars, safe for YAML and JSON."""
    return config.model_dump(mode="json")


def to_yaml(plain: dict[str, Any]) -> str:
    """YAML text that `load` and Hydra both read back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def distinct_names(names: Sequence[str], varied: Sequence[Sequence[str]]) -> list[str]:
    """Run names of a sweep: unchanged if they differ, else with what varies, else with the job's number."""
    result = list(names)
    if len(set(result)) == len(result):
        return result
    result = [
        _fit(name + "-" + ",".join(_slug(word) for word in words)) for name, words in zip(names, varied, strict=True)
    ]
    if len(set(result)) == len(result):
        return result
    return [_fit(name) + f"-{number}" for number, name in enumerate(result)]


def _refusal(command: str, problems: Sequence[str]) -> ConfigError:
    seen = dict.fromkeys(problems)
    return ConfigError(
        f"the configuration is refused:\n{_bullets(list(seen))}\n"
        f"All options: mmreason {command} --options. What would run: mmreason {command} … --cfg job"
    )


def _bullets(problems: Sequence[str]) -> str:
    return "\n".join("  - " + line.replace("\n", "\n    ") for line in problems)


@contextmanager
def _hydra(folders: Sequence[Path], config_name: str | None) -> Iterator[Any]:
    """Hydra set up with the schema's defaults stored as the config `schema`; yields the config loader.

    Hydra looks for the primary config in one place only: `mmreason.conf`, or the user's folder that holds
    `config_name`.
    """
    ConfigStore.instance().store(name="schema", node=plain_dict(RunConfig()), provider="mmreason.config.schema")
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("by_rows", by_rows, replace=True)
    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    main = next((folder for folder in folders if config_name and (folder / f"{config_name}.yaml").is_file()), None)
    if main is None:
        context = initialize_config_module(CONFIG_MODULE, job_name="mmreason", version_base="1.3")
    else:
        context = initialize_config_dir(str(main), job_name="mmreason", version_base="1.3")
    with context:
        yield GlobalHydra.instance().config_loader()


def _group_choices(folders: Sequence[Path]) -> Callable[[str], list[str]]:
    """A lister of group choices: Hydra's own, the package's, and those in the user's folders."""
    loader = GlobalHydra.instance().config_loader()
    places = [Path(str(importlib.import_module(CONFIG_MODULE).__file__)).parent, *folders]

    def choices(group: str) -> list[str]:
        files = [file.stem for place in places for file in (place / group).glob("*.yaml")]
        return sorted({*loader.get_group_options(group), *files})

    return choices


def _folders(places: Sequence[str | Path], problems: list[str]) -> list[Path]:
    folders = []
    for place in places:
        folder = _folder(str(place))
        if folder is not None and folder.is_dir():
            folders.append(folder)
        else:
            problems.append(f"config folder {place}: no such folder")
    return folders


def _folder(place: str) -> Path | None:
    """A place in Hydra's notation (`DIR`, `file://DIR`, `pkg://MODULE`) as a folder; `None` if not found."""
    if not place.startswith("pkg://"):
        return Path(place.removeprefix("file://")).expanduser().resolve()
    try:
        spec = importlib.util.find_spec(place.removeprefix("pkg://"))
    except ImportError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _search_path_words(folders: Sequence[Path]) -> list[str]:
    if not folders:
        return []
    return [
        "hydra.searchpath=[" + ",".join(quote(f"file://{folder}") for folder in folders) + f",pkg://{CONFIG_MODULE}]"
    ]


def _compose(
    config_name: str, words: Sequence[str], problems: list[str]
) -> tuple[dict[str, Any], dict[str, str | None]] | None:
    """Hydra's result as a plain dict, and the group choices; `None` with a problem added if it fails."""
    try:
        tree = hydra_compose(config_name=config_name, overrides=list(words), return_hydra_config=True)
        choices = {str(k): v for k, v in tree.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
        # Not the hydra section: its interpolations need a running Hydra application.
        keys = [str(key) for key in tree if key != "hydra"]
        missing = [name for key in keys for name in _missing(tree, key)]
        if missing:
            problems += [f"{name}: has no default here; give {name}=…" for name in missing]
            return None
        plain = {key: _plain(tree, key) for key in keys}
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(_hydra_problem(error))
        return None
    return plain, choices


def _plain(tree: DictConfig, key: str) -> Any:
    value = tree[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _missing(tree: DictConfig, key: str) -> list[str]:
    if OmegaConf.is_missing(tree, key):
        return [key]
    value = tree[key]
    return [f"{key}.{name}" for name in sorted(OmegaConf.missing_keys(value))] if OmegaConf.is_config(value) else []


def _hydra_problem(error: Exception) -> str:
    """Hydra's own words, without its advice to use `+` (it would only move the problem) and links."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        line for line in lines if not line.startswith(("See ", "To append", "full_key", "object_type", "Set the env"))
    ]
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + (" ".join(kept) or type(error).__name__)


def _run_name(*, _root_: DictConfig) -> str:
    """Resolver `${run_name:}`: `<recipe>-<model>-<task or data file>-seed<seed>`, equal on every process."""
    choices = OmegaConf.select(_root_, "hydra.runtime.choices", default={})
    command = str(OmegaConf.select(_root_, "command"))
    model = _model_label(str(OmegaConf.select(_root_, "model.name") or "model"))
    compare, temperature = OmegaConf.select(_root_, "eval.compare"), OmegaConf.select(_root_, "eval.temperature")
    masked = OmegaConf.select(_root_, "eval.mask_probability")
    data = OmegaConf.select(_root_, "data.path")
    rows = Path(str(data)).stem if data else str(OmegaConf.select(_root_, "task.name"))
    debug = choices.get("debug")
    parts = [
        "" if command == "train" else command,
        choices.get("recipe") or "",
        model,
        f"vs-{_model_label(compare)}" if command == "eval" and compare else "",
        f"T{temperature}" if command == "eval" and temperature else "",
        f"mask{masked}" if command == "eval" and masked else "",
        rows,
        f"seed{OmegaConf.select(_root_, 'seed')}",
        "" if debug in (None, "off") else str(debug),
    ]
    return _fit("-".join(_slug(part) for part in parts if part))


def _model_label(name: str) -> str:
    """The last telling part of a model's name: the run of a `final/`, the run and step of a checkpoint."""
    path = Path(name)
    if path.name == "final":
        return path.parent.name
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def by_rows(generated: Any, from_file: Any, *, _root_: DictConfig) -> Any:
    """Resolver `${by_rows:GENERATED,FROM_FILE}`: what suits the rows of a task, or those of a file (`data.path`)."""
    return from_file if OmegaConf.select(_root_, "data.path") else generated


def by_size(published: Any, tiny: Any, *, _root_: DictConfig) -> Any:
    """Resolver `${by_size:PUBLISHED,TINY}`: what a paper used, or what suits the tiny models of this package."""
    size = size_of(str(OmegaConf.select(_root_, "size") or "auto"), str(OmegaConf.select(_root_, "model.name")))
    return tiny if size == "tiny" else published


def size_of(size: str, model: str) -> str:
    """`published` or `tiny`: as `size` says, else by the model's name; the embedded and random ones learn on a CPU in minutes.

    Args:
        size: `auto`, `published` or `tiny`.
        model: name of the model.
    """
    if size != "auto":
        return size
    return "tiny" if model in EMBEDDED or model.startswith("random:") else "published"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.,=+_") or "x"


def _fit(name: str) -> str:
    if len(name) <= MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_CHARS - 9]}-{digest}"


def _validated(raw: dict[str, Any], problems: list[str]) -> RunConfig | None:
    """Check against the schema, then rewards and task against their plug-ins; problems are added."""
    config = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += [explain.problem(item) for item in error.errors(include_url=False)]
    problems += _reward_problems(raw.get("reward"))
    problems += _task_problems(raw.get("task"))
    if config is not None and config.command == "sft":
        problems += _mixture_problems(config)
    return config


def _reward_problems(raw: Any) -> list[str]:
    try:
        section = RewardConfig.model_validate(raw or {})
    except ValidationError:
        return []  # already reported with the rest of the schema
    bare = [
        f"reward.{name}={value!r}: a reward takes options, such as reward.{name}.weight=1; null drops it"
        for name, value in (section.model_extra or {}).items()
        if value is not None and not isinstance(value, dict)
    ]
    if bare:
        return bare
    from mmreason.scoring import validate_reward_config

    try:
        validate_reward_config(section)
    except MMReasonError as error:
        return str(error).splitlines()
    return []


def _task_problems(raw: Any) -> list[str]:
    try:
        section = TaskConfig.model_validate(raw or {})
    except ValidationError:
        return []  # already reported with the rest of the schema
    from mmreason.data.base import validate_task_config

    try:
        validate_task_config(section)
    except MMReasonError as error:
        return str(error).splitlines()
    return []


def _mixture_problems(config: RunConfig) -> list[str]:
    from mmreason.data.mixtures import check_mixture_keys

    try:
        check_mixture_keys(config.sft.phases)
    except MMReasonError as error:
        return str(error).splitlines()
    return []


def _disagreements(config: RunConfig) -> list[str]:
    """What the chosen command cannot do with this configuration."""
    problems = []
    weights = config.reward.weights()
    if config.command == "train" and not any(weight > 0 for weight in weights.values()):
        problems.append("reward: no reward has a weight above 0: nothing to learn from; set one: reward.iou.weight=1")
    if config.command == "train":
        from mmreason.objectives.settings import objective_problems, shows_nothing

        problems += objective_problems(config) + form_problems(config)
        if config.augment.active() and shows_nothing(config):
            problems += [
                f"augment.{name} changes images, and the questions of task={config.task.name} have none: set "
                f"augment.{name}.probability=0 here"
                for name in config.augment.active()
            ]
    problems += _judge_problems(config) if config.command not in ("sft", "dpo") else []
    if (
        config.agent.enabled
        or config.sft.phases
        or config.eval.without_tools != "no"
        or config.eval.at_once
        or config.eval.oracle
        or config.collect.revised_only
    ):
        from mmreason.agent.checks import agent_problems

        problems += agent_problems(config)
    if config.command == "dpo" and config.data.caption_column is not None:
        problems.append("data.caption_column: pairs hold the prompts that they were sampled for; leave it out")
    if config.command == "dpo" and config.data.path is None:
        problems.append("data.path is empty: mmreason dpo learns from pairs; give data=PAIRS.jsonl")
    if config.command == "collect":
        problems += _collect_problems(config)
    if config.data.caption_column is not None and config.data.path is None:
        problems.append(
            "data.caption_column: without data.path there are no columns; generated scenes have task.caption"
        )
    if config.command == "sft" and not config.sft.phases and config.data.path is None:
        problems.append(
            "sft.phases and data.path are empty: nothing to train on; give recipe=tiny_vlm or data=FILE.jsonl"
        )
    if config.command == "sft" and config.sft.phases and config.data.path is not None:
        problems.append(
            "sft.phases and data.path are both given: supervised training learns from generated tasks or from a "
            "file; leave the recipe with the phases out (or add sft.phases=[]), or leave data out"
        )
    return problems


def _collect_problems(config: RunConfig) -> list[str]:
    """What `mmreason collect` could not do."""
    collect, active = config.collect, config.reward.active()
    if not active:
        return ["reward: no reward is active: nothing can be filtered; set one: reward.iou.weight=1"]
    problems = []
    if collect.pairs:
        known = ["total", *active]
        problems += [
            f"collect.pair_scores: no reward '{name}' in this run.{explain.suggest_word(name, known)} There are {', '.join(known)}"
            for name in collect.pair_scores
            if name not in known
        ]
    return problems


def _chain_problems(config: RunConfig) -> list[str]:
    if config.stages and config.command in ("sft", "collect", "dpo"):
        return [
            f"stages: the recipe is a chain, which `mmreason train` runs; for `mmreason {config.command}` alone, with the "
            "options that its stages share, add stages=[]"
        ]
    return []


def _curriculum_problems(config: RunConfig) -> list[str]:
    """What is wrong with the phases of a run, each checked like a run of its own."""

    def check(raw: dict[str, Any]) -> list[str]:
        problems: list[str] = []
        phase = _validated(raw, problems)
        return problems if phase is None or problems else _disagreements(phase)

    return curriculum_problems(config, check)


def _dataset_problems(config: RunConfig) -> list[str]:
    """Weights of data sets that no task of the run has; those of files are looked at once these are read."""
    from mmreason.objectives.settings import dataset_problems, task_datasets

    phases = phase_configs(config)
    if config.is_chain or any(phase.data.path is not None for phase in phases):
        return []
    return dataset_problems(config, [name for phase in phases for name in task_datasets(phase)])


def _judge_problems(config: RunConfig) -> list[str]:
    """Rewards that ask a judge where there is none."""
    from mmreason.reward_kit.settings import no_judge
    from mmreason.scoring import REWARDS

    asking = [name for name in config.reward.active() if "judge" in REWARDS.get(name).needs]
    return [no_judge(name) for name in asking] if config.judge.kind == "none" else []


def _ignored_words(config: RunConfig, words: Sequence[str]) -> list[str]:
    """What was typed and would change nothing."""
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    if "model.form" in typed and config.model.form is not None and FORM not in config.model.instruction:
        return [f"model.form: model.instruction has no place for it; write {FORM} there, or leave it out"]
    if config.command == "sft" and config.sft.phases and "trainer.steps" in typed:
        return ["trainer.steps: the steps of sft.phases count here; change those, or leave trainer.steps out"]
    phases = sorted(word for word in typed if word.partition(".")[0] == "curriculum")
    if config.command not in ("train", "eval") and phases:
        return [f"{word}: only `mmreason train` has phases; leave it out" for word in phases]
    if config.command != "train":
        augment = sorted(word for word in typed if word.partition(".")[0] == "augment")
        return [f"{word}: only `mmreason train` changes pictures; leave it out" for word in augment]
    return []
