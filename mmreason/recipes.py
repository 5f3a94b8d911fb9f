"""Recipes, listed and explained: what each is made of, published values beside those for the tiny models.

What enters: the files of `conf/recipe/`. What leaves: `Recipe` records, and the pages that are generated from them. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mmreason.config.compose import by_rows, by_size
from mmreason.errors import ConfigError
from mmreason.registry import did_you_mean

#: Where the table of all recipes is kept; `mmreason recipe table` writes it, a test compares it.
TABLE = Path("docs") / "recipes" / "README.md"
_MARK = "${by_size:"


@dataclass(frozen=True)
class Recipe:
    """One file of `conf/recipe/`.

    Attributes:
        name: as in `recipe=NAME`.
        summary: first line of the file's comment.
        source: paper or page.
        made_of: its parts.
        deviations: what differs from the source.
        groups: config group -> choice that it overrides.
        values: `(option, published, tiny)` where the two differ.
    """

    name: str
    summary: str
    source: str
    made_of: str
    deviations: tuple[str, ...]
    groups: Mapping[str, str]
    values: tuple[tuple[str, Any, Any], ...]

    @classmethod
    def read(cls, name: str, text: str) -> Recipe:
        """Read one file."""
        comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        summary = next((line for line in comments if not line.startswith("@")), "")
        plain = yaml.safe_load(text) or {}
        about = plain.get("about", {})
        groups = {
            key.removeprefix("override /"): choice
            for item in plain.get("defaults", [])
            if isinstance(item, dict)
            for key, choice in item.items()
        }
        return cls(
            name,
            summary,
            plain.get("source", ""),
            about.get("made_of", ""),
            tuple(about.get("deviations", ())),
            groups,
            tuple(_sized(plain)),
        )


def recipes() -> list[Recipe]:
    """All recipes that come with the package, by name."""
    files = [
        file for file in resources.files("mmreason.conf").joinpath("recipe").iterdir() if file.name.endswith(".yaml")
    ]
    return [
        Recipe.read(file.name.removesuffix(".yaml"), file.read_text(encoding="utf-8"))
        for file in sorted(files, key=lambda file: file.name)
    ]


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises `ConfigError` with the closest one."""
    found = {one.name: one for one in recipes()}
    if name not in found:
        raise ConfigError(f"unknown recipe '{name}'.{did_you_mean(name, list(found))} Known: {', '.join(found)}.")
    return found[name]


def _sized(node: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every option that a recipe gives two values, in the order of the file."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _sized(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and _MARK in node:
        yield path, *(_resolved(node, model) for model in ("published", "tiny"))


def _resolved(text: str, model: str) -> Any:
    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    OmegaConf.register_new_resolver("by_rows", by_rows, replace=True)
    tree = OmegaConf.create({"model": {"name": model}, "value": text})
    value = tree["value"]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def as_table(found: list[Recipe]) -> str:
    """The Markdown page of all recipes."""
    lines = [
        "# Recipes",
        "",
        "`mmreason train recipe=NAME` runs one on the embedded tiny model; `model=qwen2_5_vl_3b data=FILE.jsonl` on a real one.",
        "`mmreason recipe show NAME` prints the published values beside those for the tiny model. This page is written by",
        "`mmreason recipe table` from the files in [`conf/recipe/`](../../conf/recipe); a test compares them.",
        "",
        "Every recipe takes `data=FILE.jsonl`, but for `tiny_vlm` and `tiny_tools`, which make the embedded models. Phases and supervised stages that",
        "have generated rows of their own keep them; what that means stands with the recipe. Papers give lengths in epochs: an epoch of your file has rows /",
        "`rollout.prompts_per_step` steps (`trainer.steps`). Real models are asked for the blocks that `reward.format.tags` want (`{form}` in `model.instruction`).",
        "",
        "| recipe | source | task | made of |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| [`{one.name}`](../../conf/recipe/{one.name}.yaml) | {one.source} | {_code(one.groups.get('task', ''))} | {one.made_of or one.summary} |"
        for one in found
    ]
    for one in found:
        if not one.made_of:
            continue
        lines += ["", f"## {one.name}", "", one.summary, ""]
        lines += [f"- {text}" for text in one.deviations]
        if one.values:
            lines += ["", "| option | published | tiny |", "|---|---|---|"]
            lines += [f"| `{key}` | {_cell(published)} | {_cell(tiny)} |" for key, published, tiny in one.values]
    return "\n".join(lines) + "\n"


def as_text(one: Recipe) -> str:
    """What `mmreason recipe show` prints."""
    lines = [one.name, f"  {one.summary}", f"  source:   {one.source}", f"  made of:  {one.made_of}"]
    lines += [f"  {group + ':':<9} {choice}" for group, choice in one.groups.items()]
    if one.deviations:
        lines += ["  differs from the source:", *(f"    - {text}" for text in one.deviations)]
    if one.values:
        wide = max(len(key) for key, _, _ in one.values)
        lines += [f"  {'option':<{wide + 2}}{'published':<24}tiny"]
        lines += [f"  {key:<{wide + 2}}{_shown(published):<24}{_shown(tiny)}" for key, published, tiny in one.values]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(part)}" for key, part in value.items())
    if isinstance(value, list):
        return f"[{', '.join(_shown(part) for part in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(value: Any) -> str:
    return _shown(value).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
