"""The keys of supervised mixtures (`sft.phases`), read without torch so that a wrong one is refused before a model loads.

Enters: `task/style` or `task/style/difficulty` as written. Leaves: a `MixtureKey`, or `ConfigError` naming the tasks or styles
there are. A task of a plug-in may hold a slash of its own: `package/task/style`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmreason.config.agent_section import FORMAT_NAMES
from mmreason.config.schema import SftPhase, TaskConfig
from mmreason.data.base import MENDED_STYLE, TASKS, TOOLS_STYLE, validate_task_config
from mmreason.errors import ConfigError, MMReasonError
from mmreason.registry import did_you_mean

_KEY = re.compile(r"(?P<task>[\w./-]+?)/(?P<style>[\w-]+?)(?:/(?P<difficulty>\d))?")


@dataclass(frozen=True, slots=True)
class MixtureKey:
    """One entry of a mixture.

    Attributes:
        task: registered name.
        style: one of the task's styles.
        difficulty: preset of the task's options; `None` is the task's default.
    """

    task: str
    style: str
    difficulty: int | None = None

    @property
    def with_tools(self) -> bool:
        """It is an episode of the task's oracle."""
        return self.style.partition("-")[0] in (TOOLS_STYLE, MENDED_STYLE)

    @property
    def mended(self) -> bool:
        """It is an episode with a mistake that is mended."""
        return self.style.partition("-")[0] == MENDED_STYLE

    def format_of(self, default: str) -> str:
        """Name of the wire format of such an episode; `default` where the key names none."""
        return self.style.partition("-")[2] or default

    @property
    def config(self) -> TaskConfig:
        """The task section that builds the task."""
        options = {} if self.difficulty is None else {"difficulty": self.difficulty}
        return TaskConfig(name=self.task, **options)


def parse_mixture_key(key: str) -> MixtureKey:
    """Read one key; raises `ConfigError` (a style that is not there) or `PluginError` (a task that is not there)."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ConfigError(f"sft.phases.mixture: '{key}' is not 'task/style' or 'task/style/difficulty'")
    name, style, difficulty = match["task"], match["style"], match["difficulty"]
    task = TASKS.get(name)
    styles = task.styles
    for kind, there in ((TOOLS_STYLE, bool(task.tools)), (MENDED_STYLE, task.mends)):
        if there:
            styles = (*styles, kind, *(f"{kind}-{wire}" for wire in FORMAT_NAMES))
    if style not in styles:
        told = f"{did_you_mean(style, list(styles))} Styles: {', '.join(styles)}."
        if style.partition("-")[0] == MENDED_STYLE and not task.mends:
            mending = ", ".join(other for other, one in TASKS if one.mends)
            told = f" Mistakes that are mended are made in {mending}.{told}"
        raise ConfigError(f"sft.phases.mixture: task '{name}' has no style '{style}'.{told}")
    return MixtureKey(name, style, None if difficulty is None else int(difficulty))


def check_mixture_keys(phases: Iterable[SftPhase]) -> None:
    """Raise one `ConfigError` with every wrong key of the phases, one a line."""
    problems: dict[str, None] = {}
    for phase in phases:
        for key in phase.mixture:
            try:
                validate_task_config(parse_mixture_key(key).config)
            except MMReasonError as error:
                text = str(error)
                problems[text if "sft.phases" in text else f"sft.phases.mixture: '{key}': {text}"] = None
    if problems:
        raise ConfigError("\n".join(problems))
