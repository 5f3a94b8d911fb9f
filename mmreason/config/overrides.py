"""The command line's `key=value` words, before Hydra sees them.

What enters: the words as typed. What leaves: words in Hydra's grammar, and texts that say what is wrong with
the others. Here are the short forms `data=FILE` and `model=FOLDER_OR_HUB_ID`, the check of group choices, and
the grid of a `-m` sweep. Every other `key=value` becomes Hydra's `++key=value`, so that a wrong key reaches
the strict schema, which names all wrong keys at once and suggests the right ones.

Hydra's grammar knows no `/` in a dotted key, and rewards of plug-in packages are called `package/name`: a word such as
`reward.package/name.weight=1` becomes `++reward={package/name:{weight:1}}`, which Hydra merges alike.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mmreason.config.explain import suggest, suggest_word

#: Lists the choices of a config group; an empty list means: no such group.
GroupChoices = Callable[[str], list[str]]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: Model options that a checkpoint inherits from the run that made it.
_INHERITED = ("min_pixels", "max_pixels", "instruction")
#: The key of a plug-in's reward or shaper, or of one of its options.
_PLUGIN_KEY = re.compile(
    r"(?P<section>reward\.(?:shapers\.)?)(?P<name>[A-Za-z_]\w*/[A-Za-z_]\w*)(?P<rest>(?:\.[A-Za-z_]\w*)*)"
)
_FAMILY_GROUPS = {"qwen2_vl": "qwen2_vl_2b", "qwen2_5_vl": "qwen2_5_vl_3b", "qwen3_vl": "qwen3_vl_4b"}
#: What a group's option may be beyond the group's files.
_BEYOND_GROUPS = {
    "model": "; also a folder or a hub id ORG/NAME",
    "task": "; a plug-in's task: task.name=PACKAGE/NAME",
}
#: Hidden sizes up to this are toys: the embedded model's settings suit them.
_TINY_HIDDEN_SIZE = 512


@dataclass
class Prepared:
    """Words ready for Hydra, and what was wrong with the others."""

    words: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def prepare(words: Sequence[str], group_choices: GroupChoices, command: str = "train") -> Prepared:
    """Rewrite and check all words of one job of a command; never raises, problems are collected."""
    prepared = Prepared()
    short: list[str] = []
    plain: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "data":
            short.append(f"data.path={quote(_unquoted(value))}")
        elif equals and key.lstrip("+") == "eval.compare":
            plain.append(f"eval.compare={quote(weights_place(_unquoted(value)))}")
        elif equals and key == "model" and _is_model_place(_unquoted(value), group_choices):
            short += model_words(_unquoted(value), asked_as_trained=command != "train")
        else:
            plain.append(word)
    # Short forms first: what the user sets by its full name wins, wherever it stands.
    for word in [*short, *plain]:
        _prepare_word(word, group_choices, prepared)
    return prepared


def split_search_path(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `hydra.searchpath=[…]` out of the words: the places it names, and the other words."""
    places: list[str] = []
    others: list[str] = []
    for word in words:
        if not word.lstrip("+").startswith("hydra.searchpath="):
            others.append(word)
            continue
        try:
            value = parse(word).value()
        except ValueError:
            others.append(word)  # reported with the other words
            continue
        places += [str(place) for place in (value if isinstance(value, list) else [value])]
    return places, others


def expand_sweep(words: Sequence[str]) -> list[list[str]]:
    """The grid of a sweep: one list of words per job, the last swept key varying fastest.

    Raises:
        ValueError: a word that Hydra's grammar refuses, or a sweep that is not a list of values.
    """
    axes: list[list[str]] = []
    for word in words:
        override = parse(word)
        if not override.is_sweep_override():
            axes.append([word])
            continue
        if not override.is_discrete_sweep():
            raise ValueError(f"{word}: a grid needs single values, such as a,b,c or range(1,4)")
        key = _typed_key(word, override)
        axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    return [list(job) for job in itertools.product(*axes)]


def swept_keys(words: Sequence[str]) -> list[str]:
    """Keys that `expand_sweep` varies."""
    parsed = [(word, parse(word)) for word in words]
    return [_typed_key(word, override) for word, override in parsed if override.is_sweep_override()]


def parse(word: str) -> Override:
    """Parse one word in Hydra's grammar; raises `ValueError` with a one-line reason.

    The key of a plug-in's reward, `reward.package/name…`, is parsed as if it had a dot for the slash.
    """
    try:
        return OverridesParser.create().parse_override(word if _plugin_key(word) is None else word.replace("/", ".", 1))
    except HydraException as error:
        reason = str(error).splitlines()[0]
        if "=" not in word:
            raise ValueError(f"{word}: expected key=value, such as trainer.steps=100") from error
        raise ValueError(
            f"{word}: not in Hydra's override grammar ({reason}); quote it: {_quoted_word(word)}"
        ) from error


def quote(value: str) -> str:
    """A value as a quoted string of Hydra's grammar; `null` stays `null`."""
    if value == "null":
        return value
    # Backslashes count only in front of a quote: there, and at the end, each one is doubled.
    escaped = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"


def model_words(place: str, *, asked_as_trained: bool = True) -> list[str]:
    """Words for `model=PLACE`: the group that suits the family, the name, what a run's checkpoint inherits.

    Args:
        place: a hub id, a folder with weights, or a run folder (its `final/` is meant). A folder written by mmreason keeps the
            pixel budget and the instruction it was trained with, read from the run's `config.yaml`.
        asked_as_trained: also the form of its answers (`model.form`). `mmreason train` asks for the form that its own rewards want.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return [f"model={_group_of_hub_id(place)}", f"model.name={quote(place)}"]
    run_config = _yaml(folder / "config.yaml") or _yaml(folder.parent / "config.yaml")
    folder = Path(weights_place(place))
    words = [f"model={_group_of_folder(folder)}", f"model.name={quote(str(folder))}"]
    model = run_config.get("model")
    if isinstance(model, dict) and "command" in run_config:
        for name in (*_INHERITED, *(("form",) if asked_as_trained else ())):
            if isinstance(model.get(name), (int, str)):
                words.append(f"model.{name}={quote(str(model[name]))}")
    return words


def trained_agent(place: str) -> dict[str, Any]:
    """How a run that made a model let it call tools: `format`, `tell`, `tools`, `max_new_tokens`; empty if it is no such run.

    Nothing else of the run's `config.yaml` is taken: a stranger's could name files.
    """
    folder = Path(place).expanduser()
    run_config = _yaml(folder / "config.yaml") or _yaml(folder.parent / "config.yaml")
    agent, rollout = run_config.get("agent"), run_config.get("rollout")
    if "command" not in run_config or not isinstance(agent, dict) or not isinstance(rollout, dict):
        return {}
    tools, format_name, room = agent.get("tools"), agent.get("format"), rollout.get("max_new_tokens")
    if not (isinstance(tools, list) and tools and all(isinstance(name, str) for name in tools)):
        return {}
    if not (isinstance(format_name, str) and isinstance(agent.get("tell"), bool) and isinstance(room, int)):
        return {}
    return {"tools": tools, "format": format_name, "tell": agent["tell"], "max_new_tokens": room}


def weights_place(place: str) -> str:
    """Where the weights are: `final/` of a run folder; anything else is returned as it is (`~` expanded)."""
    folder = Path(place).expanduser()
    if (folder / "config.yaml").is_file() and (folder / "final").is_dir():
        return str(folder / "final")
    return str(folder) if folder.is_dir() else place


def _prepare_word(word: str, group_choices: GroupChoices, prepared: Prepared) -> None:
    try:
        override = parse(word)
    except ValueError as error:
        prepared.problems.append(str(error))
        return
    key = override.key_or_group
    plugin = _plugin_key(word)
    if override.is_sweep_override():
        prepared.problems.append(
            f"{word}: several values are a sweep: add -m for one job each, or write key=[a,b] for a list"
        )
    elif key == "hydra" or key.startswith(("hydra.", "hydra/")):
        prepared.problems.append(f"{word}: of Hydra's own options only hydra.searchpath is read; use out= and name=")
    elif plugin is not None and override.is_delete() and (plugin["rest"] or "=" in word):
        prepared.problems.append(f"{word}: only a whole reward can be taken out: ~{plugin['section']}{plugin['name']}")
    elif plugin is not None:
        prepared.words.append(_plugin_word(word, plugin, is_delete=override.is_delete()))
    elif override.is_delete():
        prepared.words.append(word)
    elif choices := group_choices(key):
        problem = _group_problem(key, override.value(), choices)
        if problem:
            prepared.problems.append(problem)
        else:
            prepared.words.append(word)
    elif "@" in word.partition("=")[0] or "/" in key:
        prepared.problems.append(f"{key}: there is no such config group.{suggest(key)}")
    else:
        prepared.words.append("++" + word.lstrip("+"))


def _plugin_key(word: str) -> re.Match[str] | None:
    """The parts of a key that names a plug-in's reward or shaper; `None` for any other."""
    return _PLUGIN_KEY.fullmatch(word.partition("=")[0].lstrip("+~"))


def _typed_key(word: str, override: Override) -> str:
    return word.partition("=")[0] if _plugin_key(word) is not None else override.get_key_element()


def _plugin_word(word: str, key: re.Match[str], *, is_delete: bool) -> str:
    """The same in Hydra's grammar: a mapping that is merged into the section; what is taken out becomes null."""
    value = "null" if is_delete else word.partition("=")[2]
    if not value.strip():
        value = "''"
    path = [*key["section"].split(".")[1:-1], key["name"], *key["rest"].split(".")[1:]]
    for name in reversed(path):
        value = f"{{{name}:{value}}}"
    return f"++reward={value}"


def _group_problem(group: str, value: Any, choices: list[str]) -> str:
    if value is None or (isinstance(value, str) and value in choices):
        return ""
    if isinstance(value, list) and all(item in choices for item in value):
        return ""
    near = suggest_word(str(value), choices)
    known = ", ".join(choices) + _BEYOND_GROUPS.get(group, "")
    return f"{group}={value}: no such choice.{near} Choices: {known}."


def _is_model_place(value: str, group_choices: GroupChoices) -> bool:
    if value in group_choices("model"):
        return False
    return "/" in value or value.startswith(("~", ".")) or Path(value).is_dir()


def looks_like_folder(name: str) -> bool:
    """Whether a model name can only be a folder: then a missing one is refused before any download."""
    return name.startswith(("/", "~", ".")) or ("/" in name and not _HUB_ID.fullmatch(name))


def _group_of_hub_id(hub_id: str) -> str:
    text = re.sub(r"[^a-z0-9]+", "_", hub_id.lower())
    if "qwen2_5_vl" in text:
        return "qwen2_5_vl_7b" if "_7b" in text else "qwen2_5_vl_3b"
    return next((group for family, group in _FAMILY_GROUPS.items() if family in text), "custom")


def _group_of_folder(folder: Path) -> str:
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _group_of_hub_id(str(folder.resolve()))
    if not isinstance(facts, dict):
        return "custom"
    group = _FAMILY_GROUPS.get(str(facts.get("model_type")), "custom")
    text = facts.get("text_config")
    hidden = (text if isinstance(text, dict) else facts).get("hidden_size")
    if group != "custom" and isinstance(hidden, int) and hidden <= _TINY_HIDDEN_SIZE:
        return "tiny"
    return group


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _quoted_word(word: str) -> str:
    key, _, value = word.partition("=")
    return f'"{key}={quote(_unquoted(value))}"'
