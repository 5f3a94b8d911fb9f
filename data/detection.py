"""Task `detection`: every object of the named categories, some of which are not in the picture.

What enters: a seed, an index and `DetectionOptions`. What leaves: a picture, a question such as `Find every circle, star and
cross.`, and the boxes with labels, as in the open-vocabulary detection of VLM-R1 (arXiv 2504.07615): one to three of the
categories asked for are absent (negatives), so that boxes for everything that is named do not pay.

The answer is a JSON list of `{"bbox_2d": [x1, y1, x2, y2], "label": "circle"}` in the model's own frame, `[]` if nothing is there.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.scene_tasks import think_then_answer, write_box
from mmreason.data.scenes import Scene, SceneObject, SceneOptions, draw_scene
from mmreason.records import ImageGeometry, Row

#: What a category is made of: `circle`, `red object`, `red circle`.
Way = Literal["shape", "color", "name"]
WAYS: tuple[Way, ...] = ("shape", "color", "name")


class DetectionOptions(SceneOptions):
    """The scene, and what is asked about it. `difficulty` sets what is not set by hand."""

    negatives: tuple[int, int] | None = Field(
        None, description="least and most categories asked for that are absent; null = by difficulty, 1 to 3"
    )
    categories: tuple[Way, ...] = Field(
        WAYS, min_length=1, description="kinds of category: shape (circle), color (red object), name (red circle)"
    )
    empty_share: float = Field(0.1, ge=0.0, le=1.0, description="share of rows in which nothing asked for is there")

    @property
    def negative_range(self) -> tuple[int, int]:
        return self.negatives or ((1, 1), (1, 2), (1, 3), (2, 3))[self.difficulty]

    @property
    def most_positives(self) -> int:
        """Largest number of categories asked for that are there."""
        return (1, 2, 3, 3)[self.difficulty]

    def check(self) -> str | None:
        low, high = self.negative_range
        if not 0 <= low <= high <= 3:
            return f"negatives=[{low}, {high}] must satisfy 0 <= least <= most <= 3"
        if high == 0 and self.empty_share > 0:
            return f"empty_share={self.empty_share:g} needs a category that is absent: negatives=[0, 0] allows none"
        return super().check()


def category_of(item: SceneObject, way: Way) -> str:
    """The category of an object: `circle`, `red object` or `red circle`."""
    return {"shape": item.shape, "color": f"{item.color} object", "name": item.name}[way]


def all_categories(options: SceneOptions, way: Way) -> list[str]:
    """Every category that pictures of these options may show."""
    colors, shapes = options.palette()
    if way == "shape":
        return shapes
    return [f"{color} object" for color in colors] if way == "color" else [f"{c} {s}" for c in colors for s in shapes]


@task("detection")
class Detection(Task[DetectionOptions]):
    """Find every object of the named categories, some of them absent.

    Score: mean average precision with count control; a row is correct above 0.5.

    Styles: `direct`, `look` (list the objects, say which belong to each category, then answer).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "detection_map"

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return DetectionOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        scene = draw_scene(rng, self.options)
        way, asked = self._ask(scene, rng)
        found = [item for item in scene.objects if category_of(item, way) in asked]
        question = f"Find every {_enumerate(asked)}."
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
            images=(scene.image,),
            target={
                "boxes": [list(item.box) for item in found],
                "labels": [category_of(item, way) for item in found],
            },
            dataset=self.name,
            columns={
                "objects": scene.objects,
                "kind": way if found else "nothing",
                "way": way,
                "asked": asked,
                "found": tuple(found),
            },
        )

    def _ask(self, scene: Scene, rng: np.random.Generator) -> tuple[Way, tuple[str, ...]]:
        """The kind of category, and those asked for in random order, present and absent ones mixed."""
        low, high = self.options.negative_range
        empty = rng.random() < self.options.empty_share
        number = int(rng.integers(max(low, int(empty)), high + 1))
        choices = {way: self._absent(scene, way) for way in self.options.categories}
        # Where the picture shows almost every category of a kind, another kind has absent ones to ask for.
        best = max(len(absent) for absent in choices.values())
        fitting = [way for way, absent in choices.items() if len(absent) >= min(number, best)]
        way = fitting[int(rng.integers(len(fitting)))]
        absent = [choices[way][int(i)] for i in rng.permutation(len(choices[way]))[:number]]
        present = sorted({category_of(item, way) for item in scene.objects})
        # With nothing absent to ask for, the question cannot be an empty one.
        positives = 0 if empty and absent else int(rng.integers(1, self.options.most_positives + 1))
        there = [present[int(i)] for i in rng.permutation(len(present))[:positives]]
        asked = [*there, *absent]
        return way, tuple(asked[int(i)] for i in rng.permutation(len(asked)))

    def _absent(self, scene: Scene, way: Way) -> list[str]:
        """Categories that are not there; of names, only such as share colour or shape with something that is."""
        present = {category_of(item, way) for item in scene.objects}
        words = {word for item in scene.objects for word in (item.color, item.shape)}
        absent = [name for name in all_categories(self.options, way) if name not in present]
        near = [name for name in absent if words & set(name.split())]
        return near if way == "name" and near else absent

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        found: tuple[SceneObject, ...] = row.columns["found"]
        way: Way = row.columns["way"]
        sorted_out = []
        for category in row.columns["asked"]:
            members = [item.name for item in found if category_of(item, way) == category]
            sorted_out.append(f"{category}: {', '.join(members) or 'none'}")
        entries = [
            f'{{"bbox_2d": {write_box(item.box, geometry[0], frame)}, "label": "{category_of(item, way)}"}}'
            for item in found
        ]
        return think_then_answer(style, row, f"[{', '.join(entries)}]", geometry, frame, ". ".join(sorted_out))


def _enumerate(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
