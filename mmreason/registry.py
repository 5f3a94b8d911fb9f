"""One registry class for every plug-in point: rewards, tasks and (later) shapers, loss terms and tools.

A plug-in enters by a decorator (`@reward`, `@task`) or by a Python entry point, whose object is a module or
callable that runs those decorators when imported. Built-ins use the very same way in. Built-ins and what the user's
own files register are called `name`; rewards of installed packages are called `package/name`. Duplicate names fail;
an entry point that breaks is reported by name and does not stop others.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from mmreason.errors import PluginError

T = TypeVar("T")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry(Generic[T]):
    """Names to plug-ins of one kind, filled lazily from built-in modules and entry points.

    Args:
        kind: the word used in messages, e.g. `"reward"`.
        builtin_package: package whose import registers the built-ins.
        entry_point_group: entry-point group that third-party packages use, e.g. `"mmreason.rewards"`.
    """

    def __init__(self, kind: str, builtin_package: str, entry_point_group: str) -> None:
        self.kind = kind
        self.builtin_package = builtin_package
        self.entry_point_group = entry_point_group
        #: Entry points that failed to load: name -> reason.
        self.broken: dict[str, str] = {}
        self._items: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, item: T) -> None:
        """Register `item`; raises `PluginError` if the name is taken."""
        if name in self._items:
            raise PluginError(
                f"{self.kind} '{name}' is registered twice ({self._items[name]!r} and {item!r}). Rename one of them."
            )
        self._items[name] = item

    def get(self, name: str) -> T:
        """Return the plug-in called `name`; raises `PluginError` with the closest name if there is none."""
        self._load()
        if name not in self._items:
            reason = f" Its plug-in failed to load: {self.broken[name]}." if name in self.broken else ""
            raise PluginError(
                f"unknown {self.kind} '{name}'.{reason}{did_you_mean(name, self.names())} Known: {', '.join(self.names())}."
            )
        return self._items[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._load()
        return iter(sorted(self._items.items()))

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._items

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        importlib.import_module(self.builtin_package)
        for entry in entry_points(group=self.entry_point_group):
            try:
                entry.load()
            except Exception as error:  # noqa: BLE001 - a stranger's plug-in may raise anything; it is reported by name
                self.broken[entry.name] = f"{type(error).__name__}: {error}"
