"""Checkpoints that are whole or absent, and can be continued exactly.

What enters: a folder in which the trainer has written weights, optimizer, schedule and random states. What
leaves: a `checkpoint-<step>/` that appears in one rename (`SealedCheckpoints`, for any trainer), with a
manifest (size and SHA-256 of every file, digest of the weights, the run's configuration), and the functions
that find, check and load one. The loader is strict: a weight that is missing or unknown is an error, because
the stock trainer's lenient one silently keeps a Qwen2.5-VL's base weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmreason.errors import ResumeError
from mmreason.run_records import RunFolder, to_plain, write_atomically

MANIFEST = "manifest.json"
#: What else a run remembers, see `SealedCheckpoints.extra_state`; only where there is something.
EXTRA_STATE = "run_state.json"
_FORMAT = 1
_HASH_BLOCK_BYTES = 1 << 22

#: Options that may differ when a run is continued: they change neither rollouts nor updates. Everything else
#: must be equal.
FREE_OPTIONS = (
    "name",
    "out",
    "resume",
    "source",
    "about",
    "size",
    "sft",
    "curriculum.phase",
    "reward.max_failure_share",
    "reward.workers",
    "reward.worker_memory_mb",
    "reward.concurrency",
    "reward.deadline_s",
    "reward.batch_deadline_s",
    "reward.zero_alarm_steps",
    "data.on_bad_row",
    "trainer.steps",
    "trainer.save_every_steps",
    "trainer.keep_checkpoints",
    "trainer.eval_every_steps",
    "trainer.eval_rows",
    "trainer.eval_batch_size",
    "trainer.num_threads",
    "trainer.report_to",
    "trainer.save_rollouts",
)
#: Schedules whose learning rate at a step does not depend on the number of steps.
_OPEN_ENDED_SCHEDULES = ("constant", "constant_with_warmup")


# ---------------------------------------------------------------------- writing


def seal(folder: Path, step: int, weights: str | None, config: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder, last of all, and flush everything to disk.

    Args:
        folder: where the trainer has written the checkpoint.
        step: optimizer steps done.
        weights: `weights_digest` of the model, or `None` for engines that shard the weights.
        config: the run's configuration as plain data.
    """
    files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        _flush_to_disk(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
    manifest = {
        "format": _FORMAT,
        "step": step,
        "weights": weights,
        "config": to_plain(config),
        "files": files,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _flush_to_disk(folder)


def publish(staged: Path, final: Path) -> None:
    """Move a sealed checkpoint to its name in one rename; an older one of that name is replaced."""
    if final.exists():
        shutil.rmtree(final)
    staged.replace(final)
    _flush_to_disk(final.parent)


def prune(run: RunFolder, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in run.checkpoints()[:-keep]:
        shutil.rmtree(folder)


def drop_later(run: RunFolder, step: int) -> None:
    """Remove the checkpoints of steps after `step`, from which the run continues.

    They belong to a future that will not come, or are damaged; kept, they would count as the newest ones in `prune`.
    """
    for folder in run.checkpoints():
        if int(folder.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(folder)


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and saved buffer, in a fixed order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


# ---------------------------------------------------------------------- finding


def problem_with(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or `None` if every file is as it was written."""
    try:
        manifest = read_manifest(folder)
    except ResumeError as error:
        return str(error)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if file_digest(path) != expected["sha256"]:
            return f"{name} is not what was written (SHA-256 differs)"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; `ResumeError` if there is none or it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ResumeError(f"{folder} has no {MANIFEST}: it was not finished, or was not written by mmreason")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResumeError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or not {"format", "step", "files", "config"} <= manifest.keys():
        raise ResumeError(f"{path} is not a manifest of mmreason")
    if manifest["format"] != _FORMAT:
        raise ResumeError(f"{path} has format {manifest['format']}, this version reads {_FORMAT}")
    return manifest


def newest_complete(run: RunFolder, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that is whole; each damaged one that is passed over is said."""
    for folder in reversed(run.checkpoints()):
        problem = problem_with(folder)
        if problem is None:
            return folder
        say(f"checkpoint {folder} is passed over: {problem}")
    return None


def find_checkpoint(resume: str, run: RunFolder, say: Callable[[str], None] = print) -> Path | None:
    """The folder that `resume=none|auto|PATH` means; `None` starts from the beginning.

    Raises:
        ResumeError: `PATH` is no folder or is damaged, or `auto` finds checkpoints of which none is whole.
    """
    if resume == "none":
        return None
    if resume == "auto":
        found = newest_complete(run, say)
        if found is None and run.checkpoints():
            raise ResumeError(
                f"no checkpoint in {run.path} is whole. Start again under another name, or remove the folder."
            )
        return found
    folder = Path(resume)
    if not folder.is_dir():
        raise ResumeError(f"resume={resume}: there is no such folder. Give a checkpoint folder, or resume=auto.")
    problem = problem_with(folder)
    if problem is not None:
        raise ResumeError(f"resume={resume}: {problem}. Give an older one, or resume=auto for the newest whole one.")
    return folder


# ---------------------------------------------------------------------- same run?


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Refuse to continue under a configuration that would have led elsewhere.

    Args:
        saved: plain configuration in the checkpoint.
        now: plain configuration of this run.
        step: steps the checkpoint has done.

    Raises:
        ResumeError: names every option that differs, with both values.
    """
    old, new = dict(_flatten(to_plain(saved))), dict(_flatten(to_plain(now)))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not _is_free(key)]
    steps = "trainer.steps"
    if old.get(steps) != new.get(steps):
        if new["trainer.lr_schedule"] not in _OPEN_ENDED_SCHEDULES:
            differing.append(steps)
        elif new[steps] < step:
            raise ResumeError(
                f"the checkpoint has done {step} steps, more than trainer.steps={new[steps]}. Ask for more."
            )
    if differing:
        lines = "\n".join(f"  {key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now" for key in differing)
        raise ResumeError(
            f"this run cannot continue the checkpoint: these options change what it computes:\n{lines}\n"
            "Set them back, or begin a new run with the checkpoint's weights: model=<checkpoint> name=<new>."
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_OPTIONS)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


# ---------------------------------------------------------------------- loading


def load_weights(model: Any, folder: Path) -> None:
    """Load a checkpoint's weights into `model`, in place: every tensor must be there and must be known.

    Args:
        model: a transformers model, or a PEFT model, of which only the adapters are in the checkpoint.
        folder: the checkpoint.

    Raises:
        ResumeError: the weights do not fit the model, or are not those that were saved.
    """
    try:
        if hasattr(model, "peft_config"):
            _load_adapters(model, folder)
        else:
            # from_pretrained knows the names under which each family's weights are stored; load_state_dict
            # does not.
            saved = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True, use_safetensors=True)
            model.load_state_dict(saved.state_dict(), strict=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ResumeError(f"the weights in {folder} do not fit the model: {error}") from error
    expected = read_manifest(folder)["weights"]
    if expected is not None and weights_digest(model) != expected:
        raise ResumeError(
            f"after loading {folder} the model's weights are not those that were saved (digests differ). "
            "Is model.name still the model that the run began with?"
        )


def read_extra_state(folder: Path) -> dict[str, Any]:
    """The `extra_state` of a checkpoint; empty if it has none. Raises `ResumeError` if it cannot be read."""
    path = folder / EXTRA_STATE
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResumeError(f"{path} is damaged: {error}") from error
    if not isinstance(state, dict):
        raise ResumeError(f"{path} is no JSON object")
    return state


class SealedCheckpoints:
    """Mixin for a transformers `Trainer`: checkpoints are sealed, published in one rename, loaded strictly.

    The trainer sets the three attributes before its own `__init__` ends, and inherits from this class first.

    Attributes:
        folder: the run folder.
        keep_checkpoints: older ones are removed.
        identity: the run's configuration as plain data, kept in the manifest for `check_same_run`.
    """

    folder: RunFolder
    keep_checkpoints: int
    identity: Mapping[str, Any]
    _staging: Path | None = None

    def extra_state(self) -> Mapping[str, Any]:
        """What the run remembers beside weights, optimizer and random states, as JSON can hold it; of the main process."""
        return {}

    def _get_output_dir(self, trial: Any) -> str:
        """Why: a checkpoint is written aside, so that no half of one ever has a checkpoint's name."""
        return str(self._staging or super()._get_output_dir(trial))  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Why: seal the checkpoint with a manifest and publish it in one rename."""
        trainer: Any = self
        name = f"checkpoint-{trainer.state.global_step}"
        staging = self.folder.path / ".saving"
        if trainer.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._staging = None
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            # A pickle of the arguments that nothing reads; the manifest holds the configuration.
            (staging / name / "training_args.bin").unlink(missing_ok=True)
            if extra := {name: state for name, state in self.extra_state().items() if state}:
                write_atomically(staging / name / EXTRA_STATE, json.dumps(extra).encode())
            digest = None if self._engine_shards_weights else weights_digest(trainer.model)
            seal(staging / name, trainer.state.global_step, digest, self.identity)
            publish(staging / name, self.folder.path / name)
            shutil.rmtree(staging)
            prune(self.folder, self.keep_checkpoints)
        trainer.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Why: the stock loader is lenient and leaves a full-weight Qwen2.5-VL at its base weights."""
        if self._engine_shards_weights:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            load_weights(model or self.model, Path(resume_from_checkpoint))  # type: ignore[attr-defined]

    @property
    def _engine_shards_weights(self) -> bool:
        trainer: Any = self
        return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def _load_adapters(model: Any, folder: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    for adapter in model.peft_config:
        source = folder if adapter == "default" else folder / adapter
        weights = load_peft_weights(str(source), device="cpu")
        result = set_peft_model_state_dict(model, weights, adapter_name=adapter)
        if result.unexpected_keys:
            raise ResumeError(f"{source}: unknown adapter weights {sorted(result.unexpected_keys)[:3]}")


# ---------------------------------------------------------------------- random states


@dataclass(frozen=True)
class RandomStates:
    """Where Python's, numpy's and torch's global generators stand."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def capture(cls) -> RandomStates:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever draws random numbers inside leaves no trace outside."""
    states = RandomStates.capture()
    try:
        yield
    finally:
        states.restore()


# ---------------------------------------------------------------------- files


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
