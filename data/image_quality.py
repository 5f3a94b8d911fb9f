"""Task `image_quality`: how good is the picture, from 1 (worst) to 5 (best), after a distortion of known strength.

What enters: a seed, an index and `ImageQualityOptions`. What leaves: a picture and its score `5 - 4 s`, where `s` is the strength
of its distortion on a grid from 0 to 1. Scores order the pictures of one kind of distortion exactly; that equal strengths of two
kinds look equally bad is a matter of the scales below. `mmreason.rank_correlation` compares an evaluation with them.

After VisualQuality-R1 (arXiv 2505.14460), whose data carry human scores; here nobody was asked. Pictures: `mmreason.data.pictures`.

Legend of shapes: pictures as arrays are `[H, W, 3]`, 8 bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.pictures import PICTURES
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Pixels = NDArray[np.uint8]
Distortion = Literal["blur", "noise", "blocks", "jpeg", "dark", "gray"]

#: Side of a cell that may lose its detail.
CELL_PX = 8


def _blur(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigmaX=0.4 + 4.6 * strength), np.uint8)


def _noise(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    noisy = pixels + rng.normal(0.0, 80.0 * strength, pixels.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8)


def _blocks(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """A share of the cells of a grid, taken at random, show nothing but their mean colour: what a bad transmission leaves."""
    height, width = pixels.shape[:2]
    columns = -(-width // CELL_PX)
    order = rng.permutation(columns * -(-height // CELL_PX))
    result = pixels.copy()
    for number in order[: round(strength * len(order))]:
        y, x = (CELL_PX * int(part) for part in divmod(number, columns))
        cell = result[y : y + CELL_PX, x : x + CELL_PX]
        cell[:] = cell.mean(axis=(0, 1)).round()
    return result


def _jpeg(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """JPEG whose quantisation grows thirtyfold; set by table, because the usual quality from 1 to 100 is too coarse."""
    down, right = np.mgrid[0:8, 0:8]
    table = np.clip((1.5 * 30.0**strength * (2 + down + right)).round(), 1, 255).astype(int).ravel().tolist()
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format="JPEG", qtables=[table, table], subsampling=2)
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"), np.uint8)


def _dark(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return (pixels * (1.0 - 0.9 * strength)).round().astype(np.uint8)


def _gray(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Contrast and colour fade into a middle gray."""
    return (128.0 + (pixels - 128.0) * (1.0 - 0.92 * strength)).round().astype(np.uint8)


#: From the first to the last in the order in which the dial adds them.
DISTORTIONS: Mapping[Distortion, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "dark": _dark,
    "blocks": _blocks,
    "gray": _gray,
    "jpeg": _jpeg,
}


class ImageQualityOptions(TaskOptions):
    """Which distortions, and how finely graded. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: kinds, grades, pictures, two kinds at once")
    distortions: tuple[Distortion, ...] | None = Field(None, description="kinds in play; null = by difficulty")
    grades: int | None = Field(None, ge=2, le=41, description="steps of the scale; null = by difficulty")
    datasets: Literal["one", "by_picture"] = Field(
        "one",
        description="name of a row's data set: the task's, or one for each kind of picture (rewards that compare stay inside one)",
    )
    side_px: tuple[int, int] = Field((98, 126), description="least and greatest side of the picture in pixels")

    @property
    def kinds(self) -> tuple[Distortion, ...]:
        return self.distortions or tuple(DISTORTIONS)[: (2, 3, 6, 6)[self.difficulty]]

    @property
    def num_grades(self) -> int:
        return self.grades or (5, 9, 21, 21)[self.difficulty]

    @property
    def pictures(self) -> tuple[str, ...]:
        return tuple(PICTURES)[: (2, 3, 4, 4)[self.difficulty]]

    def check(self) -> str | None:
        if self.distortions is not None and (
            not self.distortions or len(set(self.distortions)) < len(self.distortions)
        ):
            return f"distortions={list(self.distortions)}: name at least one kind, each once"
        if not 84 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 84 <= least <= greatest <= 2048"
        return None


def distort(image: Image.Image, kind: Distortion, strength: float, rng: np.random.Generator) -> Image.Image:
    """The picture after one distortion.

    Args:
        image: any mode; the result is RGB.
        kind: one of `DISTORTIONS`.
        strength: 0 (unchanged) to 1 (worst).
        rng: for noise.
    """
    pixels = np.asarray(image.convert("RGB"), np.uint8)
    return Image.fromarray(DISTORTIONS[kind](pixels, strength, rng) if strength > 0 else pixels)


@task("image_quality")
class ImageQuality(Task[ImageQualityOptions]):
    """Rate a picture.

    Score: closeness of the number; a row is correct above 0.7, about half a point away. Styles: `direct`, `look` (names the
    distortion and its strength in percent, then answers).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "numeric"
    metric_options: ClassVar[Mapping[str, Any]] = {"measure": "closeness"}
    correct_at: ClassVar[float] = 0.7

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return ImageQualityOptions

    @property
    def datasets(self) -> tuple[str, ...]:
        if self.options.datasets == "one":
            return (self.name,)
        return tuple(f"{self.name}/{picture}" for picture in self.options.pictures)

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        pictures = self.options.pictures
        picture = pictures[int(rng.integers(len(pictures)))]
        width, height = (int(v) for v in rng.integers(self.options.side_px[0], self.options.side_px[1] + 1, size=2))
        image = PICTURES[picture](rng, width, height)
        found = self._strengths(rng)
        for kind, strength in found.items():
            image = distort(image, kind, strength, rng)
        score = score_of(found)
        question = "Rate the picture from 1.00 to 5.00."
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
            images=(image,),
            target={"score": score, "answer": f"{score:.2f}"},
            dataset=self.name if self.options.datasets == "one" else f"{self.name}/{picture}",
            columns={"picture": picture, "distortions": found},
        )

    def _strengths(self, rng: np.random.Generator) -> dict[Distortion, float]:
        """One kind, or at the highest difficulty also two, with strengths on the grid."""
        kinds, steps = self.options.kinds, self.options.num_grades - 1
        two = self.options.difficulty == 3 and len(kinds) > 1 and rng.random() < 0.4
        chosen = rng.choice(len(kinds), size=2 if two else 1, replace=False)
        return {kinds[int(i)]: int(rng.integers(steps + 1)) / steps for i in chosen}

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        told = (
            ", ".join(f"{kind} {round(100 * s)}" for kind, s in row.columns["distortions"].items() if s > 0) or "none"
        )
        return f"<think>{told if style == 'look' else ''}</think><answer>{row.target['answer']}</answer>"


def score_of(strengths: Mapping[Distortion, float]) -> float:
    """`1 + 4 Π (1 - s)`, on two decimals: 5 for an undistorted picture, 1 for one at full strength."""
    kept = 1.0
    for strength in strengths.values():
        kept *= 1.0 - strength
    return round(1.0 + 4.0 * kept, 2)
