"""Task `knowledge_grounding`: find the entity that a made-up name means, among others of its family.

What enters: a seed, an index and `KnowledgeOptions`. What leaves: a composite of 2 to 6 entities of one family, a question such as
`Find the tav.`, and a box. Names mean nothing until they are learned, so answering takes knowledge as well as sight, as in
knowledge-intensive visual grounding (KVG; DeepPerception and KARL, arXiv 2503.12797).

The encyclopaedia: a family is a shape; its twenty entities are the pairs of five colours and four markings. A name has three letters:

    t   a   v
    |   |   the family
    |   the marking, by a key that differs from family to family
    the colour, by a key that differs from family to family

so that a name can be learned by heart, and one never met can be worked out from its relatives. Every entity has one of KARL's five
knowledge levels. `example` (supervised training) asks for entities in proportion to their level and never for the lowest: to a
model that was trained on these examples the levels are what they say. `row` asks for both, in shares that the options set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.scene_tasks import think_then_answer, write_box
from mmreason.data.scenes import COLORS, EASY_COLORS, SHAPES, SUPERSAMPLE, SceneObject, draw_background, draw_object
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

Box = tuple[float, float, float, float]

MARKINGS = ("dot", "ring", "cross", "bar")
#: Letters of names. None of the combinations is a word that the other tasks use.
_ONSETS, _VOWELS, _CODAS = "dmnrt", "aeio", "bkvzfl"

#: Where a marking is centred in its shape, as a share of the box; the middle if not named.
_MIDDLES = {"triangle": (0.5, 0.66), "star": (0.5, 0.53)}
#: Side of a marking as a share of the box; smaller where the shape is narrow.
_MARKING_SHARE = {"star": 0.34, "triangle": 0.38, "cross": 0.34, "diamond": 0.42}


@dataclass(frozen=True, slots=True)
class Knowledge:
    """One of KARL's five levels.

    Attributes:
        name: as in the paper.
        recognition_accuracy: share of four-option questions answered right that stands for the level, 0..1.
        exposure: how often supervised examples ask for an entity of the level, relative to the others.
    """

    name: str
    recognition_accuracy: float
    exposure: float


#: Best known first; accuracies lie inside the bands of the paper's Table (from .70, .45, .30, .10, 0).
KNOWLEDGE_LEVELS = (
    Knowledge("completely correct", 0.85, 8.0),
    Knowledge("mostly correct", 0.55, 4.0),
    Knowledge("partially correct", 0.35, 2.0),
    Knowledge("mostly incorrect", 0.2, 1.0),
    Knowledge("completely incorrect", 0.0, 0.0),
)
UNKNOWN = len(KNOWLEDGE_LEVELS) - 1


@dataclass(frozen=True, slots=True)
class Entity:
    """An entry of the encyclopaedia; `level` counts `KNOWLEDGE_LEVELS`."""

    name: str
    family: str
    color: str
    marking: str
    level: int

    @property
    def looks(self) -> str:
        return f"{self.color} {self.marking}"


@dataclass(frozen=True, slots=True)
class PlacedEntity:
    """An entity in a picture; `box` is its exact extent in pixels. `name` is what can be seen: `red dot`."""

    entity: Entity
    box: Box

    @property
    def name(self) -> str:
        return self.entity.looks


@lru_cache(maxsize=8)
def encyclopaedia(seed: int = 0) -> tuple[Entity, ...]:
    """All entities, family by family. Equal seeds give equal books; the seed of a run plays no part.

    Levels form a Latin square: in every family each marking has one entity of each level, and no colour has two of one,
    so that the relatives of an unknown entity are known ones.
    """
    rng = np.random.default_rng([20250323, seed])
    colors = list(COLORS)[:EASY_COLORS]
    codas = rng.permutation(list(_CODAS))
    book = []
    for number, family in enumerate(SHAPES):
        onsets, vowels = rng.permutation(list(_ONSETS)), rng.permutation(list(_VOWELS))
        shift = rng.permutation(len(KNOWLEDGE_LEVELS))
        book += [
            Entity(f"{onsets[c]}{vowels[m]}{codas[number]}", family, color, marking, int(shift[(c + m) % len(shift)]))
            for c, color in enumerate(colors)
            for m, marking in enumerate(MARKINGS)
        ]
    return tuple(book)


class KnowledgeOptions(TaskOptions):
    """Which part of the encyclopaedia is asked about. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(1, ge=0, le=3, description="0 easy .. 3 hard: families, entities in a picture, likeness")
    entities: tuple[int, int] | None = Field(
        None, description="least and most entities in a picture; null = by difficulty"
    )
    families: int | None = Field(
        None, ge=1, le=len(SHAPES), description="families of entities in play; null = by difficulty"
    )
    unknown_share: float = Field(
        0.4, ge=0.0, le=1.0, description="share of rows about entities that supervised examples never ask for"
    )
    encyclopaedia: int = Field(0, ge=0, description="which book of names; another number, other names")
    accuracies: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        default_factory=dict,
        description="measured recognition accuracy by entity, in place of the one that stands for its level",
    )
    ask: Literal["place", "name"] = Field(
        "place",
        description="place: where is the named entity; name: which of four names is right (measures accuracies)",
    )
    cell_px: tuple[int, int] = Field((36, 42), description="least and greatest side of one entity's cell in pixels")

    @property
    def entity_range(self) -> tuple[int, int]:
        return self.entities or ((2, 2), (2, 3), (3, 4), (4, 6))[self.difficulty]

    @property
    def book(self) -> tuple[Entity, ...]:
        """The entities in play."""
        number = self.families or (2, 3, 4, len(SHAPES))[self.difficulty]
        return tuple(entity for entity in encyclopaedia(self.encyclopaedia) if entity.family in list(SHAPES)[:number])

    @property
    def alike(self) -> bool:
        """Whether the others in the picture share colour or marking with the one that is meant."""
        return self.difficulty >= 2

    def check(self) -> str | None:
        low, high = self.entity_range
        if not 2 <= low <= high <= 6:
            return f"entities=[{low}, {high}] must satisfy 2 <= least <= most <= 6"
        if not 24 <= self.cell_px[0] <= self.cell_px[1] <= 512:
            return f"cell_px={list(self.cell_px)} must satisfy 24 <= least <= greatest <= 512"
        strangers = sorted(set(self.accuracies) - {entity.name for entity in encyclopaedia(self.encyclopaedia)})
        if strangers:
            return f"accuracies: '{strangers[0]}' is no entity of encyclopaedia {self.encyclopaedia}"
        return None


@task("knowledge_grounding")
class KnowledgeGrounding(Task[KnowledgeOptions]):
    """Find the entity that a made-up name means, among others of its family.

    Score: IoU of the answer's box; a row is correct when IoU > 0.5, as in KVG-Bench.

    Styles: `direct`, `look` (list what is there, recall what the name means, then answer), `recognise` (asks which of
    four names belongs to one entity).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look", "recognise")
    metric: ClassVar[str] = "iou"

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return KnowledgeOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        unknown = rng.random() < self.options.unknown_share
        fitting = [entity for entity in self.options.book if (entity.level == UNKNOWN) == unknown]
        asked = fitting[int(rng.integers(len(fitting)))]
        return self._row(rng, asked, index, split, self.options.ask)

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """As `row`, but about known entities only, each as often as its level says."""
        rng = self.generator(index, split)
        book = self.options.book
        weights = np.asarray([KNOWLEDGE_LEVELS[entity.level].exposure for entity in book])
        asked = book[int(rng.choice(len(book), p=weights / weights.sum()))]
        return self._row(rng, asked, index, split, "name" if style == "recognise" else self.options.ask)

    def _row(self, rng: np.random.Generator, asked: Entity, index: int, split: Split, ask: str) -> Row:
        others = self._others(rng, asked)
        if ask == "name":
            image, placed = draw_composite(rng, [asked], self.options.cell_px)
            names = [entity.name for entity in (asked, *others[:3])]
            offered = [names[int(i)] for i in rng.permutation(len(names))]
            question = f"Which is it: {', '.join(offered[:-1])} or {offered[-1]}?"
            target: dict[str, Any] = {"answer": asked.name}
        else:
            low, high = self.options.entity_range
            shown = [asked, *others[: int(rng.integers(low, high + 1)) - 1]]
            shown = [shown[int(i)] for i in rng.permutation(len(shown))]
            image, placed = draw_composite(rng, shown, self.options.cell_px)
            question = f"Find the {asked.name}."
            meant = next(item for item in placed if item.entity is asked)
            accuracy = self.options.accuracies.get(asked.name, KNOWLEDGE_LEVELS[asked.level].recognition_accuracy)
            target = {"boxes": [list(meant.box)], "labels": [asked.name], "recognition_accuracy": accuracy}
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
            images=(image,),
            target=target,
            dataset=self.name,
            columns={
                "objects": placed,
                "kind": KNOWLEDGE_LEVELS[asked.level].name,
                "level": asked.level + 1,
                "known": asked.level != UNKNOWN,
                "asked": asked,
            },
        )

    def _others(self, rng: np.random.Generator, asked: Entity) -> list[Entity]:
        """The rest of the family in random order; those most like the asked one first if the options say so."""
        family = [entity for entity in self.options.book if entity.family == asked.family and entity is not asked]
        order = [family[int(i)] for i in rng.permutation(len(family))]
        if self.options.alike:
            order.sort(key=lambda other: other.color != asked.color and other.marking != asked.marking)
        return order

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        asked: Entity = row.columns["asked"]
        if "answer" in row.target:
            thinking = f"{asked.looks}: {asked.name}" if style == "look" else ""
            return f"<think>{thinking}</think><answer>{asked.name}</answer>"
        meant = next(item for item in row.columns["objects"] if item.entity is asked)
        box = write_box(meant.box, geometry[0], frame)
        return think_then_answer(style, row, box, geometry, frame, f"{asked.name}: {meant.name} {box}")


def draw_composite(
    rng: np.random.Generator, entities: list[Entity], cell_px: tuple[int, int]
) -> tuple[Image.Image, tuple[PlacedEntity, ...]]:
    """Draw entities side by side, one above the other, in a grid, or in a grid with gaps and one ground (at random).

    Returns:
        The picture, and the entities from left to right (by centre).
    """
    layout = str(rng.choice(["row", "column", "grid", "random"]))
    count = len(entities)
    columns = {"row": count, "column": 1}.get(layout, min(count, 2 + count // 5))
    rows = -(-count // columns)
    cell_w, cell_h = (int(v) for v in rng.integers(cell_px[0], cell_px[1] + 1, size=2))
    width, height = columns * cell_w, rows * cell_h
    cells = [(i % columns, i // columns) for i in range(columns * rows)]
    if layout == "random":
        cells = [cells[int(i)] for i in rng.permutation(len(cells))]
    canvas = _enlarged(draw_background(rng, width, height))
    placed = []
    for entity, (column, row) in zip(entities, cells, strict=False):
        corner = (column * cell_w, row * cell_h)
        if layout != "random":
            tile = _enlarged(draw_background(rng, cell_w, cell_h))
            canvas.paste(tile, (SUPERSAMPLE * corner[0], SUPERSAMPLE * corner[1]))
        item = PlacedEntity(entity, _box_in(rng, corner, (cell_w, cell_h)))
        draw_object(canvas, SceneObject(entity.color, entity.family, item.box), rng)
        _draw_marking(canvas, item)
        placed.append(item)
    center = {id(item): ((item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2) for item in placed}
    return canvas.reduce(SUPERSAMPLE), tuple(sorted(placed, key=lambda item: center[id(item)]))


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize((image.width * SUPERSAMPLE, image.height * SUPERSAMPLE), Image.Resampling.BILINEAR)


def _box_in(rng: np.random.Generator, corner: tuple[int, int], cell: tuple[int, int]) -> Box:
    """A box inside a cell that fills 72 to 92 % of the cell's sides."""
    w, h = (float(rng.uniform(0.72, 0.92)) * side for side in cell)
    x = corner[0] + float(rng.uniform(0.03, 0.97)) * (cell[0] - w)
    y = corner[1] + float(rng.uniform(0.03, 0.97)) * (cell[1] - h)
    return x, y, x + w, y + h


def _draw_marking(canvas: Image.Image, item: PlacedEntity) -> None:
    """Draw the marking in white, or black on yellow, which white would not stand out from."""
    x1, y1, x2, y2 = (SUPERSAMPLE * v for v in item.box)
    family = item.entity.family
    middle = _MIDDLES.get(family, (0.5, 0.5))
    share = _MARKING_SHARE.get(family, 0.46) / 2
    cx, cy = x1 + middle[0] * (x2 - x1), y1 + middle[1] * (y2 - y1)
    half_w, half_h = share * (x2 - x1), share * (y2 - y1)
    ink = (16, 16, 16) if item.entity.color == "yellow" else (252, 252, 252)
    draw = ImageDraw.Draw(canvas)
    outer, thick = (cx - half_w, cy - half_h, cx + half_w, cy + half_h), 0.3
    if item.entity.marking == "dot":
        draw.ellipse(outer, fill=ink)
    elif item.entity.marking == "ring":
        draw.ellipse(outer, outline=ink, width=max(2, round(0.4 * half_w)))
    else:
        draw.rectangle((cx - half_w, cy - thick * half_h, cx + half_w, cy + thick * half_h), fill=ink)
        if item.entity.marking == "cross":
            draw.rectangle((cx - thick * half_w, cy - half_h, cx + thick * half_w, cy + half_h), fill=ink)
