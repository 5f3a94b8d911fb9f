"""Task `multi_image_grounding`: find an object among several images by what the images have in common or not.

What enters: a seed, an index and `MultiImageOptions`. What leaves: two to four scenes, a question, and the object's box with
the image that it lies in. In questions and answers images are counted from 1, in `target["image_index"]` from 0.

    Find the red circle in image 3.                                     image 3 [12, 30, 58, 77]
    Find the object in image 2 of the color of the star in image 1.     image 2 [40, 11, 80, 52]
    Find the object that is in image 1 and in image 2.                  image 1 [9, 9, 44, 47], image 2 [60, 3, 99, 40]
    Find the object of image 1 that is not in image 2.                  image 1 [31, 8, 66, 45]
    Find the object with the odd color.                                 image 2 [7, 50, 49, 91]

Source of the setting: UniVG-R1 (arXiv 2505.14231), all images first, then one question that refers across them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.grounding import KINDS as WITHIN_ONE_IMAGE
from mmreason.data.scene_tasks import write_list, write_object
from mmreason.data.scenes import Name, Scene, SceneObject, SceneOptions, draw_named_scene, draw_scene
from mmreason.errors import ConfigError
from mmreason.labelled_boxes import write_target_boxes
from mmreason.records import ImageGeometry, Row

#: Kinds of question tried before the simplest one is asked, and sets of pictures tried for each.
_KINDS_TRIED, _PICTURES_TRIED = 4, 6


class MultiImageOptions(SceneOptions):
    """How many images and what is in them. `difficulty` sets what is not set by hand."""

    num_images: int = Field(2, ge=2, le=4, description="images of a question")

    @property
    def count_range(self) -> tuple[int, int]:
        return self.objects or ((1, 2), (2, 2), (2, 3), (3, 5))[self.difficulty]

    @property
    def names(self) -> list[Name]:
        """Every colour and shape in play."""
        colors, shapes = self.palette()
        return [(color, shape) for color in colors for shape in shapes]


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """What is asked about several scenes.

    Attributes:
        phrase: the object meant, `the red circle in image 3`.
        chosen: what is meant: index of the image, counted from 0, and the object.
        shared: the colour or shape that the answer follows from; "" where the name is enough.
    """

    phrase: str
    chosen: tuple[tuple[int, SceneObject], ...]
    shared: str = ""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the images are to show, and the question about them once they are drawn (`None`: it has no one answer)."""

    names: list[list[Name]]
    ask: Callable[[list[Scene]], ImageQuestion | None]


def _drawn(rng: np.random.Generator, names: Sequence[Name], count: int) -> list[Name]:
    """`count` different names in random order, or all there are."""
    return [names[int(i)] for i in rng.permutation(len(names))[:count]]


def _random_names(rng: np.random.Generator, options: MultiImageOptions) -> list[list[Name]]:
    low, high = options.count_range
    return [_drawn(rng, options.names, int(rng.integers(low, high + 1))) for _ in range(options.num_images)]


def _two_images(rng: np.random.Generator, options: MultiImageOptions) -> tuple[int, int]:
    first, second = rng.permutation(options.num_images)[:2]
    return int(first), int(second)


def _find(scene: Scene, name: Name) -> SceneObject:
    return next(item for item in scene.objects if (item.color, item.shape) == name)


def _by_name(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    """`the red circle in image 3`."""
    image = int(rng.integers(options.num_images))

    def ask(scenes: list[Scene]) -> ImageQuestion:
        item = scenes[image].objects[int(rng.integers(len(scenes[image].objects)))]
        return ImageQuestion(f"the {item.name} in image {image + 1}", ((image, item),))

    return _Plan(_random_names(rng, options), ask)


def _within(rng: np.random.Generator, scene: Scene) -> tuple[str, SceneObject] | None:
    """An object by its size or place: `the leftmost object`."""
    return WITHIN_ONE_IMAGE[("size", "place", "relation")[int(rng.integers(3))]](scene, rng)


def _by_place(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    """`the leftmost object in image 2`."""
    image = int(rng.integers(options.num_images))

    def ask(scenes: list[Scene]) -> ImageQuestion | None:
        found = _within(rng, scenes[image])
        return None if found is None else ImageQuestion(f"{found[0]} in image {image + 1}", ((image, found[1]),))

    return _Plan(_random_names(rng, options), ask)


def _by_attribute(rng: np.random.Generator, options: MultiImageOptions, axis: int) -> _Plan:
    """`the object in image 2 of the color of the star in image 1`; axis 0 asks for a colour, 1 for a shape.

    The object pointed at is named by its other attribute or, from difficulty 2 on, in half of the questions by its place.
    """
    here, there = _two_images(rng, options)
    names = _random_names(rng, options)
    pointer = names[here][0]
    # The same attribute, but another object: otherwise the name alone would answer.
    meant = _drawn(rng, [n for n in options.names if n[axis] == pointer[axis] and n != pointer], 1)
    others = [n for n in options.names if n[axis] != pointer[axis]]
    names[there] = [*meant, *_drawn(rng, others, len(names[there]) - 1)]
    by_place = options.difficulty >= 2 and rng.random() < 0.5
    word = ("color", "shape")[axis]

    def ask(scenes: list[Scene]) -> ImageQuestion | None:
        told, item = f"the {pointer[1]}" if axis == 0 else f"the {pointer[0]} object", _find(scenes[here], pointer)
        if by_place:
            found = _within(rng, scenes[here])
            if found is None or found[1] != item:
                return None
            told = found[0]
        elif sum(n[1 - axis] == pointer[1 - axis] for n in names[here]) > 1:
            return None
        phrase = f"the object in image {there + 1} of the {word} of {told} in image {here + 1}"
        return ImageQuestion(phrase, ((there, _find(scenes[there], meant[0])),), pointer[axis])

    return _Plan(names, ask)


def _by_color(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    return _by_attribute(rng, options, 0)


def _by_shape(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    return _by_attribute(rng, options, 1)


def _in_both(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    """`the object that is in image 1 and in image 2`: it has a box in either."""
    first, second = sorted(_two_images(rng, options))
    names = _random_names(rng, options)
    shared = names[first][0]
    others = [n for n in options.names if n not in names[first]]
    names[second] = [shared, *_drawn(rng, others, len(names[second]) - 1)]

    def ask(scenes: list[Scene]) -> ImageQuestion:
        chosen = tuple((image, _find(scenes[image], shared)) for image in (first, second))
        return ImageQuestion(f"the object that is in image {first + 1} and in image {second + 1}", chosen)

    return _Plan(names, ask)


def _missing(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    """`the object of image 1 that is not in image 2`; in half of the questions another object stands in its place."""
    here, there = _two_images(rng, options)
    names = _random_names(rng, options)
    missing, *kept = names[here]
    spare = _drawn(rng, [n for n in options.names if n not in names[here]], 1)
    names[there] = kept + (spare if not kept or rng.random() < 0.5 else [])

    def ask(scenes: list[Scene]) -> ImageQuestion:
        item = _find(scenes[here], missing)
        return ImageQuestion(f"the object of image {here + 1} that is not in image {there + 1}", ((here, item),))

    return _Plan(names, ask)


def _odd(rng: np.random.Generator, options: MultiImageOptions) -> _Plan:
    """`the object with the odd color`: over all images, all objects but one have the same."""
    axis = int(rng.integers(2))
    kinds = options.palette()
    common, odd = (kinds[axis][int(i)] for i in rng.permutation(len(kinds[axis]))[:2])
    image = int(rng.integers(options.num_images))
    names = []
    for number, drawn in enumerate(_random_names(rng, options)):
        others = [kinds[1 - axis][int(i)] for i in rng.permutation(len(kinds[1 - axis]))[: len(drawn)]]
        own = [odd if number == image and place == 0 else common for place in range(len(others))]
        pairs = zip(own, others, strict=True) if axis == 0 else zip(others, own, strict=True)
        names.append(list(pairs))

    def ask(scenes: list[Scene]) -> ImageQuestion | None:
        if sum(map(len, names)) < 3:
            return None
        phrase = f"the object with the odd {('color', 'shape')[axis]}"
        return ImageQuestion(phrase, ((image, _find(scenes[image], names[image][0])),), odd)

    return _Plan(names, ask)


KINDS: dict[str, Callable[[np.random.Generator, MultiImageOptions], _Plan]] = {
    "name": _by_name,
    "place": _by_place,
    "color": _by_color,
    "shape": _by_shape,
    "both": _in_both,
    "missing": _missing,
    "odd": _odd,
}
#: Share of each kind by difficulty: from one image, over two compared, to comparisons that begin at a place.
KIND_WEIGHTS = (
    {"name": 1.0},
    {"name": 0.2, "color": 0.2, "shape": 0.2, "both": 0.15, "missing": 0.15, "odd": 0.1},
    {"name": 0.1, "place": 0.15, "color": 0.2, "shape": 0.2, "both": 0.1, "missing": 0.1, "odd": 0.15},
    {"place": 0.2, "color": 0.25, "shape": 0.25, "both": 0.1, "missing": 0.1, "odd": 0.1},
)


@task("multi_image_grounding")
class MultiImageGrounding(Task[MultiImageOptions]):
    """Find an object across images and give its image and box.

    Score: IoU of the box in the right image; a row is correct when it is above 0.5. The right box in a wrong image is worth 0.
    Styles: `direct`, `look` (list the objects of each image, say what they share, answer).

    What the dial does, measured over 200 rows; tokens are those of the embedded model, the 95 % quantile of `look`:

        difficulty                              0     1     2     3
        an object named at random is right   .352  .258  .213  .133    (4 images: .171  .126  .103  .064)
        tokens of a look                       85   111   122   155    (4 images:  128   165   185   262)
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "iou"

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return MultiImageOptions

    def row(self, index: int, split: Split = "train") -> Row:
        scenes, question, kind = self._question(self.generator(index, split))
        content = [{"type": "image"} for _ in scenes] + [{"type": "text", "text": f"Find {question.phrase}."}]
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": content},),
            images=tuple(scene.image for scene in scenes),
            target={
                "boxes": [list(item.box) for _, item in question.chosen],
                "labels": [item.name for _, item in question.chosen],
                "image_index": [image for image, _ in question.chosen],
            },
            dataset=self.name,
            columns={"scenes": tuple(scene.objects for scene in scenes), "kind": kind, "asked": question},
        )

    def _question(self, rng: np.random.Generator) -> tuple[list[Scene], ImageQuestion, str]:
        weights = KIND_WEIGHTS[self.options.difficulty]
        # Again and again for one kind: otherwise kinds that rarely fit would be rarer than their weight says.
        for kind in np.repeat(rng.choice(list(weights), _KINDS_TRIED, p=list(weights.values())), _PICTURES_TRIED):
            plan = KINDS[str(kind)](rng, self.options)
            scenes = [
                scene for names in plan.names if (scene := draw_named_scene(rng, self.options, names)) is not None
            ]
            if len(scenes) < len(plan.names):
                continue
            question = plan.ask(scenes)
            if question is not None:
                return scenes, question, str(kind)
        scenes = [draw_scene(rng, self.options) for _ in range(self.options.num_images)]
        question = _by_name(rng, self.options).ask(scenes)
        assert question is not None, "a name always has one answer"
        return scenes, question, "name"

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        answer = write_target_boxes(row.target, geometry, frame)
        if style == "direct":
            return f"<think></think><answer>{answer}</answer>"
        if style != "look":
            raise ConfigError(f"task '{row.dataset}' has no answer style '{style}'")
        question: ImageQuestion = row.columns["asked"]
        seen = [
            f"image {image + 1}: {write_list(objects, geometry[image], frame)}. "
            for image, objects in enumerate(row.columns["scenes"])
        ]
        meant = [f"image {image + 1} {write_object(item, geometry[image], frame)}" for image, item in question.chosen]
        work = (f"{question.shared}: " if question.shared else "") + ", ".join(meant)
        return f"<think>{''.join(seen)}{work}</think><answer>{answer}</answer>"
