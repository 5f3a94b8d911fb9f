"""What stands on the page of `mmreason agent --web` when it opens, and how many pictures it takes.

What enters: words of the command line. What leaves: the same, checked before a model is loaded. No torch, no gradio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmreason.agent.hidden_files import open_picture, read_hidden, sorted_files
from mmreason.errors import ConfigError

#: Pictures of one question, and pages and frames that tools may bring up.
MAX_PICTURES, MAX_HIDDEN = 32, 128


@dataclass(frozen=True)
class PageStart:
    """What stands on the page at first.

    Attributes:
        question: may be empty.
        images: of the question, img_0 first.
        hidden: files of pages and frames, and of the texts of pages (`.txt`).
        answer: the right one; empty = nobody knows.
        temperature, seed: of sampling.
    """

    question: str = ""
    images: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    answer: str = ""
    temperature: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what the page could not use.

        Raises:
            ConfigError: too many pictures, or pages that cannot be told apart or read. ImageError: a picture is refused.
        """
        if len(self.images) > MAX_PICTURES:
            raise ConfigError(f"--image: {len(self.images)} pictures: a question may have {MAX_PICTURES} on the page")
        for path in self.images:
            open_picture(path)
        read_hidden(*checked_count(self.hidden))


def checked_count(files: tuple[Path, ...]) -> tuple[list[Path], list[Path]]:
    """Pictures and texts among the files of pages and frames; raises `ConfigError` for too many."""
    pictures, texts = sorted_files(files)
    if len(pictures) > MAX_HIDDEN:
        raise ConfigError(f"{len(pictures)} pages and frames: the page takes {MAX_HIDDEN}")
    return pictures, texts
