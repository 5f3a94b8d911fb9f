"""Task `grounding`: find one object among several by colour, shape, size or relation, and give its box."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mmreason.boxes import Frame
from mmreason.data.base import Split, task
from mmreason.data.scene_tasks import SceneTask, think_then_answer, write_box, write_list, write_object
from mmreason.data.scenes import Scene, SceneObject
from mmreason.records import ImageGeometry, Row

#: A superlative needs this much between the winner and the next: share of area, share of the picture's side.
SIZE_MARGIN, PLACE_MARGIN = 1.3, 0.06


def _by_name(scene: Scene, rng: np.random.Generator) -> tuple[str, SceneObject] | None:
    """`the red circle`, or only colour or only shape where that is unique."""
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    ways = [f"the {item.name}"]
    if len(scene.with_color(item.color)) == 1:
        ways.append(f"the {item.color} object")
    if len(scene.with_shape(item.shape)) == 1:
        ways.append(f"the {item.shape}")
    return ways[int(rng.integers(len(ways)))], item


def _by_size(scene: Scene, rng: np.random.Generator) -> tuple[str, SceneObject] | None:
    ordered = sorted(scene.objects, key=lambda o: o.area)
    if len(ordered) < 2:
        return None
    if rng.random() < 0.5:
        clear = ordered[-1].area > SIZE_MARGIN * ordered[-2].area
        return ("the largest object", ordered[-1]) if clear else None
    clear = ordered[1].area > SIZE_MARGIN * ordered[0].area
    return ("the smallest object", ordered[0]) if clear else None


def _by_place(scene: Scene, rng: np.random.Generator) -> tuple[str, SceneObject] | None:
    word, axis, last = (
        ("leftmost", 0, False),
        ("rightmost", 0, True),
        ("topmost", 1, False),
        ("bottommost", 1, True),
    )[int(rng.integers(4))]
    ordered = sorted(scene.objects, key=lambda o: o.center[axis], reverse=last)
    if (
        len(ordered) < 2
        or abs(ordered[0].center[axis] - ordered[1].center[axis]) < PLACE_MARGIN * scene.image.size[axis]
    ):
        return None
    return f"the {word} object", ordered[0]


def _by_relation(scene: Scene, rng: np.random.Generator) -> tuple[str, SceneObject] | None:
    """`the object left of the red circle`: exactly one object lies there, and clearly so."""
    anchor = scene.objects[int(rng.integers(len(scene.objects)))]
    word, axis, sign = (
        ("left of", 0, -1),
        ("right of", 0, 1),
        ("above", 1, -1),
        ("below", 1, 1),
    )[int(rng.integers(4))]
    margin = PLACE_MARGIN * scene.image.size[axis]
    offsets = [(sign * (o.center[axis] - anchor.center[axis]), o) for o in scene.objects if o is not anchor]
    there = [o for offset, o in offsets if offset > 0]
    if len(there) != 1 or any(abs(offset) < margin for offset, _ in offsets):
        return None
    return f"the object {word} the {anchor.name}", there[0]


#: Kinds of question by difficulty; later levels ask more of the questions that need the whole picture.
KINDS = {"name": _by_name, "size": _by_size, "place": _by_place, "relation": _by_relation}
KIND_WEIGHTS = (
    {"name": 1.0},
    {"name": 0.4, "size": 0.15, "place": 0.2, "relation": 0.25},
    {"name": 0.3, "size": 0.2, "place": 0.2, "relation": 0.3},
    {"name": 0.2, "size": 0.2, "place": 0.2, "relation": 0.4},
)


@task("grounding")
class Grounding(SceneTask):
    """Find one object and give its box.

    Score: IoU of the answer's box; a row is correct when IoU > 0.5.

    Styles: `direct`, `look` (list the objects, then answer), `list` (asks for the list itself).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look", "list")
    metric: ClassVar[str] = "iou"

    def row(self, index: int, split: Split = "train") -> Row:
        scene, rng = self.draw(index, split)
        phrase, item, kind = self._question(scene, rng)
        target = {"boxes": [list(item.box)], "labels": [item.name]}
        return self.scene_row(scene, index, split, f"Find {phrase}.", target, kind=kind, chosen=item)

    def _question(self, scene: Scene, rng: np.random.Generator) -> tuple[str, SceneObject, str]:
        weights = KIND_WEIGHTS[self.options.difficulty]
        for kind in rng.choice(list(weights), size=8, p=list(weights.values())):
            found = KINDS[str(kind)](scene, rng)
            if found is not None:
                return (*found, str(kind))
        phrase, item = _by_name(scene, rng) or ("", scene.objects[0])
        return phrase, item, "name"

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        row = self.row(index, split)
        if style != "list":
            return row
        content = [{"type": "image"}, {"type": "text", "text": "List the objects."}]
        return dataclasses.replace(row, messages=({"role": "user", "content": content},))

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        chosen: SceneObject = row.columns["chosen"]
        if style == "list":
            return f"<think></think><answer>{write_list(row.columns['objects'], geometry[0], frame)}</answer>"
        work = write_object(chosen, geometry[0], frame)
        return think_then_answer(style, row, write_box(chosen.box, geometry[0], frame), geometry, frame, work)
