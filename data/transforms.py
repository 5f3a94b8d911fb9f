"""Changes of a picture that leave its question standing: masked patches, noise, blur, crops.

What enters: a picture as its author gave it (before the model's resize), numbers, and a random generator; or a row and an
`AugmentConfig`. What leaves: a new picture, or a new row with its boxes moved along; what was given is never changed. Equal
generator states give equal pictures.

Legend of shapes: W, H sides of the picture in pixels; N boxes `[x1, y1, x2, y2]` in pixels of the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmreason.config.schema import AugmentConfig
from mmreason.errors import ConfigError
from mmreason.prompt_boxes import BOXES_PART
from mmreason.records import Row

#: `(left, top, right, bottom)` in whole pixels, as `Image.crop` takes it.
Region = tuple[int, int, int, int]

#: Keys of a target that a crop can keep true: boxes it moves; labels and scores say nothing about places.
_CROP_KEEPS = frozenset({"boxes", "labels", "score"})


def mask_patches(image: Image.Image, probability: float, patch_px: int, rng: np.random.Generator) -> Image.Image:
    """Blacken each cell of a grid with the same probability, on its own (PAPO, arXiv 2507.06448).

    The grid starts at the upper left corner; the cells that the right and lower edges cut are cells like the others. The size
    stays, and with it the number of the model's image tokens.

    Args:
        image: any mode; the result is RGB, or RGBA with the same transparency if the picture has any.
        probability: of each cell, 0 to 1: not the exact share that is masked.
        patch_px: side of a cell in pixels, at least 1.
        rng: one number is drawn a cell, row by row.

    Raises:
        ValueError: a number out of range.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability={probability}: a cell's probability to be masked lies between 0 and 1")
    if patch_px < 1:
        raise ValueError(f"patch_px={patch_px}: a cell has at least one pixel a side")
    width, height = image.size
    cells = rng.random((-(-height // patch_px), -(-width // patch_px))) < probability
    masked = cells.repeat(patch_px, axis=0).repeat(patch_px, axis=1)[:height, :width]
    pixels = _pixels(image)
    pixels[masked, :3] = 0
    return Image.fromarray(pixels)


def gaussian_noise(image: Image.Image, std: float, rng: np.random.Generator) -> Image.Image:
    """Add noise of a standard deviation in 8-bit steps to every colour of every pixel; modes as in `mask_patches`.

    Raises:
        ValueError: a negative deviation.
    """
    if std < 0:
        raise ValueError(f"std={std}: a standard deviation is not negative")
    pixels = _pixels(image)
    noisy = pixels[..., :3] + rng.normal(0.0, std, (*pixels.shape[:2], 3))
    pixels[..., :3] = np.clip(noisy.round(), 0, 255)
    return Image.fromarray(pixels)


def gaussian_blur(image: Image.Image, radius_px: float) -> Image.Image:
    """Blur with a bell of this standard deviation in pixels; modes as in `mask_patches`.

    Raises:
        ValueError: a negative radius.
    """
    if radius_px < 0:
        raise ValueError(f"radius_px={radius_px}: a radius is not negative")
    pixels = _pixels(image)
    if radius_px > 0:
        pixels[..., :3] = cv2.GaussianBlur(np.ascontiguousarray(pixels[..., :3]), (0, 0), sigmaX=radius_px)
    return Image.fromarray(pixels)


def crop_region(
    size: tuple[int, int], least_share: float, boxes: Sequence[Sequence[float]], rng: np.random.Generator
) -> Region:
    """A random part of a picture that holds every box whole.

    Args:
        size: `(W, H)`.
        least_share: least share of each side that stays, above 0 and at most 1; more stays where the boxes need it.
        boxes: `N` boxes; may be empty. What of them lies outside the picture stays outside.
        rng: four numbers are drawn.

    Returns:
        `(left, top, right, bottom)`; at least one pixel a side.

    Raises:
        ValueError: `least_share` out of range.
    """
    if not 0.0 < least_share <= 1.0:
        raise ValueError(f"least_share={least_share}: the share of a side that stays lies above 0 and is at most 1")
    spans = []
    for axis, side in enumerate(size):
        # Without boxes every start will do.
        low = int(np.floor(np.clip(min((box[axis] for box in boxes), default=side), 0, side)))
        high = int(np.ceil(np.clip(max((box[axis + 2] for box in boxes), default=0), 0, side)))
        length = max(1, int(np.ceil(rng.uniform(least_share, 1.0) * side)), high - low)
        start = int(rng.integers(max(0, high - length), min(low, side - length) + 1))
        spans.append((start, start + length))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """A copy of the picture, `[H, W, 3]` or, with transparency, `[H, W, 4]`."""
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"), np.uint8)


# ---------------------------------------------------------------------- rows


def augment_row(row: Row, images: Sequence[Image.Image], config: AugmentConfig, rng: np.random.Generator) -> Row:
    """The row with its pictures changed as configured: crop, blur, noise, masked patches, in this order.

    Args:
        row: a training row.
        images: its pictures, opened.
        config: what is done, and how often.
        rng: of this row alone; every transform draws whether it happens, once a row.

    Returns:
        A row with pictures in memory; the same row where nothing happened.

    Raises:
        ConfigError: a transform would make the row's target wrong; says which and why.
    """
    happens = {name: rng.random() < options.probability for name, options in config.active().items()}
    if not images or not any(happens.values()):
        return row
    for name in happens:
        _refuse_breaking(name, row)
    pictures, target = list(images), row.target
    if happens.get("random_crop"):
        pictures, target = _cropped(pictures, target, config.random_crop.least_share, rng)
    if happens.get("gaussian_blur"):
        radius = rng.uniform(0.0, config.gaussian_blur.max_radius_px)
        pictures = [gaussian_blur(picture, radius) for picture in pictures]
    if happens.get("gaussian_noise"):
        std = rng.uniform(0.0, config.gaussian_noise.max_std)
        pictures = [gaussian_noise(picture, std, rng) for picture in pictures]
    if happens.get("mask_patches"):
        mask = config.mask_patches
        pictures = [mask_patches(picture, mask.share, mask.patch_px, rng) for picture in pictures]
    return dataclasses.replace(row, images=tuple(pictures), target=target)


def _refuse_breaking(name: str, row: Row) -> None:
    """Raise if the transform would make the target wrong, whether or not it happens to this row."""
    if name != "random_crop":
        if "score" in row.target:
            raise ConfigError(
                f"augment.{name} cannot be used with row {row.id}: its target is a quality score, which this transform "
                f"changes. Set augment.{name}.probability=0."
            )
        return
    other = sorted(set(row.target) - _CROP_KEEPS - ({"answer"} if "score" in row.target else set()))
    written = any(
        part.get("type") == BOXES_PART
        for message in row.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
    reason = ""
    if other:
        reason = f"its target holds {', '.join(other)}, which may be about what is cut off"
    elif "boxes" in row.target and len(row.images) != 1:
        reason = f"it has boxes and {len(row.images)} images"
    elif written:
        reason = "its question holds boxes"
    if reason:
        raise ConfigError(
            f"augment.random_crop cannot be used with row {row.id}: {reason}. It is for rows with one image and boxes, or "
            "with a quality score. Set augment.random_crop.probability=0."
        )


def _cropped(
    pictures: Sequence[Image.Image], target: Mapping[str, Any], least_share: float, rng: np.random.Generator
) -> tuple[list[Image.Image], Mapping[str, Any]]:
    """Pictures cut to a random part that holds all boxes, and the target with the boxes moved along."""
    boxes = target.get("boxes", [])
    regions = [crop_region(picture.size, least_share, boxes, rng) for picture in pictures]
    cut = [picture.crop(region) for picture, region in zip(pictures, regions, strict=True)]
    if "boxes" not in target:
        return cut, target
    left, top = regions[0][:2]
    moved = [[x1 - left, y1 - top, x2 - left, y2 - top] for x1, y1, x2, y2 in boxes]
    return cut, {**target, "boxes": moved}
