"""Task `scene_qa`: count, attribute, compare and relation questions about one scene, with one exact short answer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmreason.boxes import Frame
from mmreason.data.base import Split, task
from mmreason.data.grounding import PLACE_MARGIN, SIZE_MARGIN
from mmreason.data.scene_tasks import SceneTask, think_then_answer
from mmreason.data.scenes import Scene, SceneOptions
from mmreason.records import ImageGeometry, Row


def _pick_two(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    first, second = rng.choice(len(scene.objects), size=2, replace=False)
    return int(first), int(second)


def _count(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> tuple[str, str] | None:
    """Counts of a colour, a shape or everything; half of them about something that is there."""
    colors, shapes = options.palette()
    if rng.random() < 0.2:
        return "How many objects are there?", str(len(scene.objects))
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    present = rng.random() < 0.7
    if rng.random() < 0.5:
        color = item.color if present else str(rng.choice(colors))
        return f"How many {color} objects are there?", str(len(scene.with_color(color)))
    shape = item.shape if present else str(rng.choice(shapes))
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return f"How many {plural} are there?", str(len(scene.with_shape(shape)))


def _attribute(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> tuple[str, str] | None:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    if rng.random() < 0.5:
        return (f"What color is the {item.shape}?", item.color) if len(scene.with_shape(item.shape)) == 1 else None
    return (f"What shape is the {item.color} object?", item.shape) if len(scene.with_color(item.color)) == 1 else None


def _compare(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[i] for i in _pick_two(scene, rng))
    if max(a.area, b.area) < SIZE_MARGIN * min(a.area, b.area):
        return None
    return f"Is the {a.name} larger than the {b.name}?", "yes" if a.area > b.area else "no"


def _relation(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[i] for i in _pick_two(scene, rng))
    word, axis, sign = (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1))[int(rng.integers(4))]
    offset = sign * (a.center[axis] - b.center[axis])
    if abs(offset) < PLACE_MARGIN * scene.image.size[axis]:
        return None
    return f"Is the {a.name} {word} the {b.name}?", "yes" if offset > 0 else "no"


KINDS = {"count": _count, "attribute": _attribute, "compare": _compare, "relation": _relation}


@task("scene_qa")
class SceneQA(SceneTask):
    """Answer a question about a scene: counts, attributes, sizes, relations.

    Score: exact match of the short answer. Styles: `direct`, `look` (list the objects, then answer).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "exact"

    def row(self, index: int, split: Split = "train") -> Row:
        scene, rng = self.draw(index, split)
        for kind in rng.choice(list(KINDS), size=8):
            found = KINDS[str(kind)](scene, rng, self.options)
            if found is not None:
                question, answer = found
                break
        else:
            kind, (question, answer) = "count", ("How many objects are there?", str(len(scene.objects)))
        return self.scene_row(scene, index, split, question, {"answer": answer}, kind=str(kind))

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        return think_then_answer(style, row, str(row.target["answer"]), geometry, frame)
