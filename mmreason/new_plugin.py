"""What `mmreason reward new` and `mmreason tool new` share: names that can be used, files that overwrite nothing.

What enters: a name, a folder and the texts of a plug-in file and its test. What leaves: the two files. No torch.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmreason.errors import ConfigError
from mmreason.registry import Registry

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+\Z")


def write_new_plugin(name: str, folder: Path, plugin: str, test: str) -> tuple[Path, Path]:
    """Write a plug-in file and its test, with the name in the place of `NAME`.

    Args:
        name: of the plug-in, the function and the file.
        folder: made if it does not exist.
        plugin: text of `NAME.py`.
        test: text of `test_NAME.py`.

    Returns:
        The two files.

    Raises:
        ConfigError: one of the files exists.
    """
    files = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten. Choose another name, or --out DIR.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in zip(files, (plugin, test), strict=True):
        # "x": also a file that appears just now stays as it is.
        with path.open("x", encoding="utf-8") as file:
            file.write(template.replace("NAME", name))
    return files


def in_a_list(path: str) -> str:
    """A path as an item of a list on the command line."""
    return path if _PLAIN_PATH.match(path) else '"' + path.replace('"', '\\"') + '"'


def check_new_name(name: str, registry: Registry[Any], reserved: Collection[str], reserved_for: str) -> None:
    """Raise `ConfigError` for a name that a new plug-in cannot have.

    Args:
        name: of the plug-in, the function and the file.
        registry: the plug-ins of its kind.
        reserved: names that mean something else.
        reserved_for: what those are.
    """
    kind = registry.kind
    if keyword.iskeyword(name):
        raise ConfigError(f"'{name}' cannot be a {kind}: it is a word of Python itself; choose another name.")
    if not _NAME.match(name):
        raise ConfigError(f"'{name}' cannot be a {kind}: use a letter, then letters, digits and underscores.")
    if name in reserved:
        raise ConfigError(f"'{name}' is {reserved_for}; choose another name.")
    if name in registry:
        raise ConfigError(f"there is a {kind} '{name}' already; `mmreason {kind} list` shows it.")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"there is a Python module '{name}' already; a file of that name would hide it.")
