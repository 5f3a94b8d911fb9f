"""The commands `mmreason tool list` and `try`.

What enters: words of the command line. What leaves: a table; or the text that a model would read, and picture files. No torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmreason.agent.arguments import signature
from mmreason.agent.calls import Call, RawOutcome
from mmreason.agent.hidden_files import open_picture, read_hidden, texts_beside
from mmreason.agent.images import ImageStore
from mmreason.agent.rendering import render
from mmreason.agent.text_reading import TEXT_READERS
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.agent.tools import TOOLS, Kind, ToolSpec, load_tool_files
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

#: Arguments whose value is text even if it looks like a number.
_TEXTS = (Kind.picture, Kind.label, Kind.text, Kind.choice)
_DEADLINE_S = 60.0


def list_tools(files: Sequence[str] = ()) -> None:
    """Print every tool with its arguments, then the engines that read text, and broken plug-ins.

    Args:
        files: Python files with tools of your own.
    """
    load_tool_files(files)
    table = Table(title="Tools", title_justify="left", show_lines=True)
    for heading in ("name", "what it does", "arguments"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for _, spec in TOOLS:
        table.add_row(escape(spec.name), escape(spec.description), escape(_arguments(spec)))
    console = Console()
    console.print(table)
    for name, reader in TEXT_READERS:
        state = "installed" if reader.is_installed() else f"not installed ({reader.how_to_install})"
        console.print(f"read_text with {name}: {escape(state)}", highlight=False)
    for name, reason in sorted(TOOLS.broken.items()):
        console.print(f"[red]plug-in that failed to load:[/red] {escape(name)}: {escape(reason)}", highlight=False)


def _arguments(spec: ToolSpec) -> str:
    lines = []
    for name, one in spec.parameters.items():
        default = "" if one.required else f" = {json.dumps(one.schema.get('default'))}"
        lines.append(f"{name}{default}: {one.schema['description']}")
    return "\n".join(lines)


def try_tool(given: argparse.Namespace) -> bool:
    """Call a tool as a model would.

    Args:
        given: `name`, `arguments` (`KEY=VALUE`), `image` and `hidden` (paths), `frame`, `file` (tools of one's own), `out`.

    Returns:
        Whether the call was carried out.

    Raises:
        ConfigError: an argument or a file cannot be read.
        ImageError: a picture is refused.
    """
    load_tool_files(given.file)
    spec = TOOLS.get(given.name)
    store, row = _store(given.image, given.hidden)
    arguments = {key: value for word in given.arguments for key, value in [_argument(spec, word)]}
    image = spec.image_parameter
    if image is not None and image not in arguments and store.ids:
        arguments[image] = store.ids[0]
    # One child process, as in a training: what works only in this process shows here.
    toolbox = Toolbox([spec.name], given.frame, files=given.file, workers=1, deadline_s=_DEADLINE_S)
    seen = seen_by(store, lambda size: ImageGeometry(size, size, 14, 2))
    outcome = toolbox.run([Job(Call(spec.name, arguments), store, row, seen)])[0]
    print(outcome.text or "(no text)" if outcome.error is None else f"{outcome.error.value}: {outcome.text}")
    if outcome.error is not None:
        print(signature(spec))
    _write(outcome, store, given.out or Path(f"{spec.name.replace('/', '_')}.png"))
    return outcome.error is None


def _write(outcome: RawOutcome, store: ImageStore, out: Path) -> None:
    for number, new in enumerate(outcome.new):
        picture = store.add(new, outcome.call.tool)
        path = out if number == 0 else out.with_name(f"{out.stem}_{number + 1}{out.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            render(picture).save(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out {path}: cannot be written: {error}") from None
        print(f"{picture.id}: {picture.size[0]} × {picture.size[1]} px, written to {path}")


def _store(images: Sequence[Path], hidden: Sequence[Path]) -> tuple[ImageStore, Row]:
    """The pictures, and the row with the texts of the pages."""
    found = read_hidden(hidden, texts_beside(hidden))
    row = Row("try", (), (), {}, columns={"pages": found.texts})
    return ImageStore([open_picture(path) for path in images], found.pictures), row


def _argument(spec: ToolSpec, word: str) -> tuple[str, Any]:
    """A name and its value: JSON, or a text as it stands."""
    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{word}: expected KEY=VALUE. {signature(spec)}")
    parameter = spec.parameters.get(key)
    if parameter is not None and parameter.kind in _TEXTS and parameter.schema.get("type") == "string":
        return key, text
    try:
        return key, json.loads(text)
    except (ValueError, RecursionError):
        return key, text
