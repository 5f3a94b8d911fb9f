"""Task `spatial`: where things lie, how far apart they are, and what two views of one scene tell together.

What enters: a seed, an index and `SpatialOptions`. What leaves: one or two pictures, a question and a word, a name or yes or no.

    Is the red circle left of the blue star?                                                  yes
    Which object is nearest to the red circle?                                                blue star
    Is the red circle closer to the blue star than to the green square?                       no
    The first image is from above, the second from the front. What color is the star?         green
    The first image is from above, the second from behind. What color is the star?            blue
    The second image is the first after a turn. Which object is not in the same place?        red circle

In the view from above everything is a dot with a colour, in that from the front a grey shape: what stands in one line is the same thing; from behind,
left and right change sides.

Source of the setting: spatial questions over several views, ViLaSR (arXiv 2506.09965) and SPAR (arXiv 2503.22976).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from mmreason.agent.calls import Call
from mmreason.boxes import Frame
from mmreason.data.base import MENDED_STYLE, GeometryOf, PlannedTurn, Split, TaskOptions, task
from mmreason.data.scenes import (
    COLORS,
    SHAPES,
    SUPERSAMPLE,
    Scene,
    SceneObject,
    SceneOptions,
    draw_background,
    draw_object,
    draw_scene,
)
from mmreason.data.tool_tasks import DialOptions, Point, Seen, Size, ToolTask, call, mended, the_answer
from mmreason.errors import ConfigError
from mmreason.records import Row

#: By difficulty: objects, least difference of what is compared as a share of the picture's side, kinds of question with their shares.
_LEVELS: tuple[tuple[int, float, dict[str, float]], ...] = (
    (2, 0.2, {"side": 1.0}),
    (3, 0.15, {"side": 0.4, "distance": 0.6}),
    (4, 0.1, {"side": 0.2, "distance": 0.3, "closer": 0.2, "front": 0.3}),
    (4, 0.07, {"side": 0.15, "distance": 0.25, "closer": 0.15, "front": 0.25, "moved": 0.2}),
    (5, 0.05, {"side": 0.1, "distance": 0.2, "closer": 0.2, "front": 0.1, "behind": 0.2, "turned": 0.2}),
    (6, 0.04, {"side": 0.1, "distance": 0.2, "closer": 0.2, "behind": 0.25, "turned": 0.25}),
)
_TRIES = 400
#: Side of an object in a view, least gap between two columns of a view, and of a moved object from its old place, in pixels.
_VIEW_PX, _MOVE_PX = 16, 30.0
#: Kinds of questions that are answered by drawing lines.
DRAWN_KINDS = ("side", "front", "behind")
#: A line that is drawn by mistake goes past its thing by no less than this, and by how much more, in pixels.
_LEAST_MISS_PX, _MORE_MISS_PX = 4.0, 16.0


class SpatialOptions(DialOptions):
    """What is asked and about how many things. `difficulty` sets what is not set by hand."""

    kinds: tuple[str, ...] | None = Field(
        None, description="side, distance, closer, front, behind, moved, turned; null = by difficulty"
    )
    side_px: tuple[int, int] = Field((112, 168), description="least and greatest side of a picture in pixels")

    @property
    def weights(self) -> dict[str, float]:
        """Share of each kind of question."""
        if self.kinds is not None:
            return dict.fromkeys(self.kinds, 1.0 / len(self.kinds))
        return _LEVELS[self.difficulty][2]

    @property
    def num_objects(self) -> int:
        return _LEVELS[self.difficulty][0]

    @property
    def gap_share(self) -> float:
        return _LEVELS[self.difficulty][1]

    def check(self) -> str | None:
        if self.kinds is not None:
            unknown = [kind for kind in self.kinds if kind not in KINDS]
            if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
                return f"kinds={list(self.kinds)}: name each once, out of {', '.join(KINDS)}"
        if not 112 <= self.side_px[0] <= self.side_px[1] <= 2048:
            return f"side_px={list(self.side_px)} must satisfy 112 <= least <= greatest <= 2048"
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the plan: places in pixels of a picture of the row, `x` of `vertical_line` and `y` of `horizontal_line` too."""

    tool: str
    thought: str = ""
    image: str = ""
    size: Size = (0, 0)
    points: tuple[Point, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)

    def call(self, seen: Seen) -> Call:
        """As a model would write it."""
        if self.tool == "measure":
            points = [seen.point(point, self.size) for point in self.points]
            return call("measure", image=self.image, what="distance", points=points)
        if self.tool in ("vertical_line", "horizontal_line"):
            x, y = seen.point(self.points[0], self.size)
            return call(self.tool, image=self.image, **({"x": x} if self.tool == "vertical_line" else {"y": y}))
        return call(self.tool, **self.arguments)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its pictures, its answer, how to find it with tools, and the things that it is about."""

    question: str
    answer: str
    pictures: tuple[Image.Image, ...]
    steps: tuple[Step, ...]
    objects: tuple[SceneObject, ...]


@task("spatial")
class Spatial(ToolTask[SpatialOptions]):
    """Tell sides, distances, and what is where in two views.

    Score: exact match. Style: `direct`.
    """

    metric: ClassVar[str] = "exact"
    tools: ClassVar[tuple[str, ...]] = ("measure", "vertical_line", "horizontal_line", "compare", "rotate")

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return SpatialOptions

    def row(self, index: int, split: Split = "train") -> Row:
        return self._row(index, split, self.options.weights)

    def example(self, index: int, style: str, split: Split = "train") -> Row:
        """For `mended`: questions that are answered with lines only, for these can be drawn at a wrong place."""
        if style != MENDED_STYLE:
            return self.row(index, split)
        drawn = {kind: weight for kind, weight in self.options.weights.items() if kind in DRAWN_KINDS}
        if not drawn:
            raise ConfigError(
                f"task.kinds={list(self.options.weights)}: only {', '.join(DRAWN_KINDS)} have mistakes that are mended"
            )
        whole = sum(drawn.values())
        return self._row(index, split, {kind: weight / whole for kind, weight in drawn.items()})

    def _row(self, index: int, split: Split, weights: Mapping[str, float]) -> Row:
        rng = self.generator(index, split)
        kind = str(rng.choice(list(weights), p=list(weights.values())))
        asked = next(filter(None, (KINDS[kind](rng, self.options) for _ in range(_TRIES))), None)
        if asked is None:
            raise ConfigError(
                f"task.kinds: none of {_TRIES} scenes of {self.options.side_px[0]} px or more allowed a question of kind '{kind}'. "
                "Enlarge task.side_px."
            )
        columns = {"objects": asked.objects, "steps": asked.steps, "kind": kind}
        return self.made_row(index, split, asked.pictures, asked.question, {"answer": asked.answer}, columns)

    def plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """The steps of the question's kind: measure, draw guide lines, or turn and compare; then the answer."""
        seen = Seen(geometry_of, frame)
        steps: Sequence[Step] = row.columns["steps"]
        turns = [PlannedTurn(step.thought, (step.call(seen),)) for step in steps]
        return [*turns, the_answer(row)]

    def mended_plan(self, row: Row, geometry_of: GeometryOf, frame: Frame) -> Sequence[PlannedTurn]:
        """One of the guide lines goes past its thing, or through another one, and is drawn again without it."""
        seen, rng = Seen(geometry_of, frame), self.mistakes(row)
        steps: Sequence[Step] = row.columns["steps"]
        place = int(rng.integers(len(steps)))
        step = steps[place]
        axis = int(step.tool == "horizontal_line")
        (meant,) = {item.box for item in row.columns["objects"] if item.center == step.points[0]}
        low, high = meant[axis] - _LEAST_MISS_PX, meant[axis + 2] + _LEAST_MISS_PX
        off = rng.uniform(0, _MORE_MISS_PX)
        places = [item.center[axis] for item in row.columns["objects"]] + [low - off, high + off]
        wrong = [at for at in places if not low < at < high and 0 <= at <= step.size[axis]]
        at = wrong[int(rng.integers(len(wrong)))]
        plan = self.plan(row, geometry_of, frame)
        return mended(row, plan, place, {"xy"[axis]: seen.point((at, at), step.size)[axis]})


# ------------------------------------------------------------------------------------------------ one picture


def _scene(rng: np.random.Generator, options: SpatialOptions, least: int) -> Scene:
    level = 1 if options.difficulty < 4 else 2
    count = max(least, options.num_objects)
    return draw_scene(rng, SceneOptions(difficulty=level, objects=(count, count), side_px=options.side_px))


def _gap_px(options: SpatialOptions, scene: Scene) -> float:
    return max(4.0, options.gap_share * min(scene.image.size))


def _side(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    """`Is the red circle left of the blue star?`, about two that differ by no more than four times the least gap where there are such."""
    scene = _scene(rng, options, 2)
    axis = int(rng.integers(2))
    gap = _gap_px(options, scene)
    pairs = [(a, b) for a in scene.objects for b in scene.objects if abs(a.center[axis] - b.center[axis]) >= gap]
    if not pairs:
        return None
    close = [(a, b) for a, b in pairs if abs(a.center[axis] - b.center[axis]) <= 4 * gap]
    first, second = (close or pairs)[int(rng.integers(len(close or pairs)))]
    word, is_less = ((("left of", True), ("right of", False)), (("above", True), ("below", False)))[axis][
        int(rng.integers(2))
    ]
    right = (first.center[axis] < second.center[axis]) == is_less
    tool = ("vertical_line", "horizontal_line")[axis]
    step = Step(tool, second.name, "img_0", scene.image.size, (second.center,))
    question = f"Is the {first.name} {word} the {second.name}?"
    return Asked(question, "yes" if right else "no", (scene.image,), (step,), scene.objects)


def _measure(scene: Scene, a: SceneObject, b: SceneObject) -> Step:
    return Step("measure", f"{a.name}, {b.name}", "img_0", scene.image.size, (a.center, b.center))


def _distance(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    """`Which object is nearest to the red circle?`, or farthest from it."""
    scene = _scene(rng, options, 3)
    if len(scene.objects) < 3:
        return None
    anchor, *others = (scene.objects[int(i)] for i in rng.permutation(len(scene.objects)))
    nearest = rng.random() < 0.5
    ranked = sorted(others, key=lambda item: math.dist(item.center, anchor.center) * (1 if nearest else -1))
    first, second = (math.dist(item.center, anchor.center) for item in ranked[:2])
    if abs(first - second) < _gap_px(options, scene):
        return None
    word = "nearest to" if nearest else "farthest from"
    steps = tuple(_measure(scene, anchor, item) for item in others)
    return Asked(f"Which object is {word} the {anchor.name}?", ranked[0].name, (scene.image,), steps, scene.objects)


def _closer(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    """`Is the red circle closer to the blue star than to the green square?`"""
    scene = _scene(rng, options, 3)
    if len(scene.objects) < 3:
        return None
    anchor, first, second = (scene.objects[int(i)] for i in rng.permutation(len(scene.objects))[:3])
    near, far = (math.dist(item.center, anchor.center) for item in (first, second))
    if abs(near - far) < _gap_px(options, scene):
        return None
    steps = (_measure(scene, anchor, first), _measure(scene, anchor, second))
    question = f"Is the {anchor.name} closer to the {first.name} than to the {second.name}?"
    return Asked(question, "yes" if near < far else "no", (scene.image,), steps, scene.objects)


# ------------------------------------------------------------------------------------------------ two pictures


def _front(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    return _two_views(rng, options, behind=False)


def _behind(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    return _two_views(rng, options, behind=True)


def _two_views(rng: np.random.Generator, options: SpatialOptions, *, behind: bool) -> Asked | None:
    """Colours from above, shapes from the front or from behind."""
    width = int(rng.integers(options.side_px[0], options.side_px[1] + 1))
    heights = width, max(56, width // 2)
    count = min(max(2, options.num_objects), len(SHAPES), (width - _VIEW_PX) // (_VIEW_PX + 2))
    colors = [str(name) for name in rng.permutation(list(COLORS))[:count]]
    shapes = [str(name) for name in rng.permutation(list(SHAPES))[:count]]
    # The columns' gaps: the least one, and what is left shared out at random.
    spare = width - 8 - count * (_VIEW_PX + 2)
    cuts = np.sort(rng.uniform(0, spare, size=count))
    lefts = [4 + float(cut) + number * (_VIEW_PX + 2) for number, cut in enumerate(cuts)]
    depths = rng.uniform(4, heights[0] - 4 - _VIEW_PX, size=count)
    from_above = tuple(
        SceneObject(color, "circle", (x, y, x + _VIEW_PX, y + _VIEW_PX))
        for color, x, y in zip(colors, lefts, map(float, depths), strict=True)
    )
    ground = heights[1] - 8.0
    seen_at = [width - x - _VIEW_PX if behind else x for x in lefts]
    standing = tuple(
        SceneObject("gray", shape, (x, ground - _VIEW_PX, x + _VIEW_PX, ground))
        for shape, x in zip(shapes, seen_at, strict=True)
    )
    pictures = (_dots(rng, from_above, (width, heights[0])), _standing(rng, standing, (width, heights[1])))
    meant = int(rng.integers(count))
    view = "behind" if behind else "the front"
    question = f"The first image is from above, the second from {view}. What color is the {shapes[meant]}?"
    steps = (
        Step("vertical_line", shapes[meant], "img_1", pictures[1].size, (standing[meant].center,)),
        Step("vertical_line", "", "img_0", pictures[0].size, (from_above[meant].center,)),
    )
    return Asked(question, colors[meant], pictures, steps, from_above + standing)


def _dots(rng: np.random.Generator, items: Sequence[SceneObject], size: Size) -> Image.Image:
    canvas = _ground(rng, size)
    for item in items:
        draw_object(canvas, item, rng)
    return canvas.reduce(SUPERSAMPLE)


def _standing(rng: np.random.Generator, items: Sequence[SceneObject], size: Size) -> Image.Image:
    """Grey shapes on a floor."""
    canvas = _ground(rng, size)
    pen = ImageDraw.Draw(canvas)
    floor = items[0].box[3] * SUPERSAMPLE
    pen.line((0, floor, size[0] * SUPERSAMPLE, floor), fill=(60, 60, 60), width=2 * SUPERSAMPLE)
    for item in items:
        x1, y1, x2, y2 = (SUPERSAMPLE * v for v in item.box)
        pen.polygon([(x1 + px * (x2 - x1), y1 + py * (y2 - y1)) for px, py in SHAPES[item.shape]], fill=(90, 90, 90))
    return canvas.reduce(SUPERSAMPLE)


def _ground(rng: np.random.Generator, size: Size) -> Image.Image:
    """Light and plain: in views, only what stands on it counts."""
    ground = tuple(int(v) for v in rng.integers(222, 252, size=3))
    return Image.new("RGB", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), ground)


def _moved(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    return _changed(rng, options, 0)


def _turned(rng: np.random.Generator, options: SpatialOptions) -> Asked | None:
    return _changed(rng, options, int(rng.integers(1, 4)))


def turned_point(point: Point, side: float, quarters: int) -> Point:
    """A point of a square picture after so many quarter turns clockwise."""
    for _ in range(quarters):
        point = side - point[1], point[0]
    return point


def _changed(rng: np.random.Generator, options: SpatialOptions, quarters: int) -> Asked | None:
    """The same things twice, the second time turned as a whole, and one of them in another place."""
    side = int(rng.integers(options.side_px[0], options.side_px[1] + 1))
    scene = draw_scene(
        rng, SceneOptions(difficulty=1, objects=(max(3, options.num_objects),) * 2, side_px=(side, side))
    )
    if len(scene.objects) < 3:
        return None
    number = int(rng.integers(len(scene.objects)))
    place = _free_place(rng, scene, number, side)
    if place is None:
        return None
    centers = [item.center if item is not scene.objects[number] else place for item in scene.objects]
    after = [turned_point(center, side, quarters) for center in centers]
    if _ambiguous(scene, after, side):
        return None
    items = tuple(_placed_at(item, center) for item, center in zip(scene.objects, after, strict=True))
    canvas = draw_background(rng, side, side).resize((side * SUPERSAMPLE,) * 2, Image.Resampling.BILINEAR)
    for item in items:
        draw_object(canvas, item, rng)
    told = "after a turn" if quarters else "after a move"
    steps: tuple[Step, ...] = (Step("compare", arguments={"images": ["img_0", "img_1"]}),)
    if quarters:
        turn = Step("rotate", f"turn {90 * quarters}", arguments={"image": "img_0", "degrees": 90 * quarters})
        steps = (turn, Step("compare", arguments={"images": ["img_2", "img_1"]}))
    question = f"The second image is the first {told}. Which object is not in the same place?"
    pictures = (scene.image, canvas.reduce(SUPERSAMPLE))
    return Asked(question, scene.objects[number].name, pictures, steps, scene.objects + items)


def _placed_at(item: SceneObject, center: Point) -> SceneObject:
    """The object, upright, around another centre."""
    half = (item.box[2] - item.box[0]) / 2, (item.box[3] - item.box[1]) / 2
    box = center[0] - half[0], center[1] - half[1], center[0] + half[0], center[1] + half[1]
    return SceneObject(item.color, item.shape, box)


def _free_place(rng: np.random.Generator, scene: Scene, number: int, side: int) -> Point | None:
    """A centre for object `number`, away from its own and clear of the others."""
    item = scene.objects[number]
    reach = max(item.box[2] - item.box[0], item.box[3] - item.box[1]) / 2
    for _ in range(_TRIES):
        x, y = (float(v) for v in rng.uniform(reach + 1, side - reach - 1, size=2))
        others = [other for k, other in enumerate(scene.objects) if k != number]
        clear = all(
            max(
                abs(x - other.center[0]) - (other.box[2] - other.box[0]) / 2,
                abs(y - other.center[1]) - (other.box[3] - other.box[1]) / 2,
            )
            > reach + 2
            for other in others
        )
        if clear and math.dist((x, y), item.center) >= _MOVE_PX:
            return x, y
    return None


def _ambiguous(scene: Scene, after: Sequence[Point], side: float) -> bool:
    """Whether more than one turn leaves all things but one where they were, so that two answers would be right."""
    fits = 0
    for quarters in range(4):
        before = [turned_point(item.center, side, quarters) for item in scene.objects]
        fits += sum(math.dist(a, b) > 8.0 for a, b in zip(before, after, strict=True)) <= 1
    return fits != 1


KINDS: dict[str, Callable[[np.random.Generator, SpatialOptions], Asked | None]] = {
    "side": _side,
    "distance": _distance,
    "closer": _closer,
    "front": _front,
    "behind": _behind,
    "moved": _moved,
    "turned": _turned,
}
