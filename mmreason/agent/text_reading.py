"""Engines that read text off pictures: one interface, and a registry of those that are installed.

What enters: an RGB picture. What leaves: pieces of text, each with its box in pixels of the picture. Nothing is downloaded: an engine that lacks its
models is not installed. Plug-in packages add engines by the entry points `mmreason.tools`, users by `agent.files`.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from mmreason.errors import PluginError
from mmreason.registry import Registry

#: Tesseract was made for scans: smaller pictures are enlarged for it.
_TESSERACT_SIDE_PX = 1000
#: Below it, a piece of text is taken for noise.
_MIN_CONFIDENCE = 0.3


@dataclass(frozen=True, slots=True)
class FoundText:
    """A piece of text on a picture.

    Attributes:
        text: one word or one line.
        box: `(x1, y1, x2, y2)` in pixels of the picture.
        confidence: 0..1.
    """

    text: str
    box: tuple[float, float, float, float]
    confidence: float = 1.0


class TextReader(Protocol):
    """An engine."""

    def read(self, image: Image.Image) -> Sequence[FoundText]:
        """All text on an RGB picture, in reading order."""
        ...


@dataclass(frozen=True)
class ReaderSpec:
    """A registered engine.

    Attributes:
        name: of the engine.
        make: makes it; called once in a process.
        is_installed: whether it can be made here.
        how_to_install: for people who have none.
        rank: of those installed, the one with the lowest is used.
    """

    name: str
    make: Callable[[], TextReader]
    is_installed: Callable[[], bool]
    how_to_install: str
    rank: int


#: Engines come in by the same doors as tools.
TEXT_READERS: Registry[ReaderSpec] = Registry("text reader", "mmreason.tools.builtin", "mmreason.tools")
ReaderT = TypeVar("ReaderT", bound=Callable[[], TextReader])


def text_reader(
    name: str, is_installed: Callable[[], bool] = lambda: True, how_to_install: str = "", rank: int = 0
) -> Callable[[ReaderT], ReaderT]:
    """Register a class, or a function without arguments, that makes an engine; built-in ones have rank 10 and above."""

    def register(make: ReaderT) -> ReaderT:
        TEXT_READERS.add(name, ReaderSpec(name, make, is_installed, how_to_install, rank))
        return make

    return register


def chosen_reader() -> ReaderSpec:
    """The engine that is used here, not yet made; raises `PluginError` that says how to get one."""
    installed = sorted((spec.rank, name) for name, spec in TEXT_READERS if spec.is_installed())
    if not installed:
        ways = [f"{name}: {spec.how_to_install}" for name, spec in TEXT_READERS if spec.how_to_install]
        raise PluginError(f"no engine that reads text is installed. {'; '.join(ways)}.")
    return TEXT_READERS.get(installed[0][1])


@lru_cache(maxsize=8)
def made_reader(spec: ReaderSpec) -> TextReader:
    """An engine, made once in a process; raises what making it raises."""
    return spec.make()


def read_pieces(spec: ReaderSpec, image: Image.Image) -> list[FoundText]:
    """What an engine reads on an RGB picture, without what it is not sure of; raises what the engine raises."""
    found = made_reader(spec).read(image)
    return [one for one in found if one.confidence >= _MIN_CONFIDENCE and one.text.strip()]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# ---------------------------------------------------------------------- engines


@text_reader(
    "tesseract",
    lambda: _has("pytesseract") and shutil.which("tesseract") is not None,
    "pip install pytesseract, and the program tesseract of your system",
    rank=10,
)
class Tesseract:
    """Tesseract through pytesseract."""

    def read(self, image: Image.Image) -> Sequence[FoundText]:
        """Lines of text."""
        engine: Any = importlib.import_module("pytesseract")
        scale = max(1.0, _TESSERACT_SIDE_PX / max(image.size))
        larger = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return tesseract_lines(engine.image_to_data(larger, output_type=engine.Output.DICT), scale)


def tesseract_lines(table: Mapping[str, Sequence[Any]], scale: float) -> list[FoundText]:
    """Lines made of the table of words that Tesseract returns.

    Args:
        table: columns `block_num, par_num, line_num, left, top, width, height, conf, text`, one entry a word.
        scale: by which the picture was enlarged.
    """
    lines: dict[tuple[int, int, int], list[int]] = {}
    for index, word in enumerate(table["text"]):
        if str(word).strip() and float(table["conf"][index]) >= 0:
            place = (table["block_num"][index], table["par_num"][index], table["line_num"][index])
            lines.setdefault(place, []).append(index)
    found = []
    for words in lines.values():
        left = min(table["left"][index] for index in words)
        top = min(table["top"][index] for index in words)
        right = max(table["left"][index] + table["width"][index] for index in words)
        bottom = max(table["top"][index] + table["height"][index] for index in words)
        confidence = sum(float(table["conf"][index]) for index in words) / (100.0 * len(words))
        text = " ".join(str(table["text"][index]).strip() for index in words)
        found.append(FoundText(text, (left / scale, top / scale, right / scale, bottom / scale), confidence))
    return found


def _easyocr_has_models() -> bool:
    """EasyOCR downloads its models when it is first used, which is not done in a training."""
    return _has("easyocr") and any((Path.home() / ".EasyOCR" / "model").glob("*.pth"))


@text_reader("easyocr", _easyocr_has_models, "pip install easyocr, and run it once so that it gets its models", rank=20)
class EasyOcr:
    """EasyOCR, English."""

    def __init__(self) -> None:
        engine: Any = importlib.import_module("easyocr")
        self._reader = engine.Reader(["en"], gpu=False, download_enabled=False, verbose=False)

    def read(self, image: Image.Image) -> Sequence[FoundText]:
        """Lines of text."""
        import numpy as np

        found = []
        for corners, text, confidence in self._reader.readtext(np.asarray(image)):
            xs, ys = [float(x) for x, _ in corners], [float(y) for _, y in corners]
            found.append(FoundText(str(text), (min(xs), min(ys), max(xs), max(ys)), float(confidence)))
        return found
