"""Task `referring`: pick, from candidate boxes, every object that an expression means: several, one or none.

What enters: a seed, an index and `ReferringOptions`. What leaves: a scene, its candidate boxes in shuffled order and an
expression. The candidates stand in the prompt as a part of boxes, which each model is shown in its own frame
(`mmreason.prompt_boxes`), so that the answer is an exact copy of some of them:

    Candidates: {"object": [[12, 30, 58, 77], [60, 8, 99, 41], [20, 84, 51, 110]]}. Find all red objects. …
    [{"bbox_2d": [12, 30, 58, 77], "label": "red star"}, {"bbox_2d": [20, 84, 51, 110], "label": "red circle"}]

and an empty list where nothing is meant. Source of the setting: Rex-Thinker (arXiv 2506.04034), whose candidates come from a
detector; here they are the objects of the scene, and some expressions almost fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.grounding import PLACE_MARGIN
from mmreason.data.scene_tasks import write_box
from mmreason.data.scenes import Scene, SceneObject, SceneOptions, draw_named_scene, draw_scene
from mmreason.errors import ConfigError
from mmreason.prompt_boxes import BOXES_PART
from mmreason.records import ImageGeometry, Row

#: Scenes tried until an expression means as many objects as it should.
_TRIES = 12
#: How an answer is written; put after every question.
ANSWER_FORM = 'Answer with a list of {"bbox_2d": box, "label": name}, or [].'


class ReferringOptions(SceneOptions):
    """How pictures are made, and how many objects an expression means. `difficulty` sets what is not set by hand."""

    none_share: float = Field(0.25, ge=0, le=1, description="share of questions that mean no object")
    several_share: float = Field(0.4, ge=0, le=1, description="share of questions that mean two objects or more")

    @property
    def count_range(self) -> tuple[int, int]:
        return self.objects or ((2, 3), (3, 4), (4, 6), (5, 8))[self.difficulty]

    def check(self) -> str | None:
        if self.none_share + self.several_share > 1:
            return f"none_share={self.none_share} and several_share={self.several_share} must not exceed 1 together"
        return super().check()


@dataclass(frozen=True, slots=True)
class Expression:
    """What is asked for.

    Attributes:
        text: in the plural, `red objects`, `circles left of the blue star`.
        checks: what an object has to pass, in order: `red`, `circle`, `not red`, `left of the blue star`.
        meant: indices into the scene's objects that pass all of them.
    """

    text: str
    checks: tuple[str, ...]
    meant: tuple[int, ...]


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _colors_and_shapes(scene: Scene) -> tuple[list[str], list[str]]:
    """Those in the picture, each once: an expression about others would be answered without comparing anything."""
    return list(dict.fromkeys(o.color for o in scene.objects)), list(dict.fromkeys(o.shape for o in scene.objects))


def _by_attribute(scene: Scene, options: ReferringOptions) -> list[Expression]:
    """`red objects`, `circles`, also of colours and shapes that are not there."""
    colors, shapes = options.palette()
    items = list(enumerate(scene.objects))
    found = [Expression(f"{c} objects", (c,), tuple(i for i, o in items if o.color == c)) for c in colors]
    return found + [Expression(_plural(s), (s,), tuple(i for i, o in items if o.shape == s)) for s in shapes]


def _by_name(scene: Scene, options: ReferringOptions) -> list[Expression]:
    """`red circles`: a colour and a shape that are both there, though maybe not in one object."""
    colors, shapes = _colors_and_shapes(scene)
    items = list(enumerate(scene.objects))
    return [
        Expression(f"{c} {_plural(s)}", (c, s), tuple(i for i, o in items if (o.color, o.shape) == (c, s)))
        for c in colors
        for s in shapes
    ]


def _by_denial(scene: Scene, options: ReferringOptions) -> list[Expression]:
    """`circles that are not red`, `red objects that are not circles`."""
    colors, shapes = _colors_and_shapes(scene)
    found = []
    for c in colors:
        for s in shapes:
            kept = tuple(i for i, o in enumerate(scene.objects) if o.shape == s and o.color != c)
            found.append(Expression(f"{_plural(s)} that are not {c}", (s, f"not {c}"), kept))
            kept = tuple(i for i, o in enumerate(scene.objects) if o.color == c and o.shape != s)
            found.append(Expression(f"{c} objects that are not {_plural(s)}", (c, f"not {s}"), kept))
    return found


def _by_relation(scene: Scene, options: ReferringOptions) -> list[Expression]:
    """`objects left of the red circle`, from difficulty 3 on `blue objects left of the red circle`; all clearly so or not."""
    colors, _ = _colors_and_shapes(scene)
    found = []
    for anchor in scene.objects:
        for word, axis, sign in (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)):
            offsets = [sign * (o.center[axis] - anchor.center[axis]) for o in scene.objects]
            margin = PLACE_MARGIN * scene.image.size[axis]
            if any(abs(offset) < margin for o, offset in zip(scene.objects, offsets, strict=True) if o is not anchor):
                continue
            there = tuple(i for i, offset in enumerate(offsets) if offset > 0)
            place = f"{word} the {anchor.name}"
            if options.difficulty < 3:
                found.append(Expression(f"objects {place}", (place,), there))
                continue
            for c in colors:
                meant = tuple(i for i in there if scene.objects[i].color == c)
                found.append(Expression(f"{c} objects {place}", (c, place), meant))
    return found


KINDS: dict[str, Callable[[Scene, ReferringOptions], list[Expression]]] = {
    "attribute": _by_attribute,
    "name": _by_name,
    "denial": _by_denial,
    "relation": _by_relation,
}
KIND_WEIGHTS = (
    {"attribute": 1.0},
    {"attribute": 0.5, "name": 0.3, "denial": 0.2},
    {"attribute": 0.25, "name": 0.25, "denial": 0.25, "relation": 0.25},
    {"name": 0.2, "denial": 0.35, "relation": 0.45},
)


@task("referring")
class Referring(Task[ReferringOptions]):
    """Pick all objects that an expression means out of candidate boxes; the empty list if there is none.

    Score: F1 of exact copies of the candidates; a row is correct when it is 1. Styles: `direct`, `look` (the checks, then
    each candidate in the order of the prompt with yes or no, then the numbers that stay, then the answer).

    What the dial does, measured over 200 rows; tokens are those of the embedded model, the 95 % quantile of `look`:

        difficulty              0     1     2     3
        candidates           2.58  3.53  4.98  6.49
        tokens of a look       88   121   135   142
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "box_set_f1"
    correct_at: ClassVar[float] = 0.99

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return ReferringOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        scene, expression, kind = self._question(rng)
        order = [int(i) for i in rng.permutation(len(scene.objects))]
        candidates = tuple(scene.objects[i] for i in order)
        meant = tuple(place for place, i in enumerate(order) if i in expression.meant)
        content = [
            {"type": "image"},
            {"type": "text", "text": "Candidates: "},
            {"type": BOXES_PART, "boxes": [list(item.box) for item in candidates], "label": "object"},
            {"type": "text", "text": f". Find all {expression.text}. {ANSWER_FORM}"},
        ]
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": content},),
            images=(scene.image,),
            target={
                "boxes": [list(candidates[place].box) for place in meant],
                "labels": [candidates[place].name for place in meant],
            },
            dataset=self.name,
            columns={"candidates": candidates, "meant": meant, "checks": expression.checks, "kind": kind},
        )

    def _question(self, rng: np.random.Generator) -> tuple[Scene, Expression, str]:
        """A scene and an expression that means none, one or several of its objects, as the shares say."""
        options = self.options
        draw = rng.random()
        if draw < options.none_share:
            wanted = range(1)
        elif draw < options.none_share + options.several_share:
            wanted = range(2, 13)
        else:
            wanted = range(1, 2)
        weights = KIND_WEIGHTS[options.difficulty]
        for _ in range(_TRIES):
            scene = self._scene(rng)
            for kind in rng.choice(list(weights), size=4, p=list(weights.values())):
                fitting = [e for e in KINDS[str(kind)](scene, options) if len(e.meant) in wanted]
                if fitting:
                    return scene, fitting[int(rng.integers(len(fitting)))], str(kind)
        found = _by_attribute(scene, options)
        return scene, found[int(rng.integers(len(found)))], "attribute"

    def _scene(self, rng: np.random.Generator) -> Scene:
        """A scene of few colours and shapes, so that objects share them."""
        low, high = self.options.count_range
        count = int(rng.integers(low, high + 1))
        side = 3 if count <= 8 else 4
        colors, shapes = (rng.permutation(kinds)[:side].tolist() for kinds in self.options.palette())
        names = [(color, shape) for color in colors for shape in shapes]
        picked = [names[int(i)] for i in rng.permutation(len(names))[:count]]
        return draw_named_scene(rng, self.options, picked) or draw_scene(rng, self.options)

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        candidates: tuple[SceneObject, ...] = row.columns["candidates"]
        meant: tuple[int, ...] = row.columns["meant"]
        answer = ", ".join(
            f'{{"bbox_2d": {write_box(candidates[i].box, geometry[0], frame)}, "label": {json.dumps(candidates[i].name)}}}'
            for i in meant
        )
        if style == "direct":
            thinking = ""
        elif style == "look":
            marks = [f"{i + 1} {item.name} {'yes' if i in meant else 'no'}" for i, item in enumerate(candidates)]
            kept = ", ".join(str(i + 1) for i in meant) or "none"
            thinking = f"{', '.join(row.columns['checks'])}: {', '.join(marks)}. {kept}"
        else:
            raise ConfigError(f"task '{row.dataset}' has no answer style '{style}'")
        return f"<think>{thinking}</think><answer>[{answer}]</answer>"
