"""What a study keeps of its jobs: which configuration a folder was made with, from which weights, and whether it is done.

What enters: a `Plan`. What leaves: `configs/<job>.yaml`, and answers to "may this folder be continued" and "is it finished". No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmreason.config.compose import plain_dict
from mmreason.errors import ConfigError, DataError
from mmreason.policy.families import EMBEDDED
from mmreason.run_records import RunFolder, to_plain, write_atomically
from mmreason.study.planning import Job, Plan

_WEIGHTS = "# weights: "
#: One line for each time that jobs of a study ran.
_SESSIONS = "sessions.jsonl"
#: What may differ between the two halves of a run that is continued.
_FREE = ("trainer.num_threads", "about", "source")


def config_file(plan: Plan, job: Job) -> Path:
    """What a job runs, and the record of it."""
    return plan.out / "configs" / f"{job.name}.yaml"


def log_file(plan: Plan, job: Job) -> Path:
    """Everything that a job printed."""
    return plan.out / "logs" / f"{job.name}.log"


def refuse_other_study(plan: Plan) -> None:
    """Raise `ConfigError` if a folder of the plan was made with other options: two studies must not be mixed."""
    problems = []
    for job in plan.jobs:
        if not job.folder.is_dir() or not any(job.folder.iterdir()):
            continue
        recorded = _recorded(plan, job)
        if recorded is None:
            problems.append(f"{job.folder}: there is no record of what made it")
            continue
        differing = list(_differing(recorded, to_plain(plain_dict(job.config))))
        if differing:
            problems.append(f"{job.folder}: " + "; ".join(differing[:5]) + (" …" if len(differing) > 5 else ""))
    if problems:
        raise ConfigError(
            f"{plan.out} holds runs of another study, or of the same with other options:\n"
            + "\n".join(f"  - {line}" for line in problems)
            + "\nChoose another --out, give the same options again, or remove the folder."
        )


def write_record(plan: Plan, job: Job) -> Path:
    """Write the configuration that a job is about to run; returns the file.

    Raises:
        DataError: the folder holds a run from other weights than those that are there now.
    """
    file = config_file(plan, job)
    now = start_weights(job)
    before = _recorded_weights(file)
    if before is not None and before != now and job.folder.is_dir() and any(job.folder.iterdir()):
        raise DataError(
            f"{job.folder} was made from other weights than {job.start} holds now. Remove that folder, and run the study again."
        )
    text = yaml.safe_dump(to_plain(plain_dict(job.config)), sort_keys=False, allow_unicode=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, f"{_WEIGHTS}{now}\n{text}".encode())
    return file


def write_session(plan: Plan, seconds: float, jobs_at_once: int, jobs_run: int) -> None:
    """Keep how long jobs of the study ran, by the clock; nothing where all had been finished before."""
    if not jobs_run:
        return
    line = json.dumps({"seconds": round(seconds, 1), "jobs_at_once": jobs_at_once, "jobs_run": jobs_run})
    with (plan.out / _SESSIONS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_sessions(plan: Plan) -> list[dict[str, float]]:
    """What `write_session` kept, in order; raises `DataError` for a damaged file."""
    path = plan.out / _SESSIONS
    if not path.is_file():
        return []
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: float(one[key]) for key in ("seconds", "jobs_at_once", "jobs_run")} for one in found]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error!r}. Remove it; the page then names no time.") from None


def is_finished(plan: Plan, job: Job) -> bool:
    """There is a complete summary of the same configuration, from the weights that are there now."""
    try:
        summary = RunFolder(job.folder).read_summary()
    except DataError:
        return False
    if summary is None or summary.get("command") != job.command:
        return False
    return _recorded_weights(config_file(plan, job)) == start_weights(job)


def start_weights(job: Job) -> str:
    """SHA-256 of the weights in the folder that a job starts from; `""` for weights that no folder holds."""
    name = job.config.model.name
    embedded = Path(__file__).parent.parent / "policy"
    folder = embedded / EMBEDDED[name] if name in EMBEDDED else Path(name).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest() if files else ""


def _recorded(plan: Plan, job: Job) -> dict[str, Any] | None:
    file = config_file(plan, job)
    if not file.is_file():
        return None
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable YAML: {error}") from None
    return loaded if isinstance(loaded, dict) else None


def _recorded_weights(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        first = lines.readline()
    return first.removeprefix(_WEIGHTS).strip() if first.startswith(_WEIGHTS) else None


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, now = dict(_flat(old)), dict(_flat(new))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(name + ".") for name in _FREE)
        if before.get(key) != now.get(key) and not free:
            yield f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
