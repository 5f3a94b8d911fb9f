"""The wire formats: how calls, answers and what tools return are written.

What enters: a name from the configuration. What leaves: a `Format`, which implements `mmreason.agent.calls.WireFormat`.

    native     JSON between <tool_call> tags, results as messages of role `tool`, several calls a turn
    deepeyes   the same, one call a turn, results as a user's message
    vilasr     a line `Action: …` and a fenced JSON list: draws boxes and lines
    vrag       <search>…</search> and <bbox>…</bbox>: searches pages and crops the newest picture
"""

from __future__ import annotations

from collections.abc import Mapping

from mmreason.agent.formats.base import Format
from mmreason.agent.formats.deepeyes import DeepEyes
from mmreason.agent.formats.native import Native
from mmreason.agent.formats.vilasr import Vilasr
from mmreason.agent.formats.vrag import Vrag
from mmreason.errors import ConfigError
from mmreason.registry import did_you_mean

_CLASSES: tuple[type[Format], ...] = (Native, Vilasr, Vrag, DeepEyes)

#: Name -> the format, reading strictly.
FORMATS: Mapping[str, Format] = {made.name: made() for made in _CLASSES}


def get_format(name: str, strict: bool = True) -> Format:
    """The format called `name`.

    Args:
        name: one of `FORMATS`.
        strict: read standard JSON only; otherwise mend single quotes and trailing commas.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"unknown agent.format '{name}'.{did_you_mean(name, list(FORMATS))} Known: {', '.join(FORMATS)}."
        )
    return FORMATS[name] if strict else type(FORMATS[name])(strict=False)
