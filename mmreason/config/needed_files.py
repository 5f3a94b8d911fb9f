"""Files and folders that a run would need, looked for before anything is loaded.

What enters: a validated `RunConfig`. What leaves: problems as sentences. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from mmreason.config import explain
from mmreason.config.overrides import looks_like_folder
from mmreason.config.schema import RunConfig


def missing_files(config: RunConfig, coming: Collection[str]) -> list[str]:
    """Files and folders that the run would need and that are not there, nor coming."""
    problems = []
    path = config.data.path
    if path is not None and path not in coming and not Path(path).expanduser().is_file():
        problems.append(f"data.path={config.data.path}: no such file{_nearby(Path(path))}")
    if config.data.image_root is not None and not Path(config.data.image_root).expanduser().is_dir():
        problems.append(f"data.image_root={config.data.image_root}: no such folder")
    if config.resume not in ("none", "auto") and not Path(config.resume).expanduser().is_dir():
        problems.append(
            f"resume={config.resume}: no such checkpoint folder; use resume=auto for the newest of this run"
        )
    judge = config.judge.model if config.judge.kind == "local" else None
    names = {"model.name": config.model.name, "eval.compare": config.eval.compare, "judge.model": judge}
    for key, name in names.items():
        if name is None or name in coming:
            continue
        if looks_like_folder(name) and not Path(name).expanduser().is_dir():
            problems.append(f"{key}={name}: no such folder; give a folder with config.json, or a hub id ORG/NAME")
    if config.judge.api_key_env is not None and not os.environ.get(config.judge.api_key_env, "").strip():
        problems.append(
            f"judge.api_key_env={config.judge.api_key_env}: this environment variable is not set; put the endpoint's key there"
        )
    if Path(config.out).expanduser().is_file():
        problems.append(f"out={config.out}: this is a file; give a folder")
    return problems


def _nearby(path: Path) -> str:
    """` Did you mean 'x'?` for a file of a similar name in the same folder."""
    folder = path.expanduser().parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    names = [file.name for file in folder.iterdir() if file.is_file()]
    near = explain.suggest_word(path.name, names)
    return "." + near if near else ""
