"""Stages: the commands of a recipe one after the other, each from what the ones before it left.

What enters: a checked configuration with `stages`. What leaves: the folder `<out>/<name>/` with a run folder
`<k>-<stage>/` for each stage, `chain.json` (which are done, under which configuration), `summary.json` (scores of every stage
before and after), and `final`, a link to the last model. Every stage is composed and checked before the first one starts.

Each stage is a process of its own: memory is clean, its output is live, signals and exit codes go through. No torch here.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.config.answer_form import FORM
from mmreason.config.compose import Composed, compose, size_of
from mmreason.config.overrides import quote
from mmreason.config.schema import RunConfig, StageConfig
from mmreason.errors import ConfigError, DataError, MMReasonError, ResumeError
from mmreason.run_records import RunFolder, to_plain, write_atomically

CHAIN = "chain.json"
#: Commands that leave a `final/`.
_MAKES_MODEL = ("sft", "dpo", "train")
#: What the chain decides itself, for every stage.
_CHAIN_KEYS = frozenset({"command", "name", "out", "resume", "stages"})
#: Where a stage's model and rows come from is said by its own fields.
_LINK_KEYS = {"model.name": "model", "eval.compare": "compare"}
_DATA_KEYS = frozenset({"data", "data.path", "data.image_root"})
_KEY = re.compile(r"[A-Za-z_][\w./]*")
_PLAIN_WORD = re.compile(r"[A-Za-z_][\w-]*")
_DICT_KEY = re.compile(r"[A-Za-z0-9_][\w./-]*")
#: What of a stage's summary goes into the chain's.
_TOLD = (
    "before", "after", "difference", "held_out", "steps", "seconds", "kept", "rows", "completions", "pass_rate", "pairs",
    "dropped",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedStage:
    """A stage ready to run.

    Attributes:
        number: from 1.
        stage: as configured.
        words: of its command line.
        composed: its checked configuration.
    """

    number: int
    stage: StageConfig
    words: tuple[str, ...]
    composed: Composed

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.composed.run_dir)


# ---------------------------------------------------------------------- planning


def plan_chain(
    chain: Composed,
    *,
    config_dirs: Sequence[str | Path] = (),
    config_name: str | None = None,
    check_files: bool = False,
) -> list[PlannedStage]:
    """Compose and check every stage of a chain; arguments as of `compose`.

    Raises:
        ConfigError: with the problems of all stages; nothing has started.
    """
    problems = _chain_problems(chain)
    planned: list[PlannedStage] = []
    coming: set[str] = set()
    for number, stage in enumerate(chain.config.stages, start=1):
        title = f"stage {number}, '{stage.name}' (mmreason {stage.command})"
        try:
            words = _stage_words(chain, stage, number, planned)
            composed = compose(
                stage.command,
                words,
                config_dirs=config_dirs,
                config_name=config_name,
                check_files=check_files,
                coming=coming,
            )
        except ConfigError as error:
            problems.append(f"{title}: {error}".replace("\n", "\n    "))
            # Later stages that name this one cannot be told from those that are wrong themselves.
            break
        planned.append(PlannedStage(number, stage, tuple(words), composed))
        coming |= {str(composed.run_dir / made) for made in ("final", "rows.jsonl", "pairs.jsonl")}
    if problems:
        raise ConfigError(
            "the chain is refused, nothing was started:\n" + "\n".join(f"  - {line}" for line in problems)
        )
    return planned


def _chain_problems(chain: Composed) -> list[str]:
    config = chain.config
    problems = []
    names = [stage.name for stage in config.stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"stages: the name '{name}' is there twice" for name in twice]
    typed = set(map(_key, chain.overrides))
    if config.data.path is not None and all(has_own_rows(stage, typed) for stage in config.stages):
        problems.append(
            f"data.path={config.data.path}: every stage of this recipe learns from generated traces (sft.phases), so the file changes "
            "nothing; leave it out, or learn from it by `mmreason sft data=FILE.jsonl`"
        )
    problems += [f"stages: '{name}' has a meaning of its own; choose another name" for name in names if name in _WORDS]
    if config.resume not in ("none", "auto"):
        problems.append(f"resume={config.resume}: a chain goes on at its first unfinished stage; use resume=auto")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        problems.append(
            "stages: a chain starts its stages itself and runs without a launcher; start its commands one by one"
        )
    return problems


_WORDS = ("previous", "start")


def _stage_words(chain: Composed, stage: StageConfig, number: int, before: Sequence[PlannedStage]) -> list[str]:
    """The command line of a stage: its own options, then what was typed for the chain, then what ties it to the others."""
    typed = [word for word in chain.overrides if _key(word) not in _CHAIN_KEYS]
    links, linked = _links(chain, stage, before)
    keys = {_key(word) for word in typed}
    if has_own_rows(stage, keys):
        linked |= {key for key in keys if key.partition(".")[0] == "data"}
    typed = [word for word in typed if _key(word) not in linked]
    keys = {_key(word) for word in typed}
    own = [_word(stage, key, value, linked) for key, value in stage.set.items() if key not in keys]
    place = [f"out={quote(str(chain.run_dir))}", f"name={quote(f'{number}-{stage.name}')}", "stages=[]"]
    return [*own, *typed, *_form_word(chain.config, stage, keys), *place, *links]


def has_own_rows(stage: StageConfig, typed: Collection[str]) -> bool:
    """Whether a stage learns from generated traces, whatever file the chain is given; not if its phases are typed, such as `sft.phases=[]`.

    Args:
        stage: of a chain.
        typed: options of the command line.
    """
    return stage.command == "sft" and bool(stage.set.get("sft.phases")) and "sft.phases" not in typed


def _form_word(chain: RunConfig, stage: StageConfig, typed: set[str]) -> list[str]:
    """Every stage asks for the form that the chain's rewards want, also those that would ask as the start model was trained."""
    own = {key for key in stage.set if key == "model.form" or key == "reward" or key.startswith("reward.format")}
    if own or "model.form" in typed or chain.model.form is None or FORM not in chain.model.instruction:
        return []
    return [f"model.form={quote(chain.model.form)}"]


def _word(stage: StageConfig, key: str, value: Any, linked: frozenset[str]) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigError(f"set.{key}: not the name of an option")
    if key in _CHAIN_KEYS:
        raise ConfigError(f"set.{key}: the chain decides this; leave it out")
    if key in _LINK_KEYS:
        raise ConfigError(f"set.{key}: say it by the stage's own `{_LINK_KEYS[key]}`: start, or an earlier stage")
    if key in linked:
        raise ConfigError(f"set.{key}: the rows of this stage come from an earlier one; leave it out")
    return f"{key}={written(value)}"


def _links(chain: Composed, stage: StageConfig, before: Sequence[PlannedStage]) -> tuple[list[str], frozenset[str]]:
    """Words for the model and the rows that earlier stages leave, and the keys that they replace."""
    words: list[str] = []
    linked: set[str] = set()
    model = _earlier(stage.model, "model", before, lambda one: one.stage.command in _MAKES_MODEL)
    if model is not None:
        words.append(f"model.name={quote(str(model.folder.final))}")
        linked.add("model.name")
        # A folder's name does not say which of the recipe's values it wants; the model that the chain starts from does.
        words.append(f"size={size_of(chain.config.size, chain.config.model.name)}")
        linked.add("size")
    if stage.compare is not None:
        if stage.command != "eval":
            raise ConfigError("compare: only an eval stage compares")
        other = _earlier(stage.compare, "compare", before, lambda one: one.stage.command in _MAKES_MODEL)
        words.append(f"eval.compare={quote(str(other.folder.final) if other else chain.config.model.name)}")
        linked.add("eval.compare")
    path = _rows(stage, before)
    if path is not None:
        # Collected rows have their pictures beside them.
        words += [f"data.path={quote(str(path))}", "data.image_root=null"]
        linked |= _DATA_KEYS
    return words, frozenset(linked)


def _rows(stage: StageConfig, before: Sequence[PlannedStage]) -> Path | None:
    if stage.rows_from is not None and stage.command == "dpo":
        raise ConfigError("rows_from: dpo learns from pairs; use pairs_from")
    if stage.pairs_from is not None and stage.command != "dpo":
        raise ConfigError("pairs_from: only dpo learns from pairs; use rows_from")
    if stage.rows_from is not None:
        source = _earlier(stage.rows_from, "rows_from", before, lambda one: one.stage.command == "collect")
        name = "rows.jsonl"
    elif stage.pairs_from is not None:
        source = _earlier(
            stage.pairs_from,
            "pairs_from",
            before,
            lambda one: one.stage.command == "collect" and one.composed.config.collect.pairs,
        )
        name = "pairs.jsonl"
    else:
        return None
    if source is None:
        needed = " with collect.pairs: true" if stage.pairs_from is not None else ""
        raise ConfigError(f"rows_from/pairs_from: there is no collect stage{needed} before this one")
    return source.folder.path / name


def _earlier(name: str, field: str, before: Sequence[PlannedStage], fits: Any) -> PlannedStage | None:
    """The stage that is meant; `None` for `start`, and for `previous` where there is none that fits."""
    if name == "start":
        return None
    if name == "previous":
        return next((one for one in reversed(before) if fits(one)), None)
    found = next((one for one in before if one.stage.name == name), None)
    if found is None or not fits(found):
        known = ", ".join(one.stage.name for one in before if fits(one)) or "none"
        reason = "is no earlier stage" if found is None else "does not leave what is needed"
        raise ConfigError(f"{field}={name}: '{name}' {reason}; there is: {known}")
    return found


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def written(value: Any) -> str:
    """A plain value in Hydra's override grammar.

    Raises:
        ConfigError: a value that the grammar cannot write.
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        words = ("null", "true", "false", "inf", "nan")
        return value if _PLAIN_WORD.fullmatch(value) and value.lower() not in words else quote(value)
    if isinstance(value, Sequence):
        return "[" + ",".join(written(item) for item in value) + "]"
    if isinstance(value, Mapping) and all(isinstance(key, str) and _DICT_KEY.fullmatch(key) for key in value):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    raise ConfigError(f"a stage's option cannot be {value!r:.80}")


# ---------------------------------------------------------------------- running


def run_chain(chain: Composed, planned: Sequence[PlannedStage], where: Sequence[str] = ()) -> int:
    """Run the stages that are not done; returns the exit code of the last one that ran.

    Args:
        chain: the checked chain.
        planned: its stages.
        where: words that say where configurations are, for every stage.

    Raises:
        ConfigError: the folder holds something else. ResumeError: a stage that is done had another configuration.
    """
    from mmreason.config.command_line import INTERRUPTED, run_job

    folder = RunFolder(chain.run_dir)
    done = _open(chain, folder, planned)
    folder.write_config(chain.plain)
    code = 0
    for one in planned[len(done) :]:
        print(
            f"[stage {one.number} of {len(planned)}] {one.stage.name}: mmreason {one.stage.command} -> {one.folder.path}"
        )
        sys.stdout.flush()
        started = time.monotonic()
        command = [sys.executable, "-m", "mmreason", one.stage.command, *where, *one.words, "resume=auto"]
        code, stopped = run_job(command)
        # A process that a signal has killed: the number that shells give it.
        code = 128 - code if code < 0 else code
        if code != 0:
            print(f"stage {one.number}, '{one.stage.name}', ended with exit code {code}; resume=auto goes on there")
            break
        _check_left(one)
        done.append(
            {"name": one.stage.name, "config": _comparable(one), "seconds": round(time.monotonic() - started, 1)}
        )
        write_atomically(folder.path / CHAIN, json.dumps({"done": done}, indent=1).encode())
        if stopped and one is not planned[-1]:
            print(f"stopped after stage {one.number}, '{one.stage.name}'; resume=auto goes on with the next one")
            code = INTERRUPTED
            break
    _write_summary(chain, folder, planned, done)
    return code


def _open(chain: Composed, folder: RunFolder, planned: Sequence[PlannedStage]) -> list[dict[str, Any]]:
    """Which stages are done, in order; refuses a folder that is not this chain's."""
    if chain.config.resume == "none":
        if folder.path.is_dir() and any(folder.path.iterdir()):
            raise ConfigError(
                f"run folder {folder.path} is not empty. Choose another name=…, continue the chain with resume=auto, "
                "or remove the folder."
            )
        return []
    path = folder.path / CHAIN
    if not path.is_file():
        if folder.config.is_file() and not (folder.read_config() or {}).get("stages"):
            raise ConfigError(f"run folder {folder.path} holds another run. Choose another name=…")
        return []
    done = _read_done(path)
    if len(done) > len(planned):
        raise ResumeError(
            f"{path}: {len(done)} stages are done, and this chain has {len(planned)}. Choose another name=…"
        )
    for one, saved in zip(planned, done, strict=False):
        if differing := _differing(saved["config"], _comparable(one)):
            raise ResumeError(
                f"stage {one.number}, '{one.stage.name}', is done, with other options: {'; '.join(differing[:5])}. Set them "
                "back, or choose another name=… for the chain."
            )
        _check_left(one)
        print(f"[stage {one.number} of {len(planned)}] {one.stage.name}: done before")
    return done


def _read_done(path: Path) -> list[dict[str, Any]]:
    try:
        done: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["done"]
        _ = [(one["name"], dict(one["config"]), float(one["seconds"])) for one in done]
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path} is damaged: {error!r}. Remove the folder, or choose another name=…") from error
    return done


def _check_left(one: PlannedStage) -> None:
    """A stage that is done has left its summary and what the others may take from it."""
    needed = [one.folder.summary]
    needed += [one.folder.final / "config.json"] if one.stage.command in _MAKES_MODEL else []
    needed += [one.folder.path / "rows.jsonl"] if one.stage.command == "collect" else []
    for path in needed:
        if not path.is_file():
            raise MMReasonError(
                f"stage {one.number}, '{one.stage.name}', is done, but {path} is not there. Remove {one.folder.path.parent} "
                "and begin again."
            )


def _comparable(one: PlannedStage) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(one.composed.plain)
    return {key: value for key, value in plain.items() if key not in ("out", "resume", "source", "about")}


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in [*new, *(key for key in old if key not in new)]:
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differing(before, now, f"{prefix}{key}.")
        elif before != now and f"{prefix}{key}" not in ("model.name", "data.path", "eval.compare"):
            found.append(f"{prefix}{key}: {before!r} then, {now!r} now")
    return found


# ---------------------------------------------------------------------- what came out


def _write_summary(
    chain: Composed, folder: RunFolder, planned: Sequence[PlannedStage], done: Sequence[Mapping[str, Any]]
) -> None:
    stages = []
    for one, finished in zip(planned, done, strict=False):
        summary = one.folder.read_summary() or {}
        told = {key: summary[key] for key in _TOLD if key in summary}
        place = {"name": one.stage.name, "command": one.stage.command, "run_dir": str(one.folder.path)}
        stages.append({**place, **told, "seconds": finished["seconds"]})
    models = [one for one in planned[: len(done)] if one.stage.command in _MAKES_MODEL]
    if models:
        _link(folder.final, models[-1].folder.final)
    folder.write_summary(
        {
            "command": "train",
            "run_dir": str(folder.path),
            "model": chain.config.model.name,
            "seed": chain.config.seed,
            "finished": len(done) == len(planned),
            "seconds": round(sum(stage["seconds"] for stage in stages), 1),
            "stages": stages,
        }
    )
    print(
        f"\n{len(done)} of {len(planned)} stages done, {sum(stage['seconds'] for stage in stages):.0f} s -> {folder.path}"
    )
    for stage in stages:
        print(f"  {stage['name']:<16} mmreason {stage['command']:<8} {_line(stage)}")


def _link(link: Path, target: Path) -> None:
    if link.is_dir() and not link.is_symlink():
        raise DataError(f"{link} is a folder, and the chain puts a link to its last model there: remove it")
    temporary = link.with_name(f".final.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)


def _line(stage: Mapping[str, Any]) -> str:
    """The stage's main numbers in one line."""
    if "kept" in stage:
        return f"kept {stage['kept']} of {stage['completions']} completions, {stage['pairs']} pairs"
    before, after = stage.get("before") or {}, stage.get("after") or {}
    for name in ("accuracy", *after):
        if name in after and name in before:
            return f"{name} {before[name]['mean']:.3f} → {after[name]['mean']:.3f}"
        if name in after:
            return f"{name} {after[name]['mean']:.3f}"
    held_out = stage.get("held_out") or {}
    return "; ".join(f"{name}: accuracy {v['accuracy']['mean']:.3f}" for name, v in held_out.items() if "accuracy" in v)
