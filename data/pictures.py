"""Varied undistorted pictures for tasks that ask about the picture itself: scenes, textures, landscapes, mosaics.

What enters: a random generator and a size. What leaves: an RGB picture with fine detail, edges, colour and the full range from
dark to bright, so that every loss of quality shows.

Legend of shapes: H, W sides in pixels; fields are `[H, W]`, colours `[3]` or `[H, W, 3]`, 0 to 1 before the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmreason.data.scenes import SceneOptions, draw_scene

Field = NDArray[np.floating[Any]]

#: Share of the pixels at either end of the range that may be cut off by stretching it.
_CUT = 0.005


def _grid(width: int, height: int) -> tuple[Field, Field]:
    """Coordinates 0..1 of every pixel: x and y, each `[H, W]`."""
    y, x = np.mgrid[0:height, 0:width]
    return x / (width - 1), y / (height - 1)


def rough(rng: np.random.Generator, width: int, height: int, slope: float) -> Field:
    """A random field `[H, W]`, 0 to 1, whose amplitude falls with frequency as `f ** -slope`, as in photographs."""
    spectrum = np.fft.rfft2(rng.normal(size=(height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / frequency**slope, s=(height, width))
    return np.asarray((field - field.min()) / np.ptp(field))


def _full_range(colors: Field) -> Image.Image:
    """8 bits, darkest part black and brightest white."""
    low, high = np.quantile(colors, (_CUT, 1.0 - _CUT))
    stretched = (colors - low) / max(float(high - low), 1e-6)
    return Image.fromarray((np.clip(stretched, 0.0, 1.0) * 255).round().astype(np.uint8))


def _two_colors(rng: np.random.Generator) -> tuple[Field, Field]:
    """A dark and a bright colour."""
    return rng.uniform(0.0, 0.45, 3), rng.uniform(0.55, 1.0, 3)


def _blend(share: Field, first: Field, second: Field) -> Field:
    """From `first` (share 0) to `second` (share 1)."""
    return np.asarray(first + share[..., None] * (second - first))


def scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes on a grainy background."""
    # Drawn larger, so that its edges are sharp at the size asked for.
    side = 2 * max(width, height)
    drawn = draw_scene(rng, SceneOptions(difficulty=2, side_px=(side, side))).image.resize((width, height))
    colors = np.asarray(drawn, np.float64) / 255
    return _full_range(colors + 0.12 * (rough(rng, width, height, 0.6)[..., None] - 0.5))


def texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Crossing waves, sharpened into stripes and checks, between two colours."""
    x, y = _grid(width, height)
    field = np.zeros_like(x)
    for _ in range(3):
        angle, periods = rng.uniform(0, np.pi), rng.uniform(4, 14)
        field += np.sin(2 * np.pi * periods * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6.3))
    share = 0.5 + 0.5 * np.tanh(rng.uniform(1, 6) * field)
    colors = _blend(share, *_two_colors(rng))
    return _full_range(colors + 0.35 * (rough(rng, width, height, 0.9)[..., None] - 0.5))


def landscape(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A sky with clouds and a sun, ridges in haze, grainy ground: what a photograph's statistics look like."""
    x, y = _grid(width, height)
    low, high = np.array([0.95, 0.85, 0.75]) * rng.uniform(0.8, 1.0, 3), np.array([0.2, 0.45, 0.85])
    colors = _blend(np.clip(1.0 - y / 0.7, 0, 1), low, high)
    clouds = np.clip(3.0 * (rough(rng, width, height, 1.6) - 0.55), 0, 1) * np.clip(1.2 - y, 0, 1)
    colors = colors + clouds[..., None] * (np.array([1.0, 1.0, 1.0]) - colors)
    sun = np.hypot(x - rng.uniform(0.1, 0.9), (y - rng.uniform(0.08, 0.3)) * height / width)
    colors = np.where((sun < rng.uniform(0.05, 0.09))[..., None], np.array([1.0, 0.95, 0.6]), colors)
    ridges = int(rng.integers(2, 5))
    for number in range(ridges):
        line = rough(rng, width, 8, 1.4)[0] * 0.3 + 0.3 + 0.45 * number / ridges
        near = (number + 1) / ridges
        tone = np.array([0.55, 0.65, 0.75]) * (1 - near) + rng.uniform(0.05, 0.35, 3) * near
        grain = (rough(rng, width, height, 0.8) - 0.5) * 0.5 * near
        colors = np.where((y > line[None, :])[..., None], tone + grain[..., None], colors)
    return _full_range(colors)


def mosaic(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Tiles of many colours with dark joints, each tile shaded."""
    x, y = _grid(width, height)
    points = rng.uniform(0, 1, size=(int(rng.integers(14, 40)), 2))
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    nearest = distance.argmin(axis=2)
    first, second = np.partition(distance, 1, axis=2)[..., :2].transpose(2, 0, 1)
    colors = rng.uniform(0.1, 1.0, size=(len(points), 3))[nearest]
    shade = 0.6 + 0.4 * rough(rng, width, height, 1.2)
    joint = np.clip((second - first) / 0.02, 0.0, 1.0)
    return _full_range(colors * (shade * joint)[..., None])


#: Name -> maker, from the simplest to the most varied.
PICTURES: Mapping[str, Callable[[np.random.Generator, int, int], Image.Image]] = {
    "scene": scene,
    "texture": texture,
    "landscape": landscape,
    "mosaic": mosaic,
}
