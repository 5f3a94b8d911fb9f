"""Task `scene_qa`: count, attribute, compare and relation questions about one scene, with one exact short answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mmreason.boxes import Frame
from mmreason.data.base import Split, task
from mmreason.data.grounding import PLACE_MARGIN, SIZE_MARGIN
from mmreason.data.scene_tasks import SceneTask, seen_box, think_then_answer, write_object
from mmreason.data.scenes import Scene, SceneObject, SceneOptions
from mmreason.records import ImageGeometry, Row


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question, its answer and what the answer follows from.

    Attributes:
        text: the question. answer: the exact short answer.
        about: the objects that decide it: the ones counted, the one described, the two compared.
        measure: what is compared between the two: side of the box's square, or its centre; `count` for the number of `about`;
            None where naming the object is enough.
    """

    text: str
    answer: str
    about: tuple[SceneObject, ...]
    measure: Literal["count", "size", "x", "y"] | None = None


def _pick_two(scene: Scene, rng: np.random.Generator) -> tuple[SceneObject, SceneObject]:
    first, second = rng.choice(len(scene.objects), size=2, replace=False)
    return scene.objects[int(first)], scene.objects[int(second)]


def _counted(text: str, found: list[SceneObject]) -> SceneQuestion:
    return SceneQuestion(text, str(len(found)), tuple(found), "count")


def _count(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> SceneQuestion | None:
    """Counts of a colour, a shape or everything; half of them about something that is there."""
    colors, shapes = options.palette()
    if rng.random() < 0.2:
        return _counted("How many objects are there?", list(scene.objects))
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    present = rng.random() < 0.7
    if rng.random() < 0.5:
        color = item.color if present else str(rng.choice(colors))
        return _counted(f"How many {color} objects are there?", scene.with_color(color))
    shape = item.shape if present else str(rng.choice(shapes))
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return _counted(f"How many {plural} are there?", scene.with_shape(shape))


def _attribute(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> SceneQuestion | None:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    if rng.random() < 0.5:
        unique = len(scene.with_shape(item.shape)) == 1
        return SceneQuestion(f"What color is the {item.shape}?", item.color, (item,)) if unique else None
    unique = len(scene.with_color(item.color)) == 1
    return SceneQuestion(f"What shape is the {item.color} object?", item.shape, (item,)) if unique else None


def _compare(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> SceneQuestion | None:
    if len(scene.objects) < 2:
        return None
    a, b = _pick_two(scene, rng)
    if max(a.area, b.area) < SIZE_MARGIN * min(a.area, b.area):
        return None
    return SceneQuestion(
        f"Is the {a.name} larger than the {b.name}?", "yes" if a.area > b.area else "no", (a, b), "size"
    )


def _relation(scene: Scene, rng: np.random.Generator, options: SceneOptions) -> SceneQuestion | None:
    if len(scene.objects) < 2:
        return None
    a, b = _pick_two(scene, rng)
    word, axis, sign = (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1))[int(rng.integers(4))]
    offset = sign * (a.center[axis] - b.center[axis])
    if abs(offset) < PLACE_MARGIN * scene.image.size[axis]:
        return None
    answer = "yes" if offset > 0 else "no"
    return SceneQuestion(f"Is the {a.name} {word} the {b.name}?", answer, (a, b), "x" if axis == 0 else "y")


KINDS = {"count": _count, "attribute": _attribute, "compare": _compare, "relation": _relation}


def work_out(question: SceneQuestion, geometry: ImageGeometry, frame: Frame) -> str:
    """The step between a list of objects and the answer, in words and in numbers of the model's own frame.

    `red star, red circle: 2`, `red star`, `red star [12, 30, 52, 71] 41, blue circle [60, 11, 88, 39] 28: more`: a number stands
    beside the box that it follows from, so that it is read off and not looked up again.
    """
    names = [item.name for item in question.about]
    if question.measure is None:
        return ", ".join(names)
    if question.measure == "count":
        return f"{', '.join(names) or 'none'}: {len(names)}"
    told, values = [], []
    for item in question.about:
        x1, y1, x2, y2 = seen_box(item.box, geometry, frame)
        value = {"size": math.sqrt((x2 - x1) * (y2 - y1)), "x": (x1 + x2) / 2, "y": (y1 + y2) / 2}[question.measure]
        told.append(f"{write_object(item, geometry, frame)} {round(value)}")
        values.append(value)
    return f"{', '.join(told)}: {'more' if values[0] > values[1] else 'less'}"


@task("scene_qa")
class SceneQA(SceneTask):
    """Answer a question about a scene: counts, attributes, sizes, relations.

    Score: exact match of the short answer. Styles: `direct`, `look` (list the objects, work the answer out, answer).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "exact"

    def row(self, index: int, split: Split = "train") -> Row:
        scene, rng = self.draw(index, split)
        for kind in rng.choice(list(KINDS), size=8):
            question = KINDS[str(kind)](scene, rng, self.options)
            if question is not None:
                break
        else:
            kind, question = "count", _counted("How many objects are there?", list(scene.objects))
        target = {"answer": question.answer}
        return self.scene_row(scene, index, split, question.text, target, kind=str(kind), asked=question)

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        work = work_out(row.columns["asked"], geometry[0], frame)
        return think_then_answer(style, row, str(row.target["answer"]), geometry, frame, work)
