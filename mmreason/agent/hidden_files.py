"""Pages and frames that a person gives as files, for the terminal and the page.

What enters: paths of pictures, and of texts. What leaves: the pictures that tools may bring up and the texts of those that have one, by name: that of
the file without its ending. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmreason.errors import ConfigError
from mmreason.images import ImageLoader

#: Of the file with the text of a page.
TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class HiddenFiles:
    """What tools may bring up.

    Attributes:
        pictures: name -> page or frame, in the order in which they were given.
        texts: name -> text, of those that have one.
    """

    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def texts_beside(pictures: Iterable[Path]) -> list[Path]:
    """The texts that lie beside pictures, under the same names; frames have none."""
    return [text for text in (path.with_suffix(TEXT_SUFFIX) for path in pictures) if text.is_file()]


def read_hidden(pictures: Sequence[Path], texts: Sequence[Path]) -> HiddenFiles:
    """Open pages and frames.

    Args:
        pictures: files that the user named; they are opened within the usual limits.
        texts: of those that have one.

    Raises:
        ImageError: a picture is refused. ConfigError: two have one name, a text belongs to no picture or cannot be read.
    """
    names = [path.stem for path in pictures]
    if len(set(names)) < len(names):
        raise ConfigError(
            "hidden pictures: two files have the same name; a page or frame is known by the name of its file"
        )
    written: dict[str, str] = {}
    for path in texts:
        if path.stem not in names:
            raise ConfigError(f"{path.name}: belongs to no picture; the text of page.png is page{TEXT_SUFFIX}")
        try:
            written[path.stem] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path.name}: the text of a page cannot be read: {error}") from None
    return HiddenFiles({path.stem: open_picture(path) for path in pictures}, written)


def sorted_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures and texts among files that were given together, each in their order."""
    files = list(paths)
    return (
        [path for path in files if path.suffix.lower() != TEXT_SUFFIX],
        [path for path in files if path.suffix.lower() == TEXT_SUFFIX],
    )


def open_picture(path: Path) -> Image.Image:
    """A picture that the user named, within the usual limits; raises `ImageError`."""
    return ImageLoader(path.parent).open(path.name)
