"""Opening a run folder: continue the right checkpoint, or make sure that nothing is overwritten.

What enters: a configuration and its folder. What leaves: the checkpoint to continue from, or `None` to start. Both
training commands come in by this door; nothing is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmreason.config.curriculum import phase_configs
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError
from mmreason.objectives.settings import active_terms, compares_masked, dataset_problems, task_datasets
from mmreason.run_records import RunFolder
from mmreason.train.callbacks import process_state, refuse_unlaunched_gpus
from mmreason.train.checkpoints import file_digest, find_checkpoint, read_manifest
from mmreason.train.rows import RowFiles


def run_identity(config: RunConfig) -> dict[str, Any]:
    """What a run and the checkpoint that it continues must share: configuration, content of the data file."""
    identity: dict[str, Any] = config.model_dump(mode="json")
    for section in {"collect", "dpo", "stages"} - {config.command}:
        del identity[section]  # no other command reads them
    if not config.curriculum.phases:
        del identity["curriculum"]
    if config.data.path is not None and Path(config.data.path).is_file():
        identity["data_file_sha256"] = file_digest(Path(config.data.path))
    for name, path in phase_files(config).items():
        identity[f"data_file_sha256 of phase {name}"] = file_digest(path)
    return identity


def phase_files(config: RunConfig) -> dict[str, Path]:
    """The data files that phases of a curriculum set, by the name of the phase."""
    found = {}
    for rule, phase in zip(config.curriculum.phases, phase_configs(config), strict=False):
        if phase.data.path is not None and phase.data.path != config.data.path and Path(phase.data.path).is_file():
            found[rule.name] = Path(phase.data.path)
    return found


def check_rows(config: RunConfig, files: RowFiles) -> None:
    """Refuse options that no row of the run's data files gives anything to do; for tasks, this is known when a run is composed.

    Args:
        config: the run.
        files: its data files, of all phases; read here if they have not been.

    Raises:
        ConfigError: names the options. DataError: a file cannot be used.
    """
    problems: dict[str, None] = {}
    names: list[str] = []
    phases = phase_configs(config)
    for phase in phases:
        file = files.of(phase.data)
        if file is None:
            names += task_datasets(phase)
            continue
        names += [row.dataset for row in file.rows]
        if any(row.images for row in file.rows):
            continue
        idle = [f"augment.{name} changes images" for name in phase.augment.active()]
        masked = [term.spec.name for term in active_terms(phase.objective) if compares_masked(term)]
        idle += [f"objective.terms.{name} compares with masked images" for name in masked]
        for what in idle:
            problems[f"{what}, and no row of {file.path} has one: leave it out"] = None
    if any(phase.data.path is not None for phase in phases):
        problems |= dict.fromkeys(dataset_problems(config, names))
    if problems:
        raise ConfigError("\n".join(problems))


def settle(config: RunConfig) -> None:
    """Seed and threads of a training process; raises `ConfigError` for several GPUs without a launcher."""
    refuse_unlaunched_gpus()
    torch.manual_seed(config.seed)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)


def open_folder(config: RunConfig, folder: RunFolder, check: Callable[[Mapping[str, Any]], None]) -> Path | None:
    """Find the checkpoint to continue from, or make sure that nothing would be overwritten.

    Args:
        config: the run; `command`, `resume` are read.
        folder: its folder.
        check: given the manifest of a checkpoint; raises `ResumeError` if this run cannot continue it.

    Raises:
        ConfigError: the folder holds another run. ResumeError: there is no checkpoint that this run can continue.
    """
    checkpoint = find_checkpoint(config.resume, folder)
    manifest = read_manifest(checkpoint) if checkpoint is not None else None
    if manifest is not None:
        check(manifest)
    # Only one process looks: the folder is no longer empty once it has begun to write.
    if process_state().is_main_process:
        refuse_other_command(folder, config.command)
        here = checkpoint is not None and checkpoint.resolve().parent == folder.path.resolve()
        if config.resume != "auto" and not here and folder.path.is_dir() and any(folder.path.iterdir()):
            raise ConfigError(
                f"run folder {folder.path} is not empty. Choose another name=…, continue the run with "
                "resume=auto, or remove the folder."
            )
        if manifest is not None:
            print(f"continuing {checkpoint} at step {manifest['step']}")
    return checkpoint


def refuse_other_command(folder: RunFolder, command: str) -> None:
    """Raise `ConfigError` if the folder holds the run of another command, which would be overwritten."""
    theirs = str((folder.read_config() or {}).get("command", command))
    if theirs != command:
        raise ConfigError(
            f"run folder {folder.path} was written by `mmreason {theirs}`, and `mmreason {command}` would overwrite it. "
            "Choose another name=…"
        )
