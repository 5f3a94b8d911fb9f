"""What all commands read their words with: a parser, types of options, files that must be there.

What enters: words of the command line. What leaves: parsed words, or `ConfigError` with what was meant. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mmreason.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals look like every other refusal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().strip()}")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace | None:
    """Parsed words, or `None` when help was asked for (and printed)."""
    if any(word in ("-h", "--help") for word in words):
        parser.print_help()
        return None
    return parser.parse_intermixed_args(words)


def verb(command: str, verbs: Mapping[str, Callable[[list[str]], int]], words: list[str]) -> int:
    """Run the verb that the first word names, such as `list` of `mmreason tool list`; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: mmreason {command} {{{','.join(verbs)}}} …\n\nMore: mmreason {command} VERB --help")
        return 0 if words else ConfigError.exit_code
    if words[0] not in verbs:
        raise ConfigError(
            f"mmreason {command}: no '{words[0]}'.{near(words[0], list(verbs))} Known: {', '.join(verbs)}."
        )
    return verbs[words[0]](words[1:])


def near(word: str, known: list[str]) -> str:
    """` Did you mean 'x'?` for a word that is like a known one, else nothing."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def must_be_file(path: Path) -> None:
    """Refuse a path that is no file; names the nearest one."""
    if not path.is_file():
        hint = near(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such file.{hint}")


def folder_names(place: Path) -> list[str]:
    """Folders in a folder, if that exists."""
    return [item.name for item in place.iterdir() if item.is_dir()] if place.is_dir() else []


def positive(text: str) -> int:
    """A whole number from 1."""
    return at_least(text, 1)


def seed(text: str) -> int:
    """A whole number from 0."""
    return at_least(text, 0)


def temperature(text: str) -> float:
    """A number from 0 to 10."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 10.0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 10")
    return value


def at_least(text: str, lowest: int) -> int:
    if not text.isdecimal() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number ≥ {lowest}")
    return int(text)


def add_tool_files(parser: argparse.ArgumentParser) -> None:
    """Add `--file FILE.py`, for tools of the user's own."""
    text = "Python file with tools of your own; may be given more than once"
    parser.add_argument("--file", "--files", action="append", default=[], metavar="FILE.py", help=text)
