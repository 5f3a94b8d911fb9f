"""Pictures that captions can be wrong about: groups of like things with colour, material, condition and place, and a sign.

What enters: a random generator and the sizes. What leaves: a `CaptionScene`: an RGB picture and its groups, each in a cell of its
own of a 2 × 2 or 3 × 3 grid, with exact boxes in the picture's own pixels. Everything that a group says of itself can be seen:

    count       one to five copies side by side            material   wooden: grain, metal: sheen, glass: see-through, stone: specks
    noun        shape or thing; no two groups share one    condition  whole, cracked: a dark jagged line, pierced: a hole
    size        of a single one, as a share of its cell    text       letters on a sign

Legend of shapes: h, w sides of one copy in pixels of the enlarged canvas.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from mmreason.data.scenes import COLORS, EASY_COLORS, EASY_SHAPES, SHAPES, SUPERSAMPLE, Point, draw_background

Box = tuple[float, float, float, float]

MATERIALS = ("wooden", "metal", "glass", "stone")
CONDITIONS = ("whole", "cracked", "pierced")
SIZES = ("small", "", "large")
SIGN = "sign"
#: Letters that differ clearly from each other when small.
LETTERS = "AEHKLMNOSTXZ"

#: Side of a group as a share of its cell, by its size word.
_SIZE_SHARE = {"small": 0.5, "": 0.7, "large": 0.9}
#: Copies in each row of a group.
_ROWS = {1: (1,), 2: (2,), 3: (1, 2), 4: (2, 2), 5: (2, 3)}


def _oval(cx: float, cy: float, rx: float, ry: float) -> list[Point]:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 64 for i in range(64)]
    xs = [16 * math.sin(a) ** 3 for a in angles]
    ys = [-13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a) for a in angles]
    return [((x + 16) / 32, (y - min(ys)) / (max(ys) - min(ys))) for x, y in zip(xs, ys, strict=True)]


#: Outlines of things in the unit square, which they fill; each is a union of polygons.
THINGS: dict[str, list[list[Point]]] = {
    "house": [[
        (0.5, 0), (1, 0.44), (0.88, 0.44), (0.88, 1), (0.6, 1), (0.6, 0.7), (0.4, 0.7), (0.4, 1), (0.12, 1), (0.12, 0.44), (0, 0.44),
    ]],
    "tree": [[
        (0.5, 0), (0.86, 0.4), (0.7, 0.4), (1, 0.78), (0.6, 0.78), (0.6, 1), (0.4, 1), (0.4, 0.78), (0, 0.78), (0.3, 0.4), (0.14, 0.4),
    ]],
    "fish": [_oval(0.38, 0.5, 0.38, 0.5), [(0.66, 0.5), (1, 0.08), (1, 0.92)]],
    "boat": [[(0.5, 0), (0.94, 0.6), (0.06, 0.6)], [(0.44, 0.5), (0.56, 0.5), (0.56, 0.75), (0.44, 0.75)], [(0, 0.7), (1, 0.7), (0.78, 1), (0.22, 1)]],
    "cup": [
        [(0, 0), (0.74, 0), (0.64, 1), (0.1, 1)],
        [(0.66, 0.14), (1, 0.14), (1, 0.7), (0.6, 0.7), (0.6, 0.56), (0.86, 0.56), (0.86, 0.28), (0.66, 0.28)],
    ],
    "heart": [_heart()],
}  # fmt: skip

#: Where a hole is cut, as a share of the box; the middle if not named.
_HOLES = {
    "triangle": (0.5, 0.66), "star": (0.5, 0.53), "house": (0.5, 0.46), "fish": (0.38, 0.5), "boat": (0.5, 0.42),
    "cup": (0.37, 0.5), "tree": (0.5, 0.56), "heart": (0.5, 0.45),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Like things in one cell of the picture.

    Attributes:
        count: number of copies. noun: a key of `SHAPES` or `THINGS`, or `SIGN`.
        material, condition, size: of every copy; a sign has none ("").
        text: letters on a sign, else "".
        cell: `(column, row)` in the grid.
        box: exact extent `(x1, y1, x2, y2)` of all copies, pixels of the picture.
    """

    count: int
    color: str
    noun: str
    cell: tuple[int, int]
    material: str = ""
    condition: str = ""
    size: str = ""
    text: str = ""
    box: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class CaptionScene:
    """A picture and its groups, row by row from the top left.

    Attributes:
        grid: number of cells a side. ground: `light` or `dark`.
    """

    image: Image.Image
    groups: tuple[Group, ...]
    grid: int
    ground: str


@dataclass(frozen=True, slots=True)
class Cast:
    """What may appear: `palette` of colours, names of shapes, most copies in a group, letters on a sign."""

    palette: tuple[str, ...]
    shapes: tuple[str, ...]
    most_copies: int
    letters: int


def cast_of(difficulty: int) -> Cast:
    """Few and clear below difficulty 2, everything from there."""
    if difficulty < 2:
        return Cast(tuple(COLORS)[:EASY_COLORS], tuple(SHAPES)[:EASY_SHAPES], 3, 3)
    return Cast(tuple(COLORS), tuple(SHAPES), 5, 4)


def draw_caption_scene(
    rng: np.random.Generator, cast: Cast, num_groups: int, with_sign: bool, side_px: tuple[int, int]
) -> CaptionScene:
    """Draw a scene with at least one shape, one thing and one group of several; a sign if asked.

    Args:
        rng: the row's generator.
        cast: what may appear.
        num_groups: 2 to 8, the sign included (then at least 3); a cell at least stays empty.
        with_sign: whether one of them is a sign.
        side_px: least and greatest side of the picture, each drawn by itself.
    """
    grid = 2 if num_groups <= 3 else 3
    width, height = (int(v) for v in rng.integers(side_px[0], side_px[1] + 1, size=2))
    groups = [_placed(rng, group, grid, (width, height)) for group in _compose(rng, cast, num_groups, with_sign, grid)]
    background = draw_background(rng, width, height)
    ground = "light" if np.asarray(background).mean() > 120 else "dark"
    canvas = background.resize((width * SUPERSAMPLE, height * SUPERSAMPLE), Image.Resampling.BILINEAR)
    for group in groups:
        draw_group(canvas, group, rng)
    ordered = sorted(groups, key=lambda group: (group.cell[1], group.cell[0]))
    return CaptionScene(canvas.reduce(SUPERSAMPLE), tuple(ordered), grid, ground)


def _compose(rng: np.random.Generator, cast: Cast, num_groups: int, with_sign: bool, grid: int) -> list[Group]:
    """Groups without boxes: nouns all different, one group of several at least."""
    drawn = num_groups - int(with_sign)
    # One shape and one thing are always left over, to be named in the place of another.
    fewest, most = max(1, drawn - len(THINGS) + 1), min(drawn - 1, len(cast.shapes) - 1)
    num_shapes = int(rng.integers(fewest, most + 1))
    nouns = [*_some(rng, cast.shapes, num_shapes), *_some(rng, tuple(THINGS), drawn - num_shapes)]
    counts = [int(rng.integers(2, cast.most_copies + 1)) if rng.random() < 0.4 else 1 for _ in nouns]
    if max(counts) == 1:
        counts[int(rng.integers(drawn))] = int(rng.integers(2, cast.most_copies + 1))
    cells = [(int(i) % grid, int(i) // grid) for i in rng.permutation(grid * grid)]
    groups = [
        Group(
            count,
            str(rng.choice(cast.palette)),
            noun,
            cell,
            material=str(rng.choice(MATERIALS)),
            condition=str(rng.choice(CONDITIONS)),
            size=str(rng.choice(SIZES)) if count == 1 else "",
        )
        for count, noun, cell in zip(counts, nouns, cells, strict=False)
    ]
    if with_sign:
        text = "".join(_some(rng, tuple(LETTERS), cast.letters))
        groups.append(Group(1, str(rng.choice(cast.palette)), SIGN, cells[drawn], text=text))
    return groups


def _some(rng: np.random.Generator, values: tuple[str, ...], number: int) -> list[str]:
    return [values[int(i)] for i in rng.permutation(len(values))[:number]]


def _placed(rng: np.random.Generator, group: Group, grid: int, size: tuple[int, int]) -> Group:
    """The group with its box: inside its cell, a little to a side of its middle."""
    cell_w, cell_h = size[0] / grid, size[1] / grid
    side = min(cell_w, cell_h)
    if group.noun == SIGN:
        w, h = 0.94 * cell_w, 0.56 * side
    else:
        share = _SIZE_SHARE[group.size] if group.count == 1 else 0.94
        stretch = math.exp(rng.uniform(-0.06, 0.06))
        w, h = min(share * side * stretch, 0.96 * cell_w), min(share * side / stretch, 0.96 * cell_h)
        if group.count == 2:
            h /= 2
    x = group.cell[0] * cell_w + float(rng.uniform(0.1, 0.9)) * (cell_w - w)
    y = group.cell[1] * cell_h + float(rng.uniform(0.1, 0.9)) * (cell_h - h)
    return dataclasses.replace(group, box=(x, y, x + w, y + h))


def copy_boxes(group: Group) -> list[Box]:
    """Boxes of the copies; together they reach every side of the group's box."""
    x1, y1, x2, y2 = group.box
    rows = _ROWS[group.count]
    widest, gap = max(rows), 0.08
    w, h = (x2 - x1) / (widest + gap * (widest - 1)), (y2 - y1) / (len(rows) + gap * (len(rows) - 1))
    boxes = []
    for number, copies in enumerate(rows):
        left = x1 + (widest - copies) * w * (1 + gap) / 2
        top = y1 + number * h * (1 + gap)
        boxes += [(left + i * w * (1 + gap), top, left + i * w * (1 + gap) + w, top + h) for i in range(copies)]
    return boxes


def draw_group(canvas: Image.Image, group: Group, rng: np.random.Generator) -> None:
    """Draw a group on the enlarged canvas, colours a little off their nominal values."""
    fill = np.clip(np.asarray(COLORS[group.color]) + rng.uniform(-14, 14, size=3), 0, 255)
    if group.noun == SIGN:
        _draw_sign(canvas, group, fill)
        return
    for box in copy_boxes(group):
        _draw_copy(canvas, group, box, fill, rng)


def _draw_copy(
    canvas: Image.Image, group: Group, box: Box, fill: NDArray[np.float64], rng: np.random.Generator
) -> None:
    left, top = (round(SUPERSAMPLE * v) for v in box[:2])
    w, h = (max(4, round(SUPERSAMPLE * v)) for v in (box[2] - box[0], box[3] - box[1]))
    mask = _outline(group.noun, w, h)
    surface = _surface(group.material, fill, w, h, rng)
    rim = ImageChops.subtract(mask, _outline(group.noun, w, h, shrink=max(1.5, 0.035 * min(w, h))))
    hole = _HOLES.get(group.noun, (0.5, 0.5))
    cut = Image.new("L", (w, h), 255)
    if group.condition == "pierced":
        radius = 0.15 * min(w, h)
        ring = tuple(value + sign * radius for sign in (-1, 1) for value in (hole[0] * w, hole[1] * h))
        ImageDraw.Draw(surface).ellipse(
            tuple(v + s * 0.05 * min(w, h) for v, s in zip(ring, (-1, -1, 1, 1), strict=True)), fill=(20, 20, 20)
        )
        ImageDraw.Draw(cut).ellipse(ring, fill=0)
    if group.condition == "cracked":
        _draw_crack(surface, hole[0], rng)
    solid = mask.point(lambda value: value * 3 // 5) if group.material == "glass" else mask
    if group.material == "glass":
        # Glass keeps a solid rim and solid damage, or neither would be seen.
        solid = ImageChops.lighter(solid, ImageChops.multiply(mask, _dark_parts(surface)))
    canvas.paste(surface, (left, top), ImageChops.multiply(solid, cut))
    edge = tuple(int(v) for v in 0.5 * fill)
    canvas.paste(Image.new("RGB", (w, h), edge), (left, top), ImageChops.multiply(rim, cut))


def _dark_parts(surface: Image.Image) -> Image.Image:
    return surface.convert("L").point(lambda value: 255 if value < 26 else 0)


def _outline(noun: str, w: int, h: int, shrink: float = 0.0) -> Image.Image:
    """Mask `[h, w]` of a shape or a thing that fills its box, or one smaller by `shrink` pixels on every side."""
    mask = Image.new("L", (w, h), 0)
    for polygon in THINGS.get(noun) or [SHAPES[noun]]:
        points = [(shrink + x * (w - 1 - 2 * shrink), shrink + y * (h - 1 - 2 * shrink)) for x, y in polygon]
        ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def _surface(material: str, fill: NDArray[np.float64], w: int, h: int, rng: np.random.Generator) -> Image.Image:
    """Picture `[h, w]` of a material in a colour."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    x, y = x / w, y / h
    light: NDArray[np.floating[Any]] = np.zeros((h, w))
    shade: NDArray[np.floating[Any]] = np.ones((h, w))
    if material == "wooden":
        bend = 0.05 * np.sin(2 * np.pi * (x * 1.3 + rng.uniform()))
        shade = np.where(np.sin(2 * np.pi * (y + bend) * 5) > 0.35, 0.58, 1.0)
    elif material == "metal":
        across = (x + y) / 2 + rng.uniform(-0.06, 0.06)
        shade = 0.76 + 0.24 * np.cos(4 * np.pi * (across - 0.5))
        light = np.exp(-(((across - 0.5) / 0.07) ** 2)) * 0.85
    elif material == "stone":
        specks = np.asarray(
            Image.fromarray(rng.integers(0, 256, size=(9, 9)).astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST)
        )
        shade, light = np.where(specks < 80, 0.5, 1.0), np.where(specks > 190, 0.55, 0.0)
    elif material == "glass":
        light = np.where(np.abs(x - y - 0.18) < 0.07, 0.75, 0.12)
    colors = fill * shade[:, :, None] * (1 - light[:, :, None]) + 255 * light[:, :, None]
    return Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))


def _draw_crack(surface: Image.Image, middle: float, rng: np.random.Generator) -> None:
    """A jagged dark line with a bright side, from top to bottom."""
    w, h = surface.size
    steps = 6
    swing = [0.13 * (-1) ** i + rng.uniform(-0.03, 0.03) for i in range(steps + 1)]
    points = [((middle + swing[i]) * w, h * i / steps) for i in range(steps + 1)]
    thick = max(2, round(0.07 * min(w, h)))
    draw = ImageDraw.Draw(surface)
    draw.line([(px + thick * 0.7, py) for px, py in points], fill=(250, 250, 250), width=thick)
    draw.line(points, fill=(16, 16, 16), width=thick)


def _draw_sign(canvas: Image.Image, group: Group, fill: NDArray[np.float64]) -> None:
    """A plate with a dark edge and its letters in black or white."""
    x1, y1, x2, y2 = (SUPERSAMPLE * v for v in group.box)
    draw = ImageDraw.Draw(canvas)
    color = tuple(int(v) for v in fill)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color, outline=(25, 25, 25), width=SUPERSAMPLE)
    luminance = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2]
    size = 0.92 * (y2 - y1)
    font = ImageFont.load_default(size=size)
    wide = draw.textlength(group.text, font=font)
    font = ImageFont.load_default(size=size * min(1.0, 0.86 * (x2 - x1) / wide))
    ink = (10, 10, 10) if luminance > 118 else (255, 255, 255)
    draw.text(
        ((x1 + x2) / 2, (y1 + y2) / 2), group.text, fill=ink, font=font, anchor="mm", stroke_width=1, stroke_fill=ink
    )
