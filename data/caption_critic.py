"""Task `caption_critic`: one phrase of a true caption was falsified; which one?

What enters: a seed, an index and `CaptionCriticOptions`. What leaves: a picture, a caption of 20 to 200 words, and the phrase of two
to five words that is wrong, with what stood there: the task of ViCrit (arXiv 2506.10128) with its eight kinds of error.

Everything else in the caption is true, and nothing in it says which phrase is wrong: a group whose noun is falsified is named
nowhere else, a place never becomes one that another group is said to be in, numbers stay plural.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmreason.boxes import Frame
from mmreason.data.base import Split, Task, TaskOptions, task
from mmreason.data.caption_scenes import (
    CONDITIONS,
    LETTERS,
    MATERIALS,
    SIGN,
    THINGS,
    CaptionScene,
    Cast,
    Group,
    cast_of,
    draw_caption_scene,
)
from mmreason.data.captions import (
    ADJECTIVES,
    NUM_TEMPLATES,
    OPPOSITES,
    RELATIONS,
    Adjective,
    Caption,
    Form,
    Kind,
    Statement,
    holds,
    name_unit,
    tell,
)
from mmreason.data.scene_tasks import write_box
from mmreason.errors import ConfigError
from mmreason.records import ImageGeometry, Row

KINDS: tuple[Kind, ...] = ("count", "material", "spatial", "color", "object", "condition", "shape", "text")
#: Words that a mentioned group takes on average, and the least range of lengths that a caption can be fitted into.
_WORDS_PER_GROUP, _LEAST_RANGE = 15, 8
#: A caption with a sign has three groups at least.
_LEAST_WITH_SIGN = 40


class CaptionCriticOptions(TaskOptions):
    """How long captions are and what may be wrong. `difficulty` sets what is not set by hand."""

    difficulty: int = Field(
        1, ge=0, le=3, description="0 easy .. 3 hard: words, groups of things, palette, kinds of error"
    )
    words: tuple[int, int] | None = Field(None, description="least and most words of the caption; null = by difficulty")
    kinds: tuple[Kind, ...] | None = Field(
        None,
        min_length=1,
        description="kinds of error; null = all eight, without material, condition and text at difficulty 0",
    )
    side_px: tuple[int, int] | None = Field(
        None, description="least and greatest side of the picture in pixels; null = by difficulty"
    )

    @property
    def word_range(self) -> tuple[int, int]:
        return self.words or ((20, 30), (25, 45), (50, 100), (120, 200))[self.difficulty]

    @property
    def kinds_in_play(self) -> tuple[Kind, ...]:
        if self.kinds is not None:
            return self.kinds
        return KINDS if self.difficulty else ("count", "spatial", "color", "object", "shape")

    @property
    def side_range_px(self) -> tuple[int, int]:
        return self.side_px or ((112, 140), (112, 140), (140, 182), (154, 196))[self.difficulty]

    def check(self) -> str | None:
        low, high = self.word_range
        if not 20 <= low <= high <= 200 or high - low < _LEAST_RANGE:
            return f"words=[{low}, {high}] must satisfy 20 <= least, most <= 200 and differ by {_LEAST_RANGE} or more"
        if "text" in self.kinds_in_play and high < _LEAST_WITH_SIGN:
            return f"words=[{low}, {high}] is too short for a sign: allow {_LEAST_WITH_SIGN} words, or leave 'text' out of kinds"
        least, greatest = self.side_range_px
        if not 84 <= least <= greatest <= 2048:
            return f"side_px=[{least}, {greatest}] must satisfy 84 <= least <= greatest <= 2048"
        return None


@dataclass(frozen=True, slots=True)
class Error:
    """What is falsified, and in which sentence.

    Attributes:
        kind: one of `KINDS`. subject: index of the group.
        false_group: the group as the changed caption has it; the true one where a relation is falsified.
        form: the sentence: the introduction, or one about the material or the condition alone.
        anchor, relation: of the relation that is turned into its opposite; none for all other errors.
    """

    kind: Kind
    subject: int
    false_group: Group
    form: Form = "intro"
    anchor: int = -1
    relation: str = ""

    @property
    def adjectives(self) -> tuple[Adjective, ...]:
        """What the introduction of the subject has to say beside the name."""
        if self.form != "intro":
            return ()
        return ("material",) if self.kind == "material" else ("condition",) if self.kind == "condition" else ()

    @property
    def hides(self) -> bool:
        """Whether another mention of the subject would give the error away."""
        return self.kind in ("spatial", "object", "shape")


@task("caption_critic")
class CaptionCritic(Task[CaptionCriticOptions]):
    """Find the one phrase of a caption that is wrong.

    Score: exact match of the phrase. Styles: `direct`, `look` (list what is there, go through the caption's
    claims up to the wrong one, then answer).
    """

    styles: ClassVar[tuple[str, ...]] = ("direct", "look")
    metric: ClassVar[str] = "caption_critic"
    # A guess from the words alone is right in 29 % of the rows at difficulty 1, 17 % at 2 and 3; 44 % with words around it.
    metric_options: ClassVar[Mapping[str, Any]] = {"strict": True}

    @classmethod
    def options_model(cls) -> type[TaskOptions]:
        return CaptionCriticOptions

    def row(self, index: int, split: Split = "train") -> Row:
        rng = self.generator(index, split)
        options = self.options
        low, high = options.word_range
        wanted = int(rng.integers(low, high - _LEAST_RANGE + 1))
        with_sign = "text" in options.kinds_in_play
        num_groups = int(np.clip(round(wanted / _WORDS_PER_GROUP), 3 if with_sign else 2, 8))
        cast = cast_of(options.difficulty)
        scene = draw_caption_scene(rng, cast, num_groups, with_sign, options.side_range_px)
        kind = options.kinds_in_play[int(rng.integers(len(options.kinds_in_play)))]
        error = choose_error(rng, scene, cast, kind)
        true, false = write_pair(rng, scene, error, (wanted, high))
        place = next(i for i, (a, b) in enumerate(zip(true.units, false.units, strict=True)) if a != b)
        target = {
            "caption": false.text,
            "span": false.units[place].spans[kind],
            "original_span": true.units[place].spans[kind],
        }
        question = f"One phrase is wrong. Find it: {false.text}"
        return Row(
            id=f"{self.name}/{split}/{self.seed}/{index}",
            messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
            images=(scene.image,),
            target=target,
            dataset=self.name,
            columns={
                "kind": kind,
                "groups": scene.groups,
                "grid": scene.grid,
                "original_caption": true.text,
                "units": false.units,
                "true_units": true.units,
            },
        )

    def trace(self, row: Row, style: str, geometry: tuple[ImageGeometry, ...], frame: Frame) -> str:
        if style not in self.styles:
            raise ConfigError(f"task '{self.name}' has no answer style '{style}'")
        thinking = _look(row, geometry[0], frame) if style == "look" else ""
        return f"<think>{thinking}</think><answer>{row.target['span']}</answer>"


def _look(row: Row, geometry: ImageGeometry, frame: Frame) -> str:
    """`two whole wooden red stars [..], one red sign MAT [..]. two red stars yes, the top left no`."""
    listed = []
    for number, group in enumerate(row.columns["groups"]):
        name = name_unit(group, number, ("size", "condition", "material")).text
        text = f" {group.text}" if group.text else ""
        listed.append(f"{name}{text} {write_box(group.box, geometry, frame)}")
    checked = []
    for said, true in zip(row.columns["units"], row.columns["true_units"], strict=True):
        checked.append(f"{said.text} {'yes' if said == true else 'no'}")
        if said != true:
            break
    return f"{', '.join(listed)}. {', '.join(checked)}"


def choose_error(rng: np.random.Generator, scene: CaptionScene, cast: Cast, kind: Kind) -> Error:
    """One claim of `kind` about the scene and its falsification; every scene has something for each kind asked for.

    A relation is falsified where the picture leaves room for the false one; else a place is.
    """
    groups = scene.groups
    if kind == "spatial":
        return _spatial_error(rng, scene)
    fitting = [i for i, group in enumerate(groups) if _can_err(group, kind)]
    subject = fitting[int(rng.integers(len(fitting)))]
    group = groups[subject]
    value = _false_value(rng, group, cast, kind, groups)
    false_group = dataclasses.replace(group, **{kind_field(kind): value})  # type: ignore[arg-type]
    form: Form = "intro"
    if kind in ("material", "condition") and rng.random() < 0.4:
        form = "material" if kind == "material" else "condition"
    return Error(kind, subject, false_group, form)


def kind_field(kind: Kind) -> str:
    """The attribute of a group that a kind of error falsifies (`spatial`, which may be a relation, apart)."""
    return {"object": "noun", "shape": "noun"}.get(kind, kind)


def _can_err(group: Group, kind: Kind) -> bool:
    return {
        "count": group.count > 1,
        "color": True,
        "text": group.noun == SIGN,
        "object": group.noun in THINGS,
        "shape": group.noun not in THINGS and group.noun != SIGN,
    }.get(kind, group.noun != SIGN)


def _false_value(rng: np.random.Generator, group: Group, cast: Cast, kind: Kind, groups: Sequence[Group]) -> int | str:
    if kind == "text":
        return _misread(rng, group.text)
    if kind == "count":
        counts = [count for count in range(2, cast.most_copies + 1) if count != group.count]
        return counts[int(rng.integers(len(counts)))]
    there = {other.noun for other in groups}
    values: dict[Kind, Sequence[str]] = {
        "color": cast.palette,
        "material": MATERIALS,
        "condition": CONDITIONS,
        "object": [noun for noun in THINGS if noun not in there],
        "shape": [noun for noun in cast.shapes if noun not in there],
    }
    others = [value for value in values[kind] if value != getattr(group, kind_field(kind))]
    return others[int(rng.integers(len(others)))]


def _misread(rng: np.random.Generator, text: str) -> str:
    """The text with one letter changed."""
    place = int(rng.integers(len(text)))
    letters = [letter for letter in LETTERS if letter != text[place]]
    return text[:place] + letters[int(rng.integers(len(letters)))] + text[place + 1 :]


def _spatial_error(rng: np.random.Generator, scene: CaptionScene) -> Error:
    groups, grid = scene.groups, scene.grid
    taken = {group.cell for group in groups}
    turned = [
        (subject, anchor, relation)
        for subject, group in enumerate(groups)
        for anchor, other in enumerate(groups)
        for relation in RELATIONS
        if subject != anchor and holds(relation, group, other) and _has_room(OPPOSITES[relation], other, grid, taken)
    ]
    if turned and rng.random() < 0.5:
        subject, anchor, relation = turned[int(rng.integers(len(turned)))]
        return Error("spatial", subject, groups[subject], anchor=anchor, relation=relation)
    free = [(x, y) for x in range(grid) for y in range(grid) if (x, y) not in taken]
    subject = int(rng.integers(len(groups)))
    return Error("spatial", subject, dataclasses.replace(groups[subject], cell=free[int(rng.integers(len(free)))]))


def _has_room(relation: str, anchor: Group, grid: int, taken: set[tuple[int, int]]) -> bool:
    """Whether a free cell lies that way from the anchor; else the words alone would show the error."""
    step = RELATIONS[relation]
    free = [(x, y) for x in range(grid) for y in range(grid) if (x, y) not in taken]
    return any(step[0] * (x - anchor.cell[0]) + step[1] * (y - anchor.cell[1]) > 0 for x, y in free)


def write_pair(
    rng: np.random.Generator, scene: CaptionScene, error: Error, words: tuple[int, int]
) -> tuple[Caption, Caption]:
    """The true caption and the falsified one, which differ in one unit.

    Args:
        rng: the row's generator.
        scene: what they are about.
        error: what is falsified.
        words: least and most words; the most is at least `_LEAST_RANGE` above the least.
    """
    for richness in (1.0, 0.0):
        plan = plan_caption(rng, scene, error, words, richness)
        true = tell(plan, scene.groups, scene.grid, scene.ground)
        if words[0] <= len(true.text.split()) <= words[1]:
            break
    return true, _falsified(plan, scene, error)


def _falsified(plan: Sequence[Statement], scene: CaptionScene, error: Error) -> Caption:
    groups = list(scene.groups)
    groups[error.subject] = error.false_group
    turned = [
        dataclasses.replace(statement, relation=OPPOSITES[error.relation])
        if error.relation and statement.subject == error.subject and statement.form == "intro"
        else statement
        for statement in plan
    ]
    return tell(turned, groups, scene.grid, scene.ground)


def plan_caption(
    rng: np.random.Generator, scene: CaptionScene, error: Error, words: tuple[int, int], richness: float
) -> list[Statement]:
    """Introductions of all groups in random order, then more sentences until there are `words[0]` words.

    With `richness` 0 the introductions are as short as can be, which leaves most for sentences of their own.
    """
    plan = _introductions(rng, scene, error, richness)

    def length() -> int:
        return len(tell(plan, scene.groups, scene.grid, scene.ground).text.split())

    pairs = zip(
        tell(plan, scene.groups, scene.grid, scene.ground).units, _falsified(plan, scene, error).units, strict=True
    )
    taken = {unit.text for pair in pairs if pair[0] != pair[1] for unit in pair}
    for extra in _extras(rng, scene, error, plan):
        if length() >= words[0]:
            break
        told = tell([extra], scene.groups, scene.grid, scene.ground)
        # A phrase that stands twice could not be pointed at.
        if not any(unit.text in taken for unit in told.units):
            last = max((i for i, statement in enumerate(plan) if statement.subject == extra.subject), default=-1)
            plan.insert(last + 1, extra)
    return plan


def _introductions(rng: np.random.Generator, scene: CaptionScene, error: Error, richness: float) -> list[Statement]:
    """One sentence a group, and the falsified one if it stands alone."""
    order = [int(i) for i in rng.permutation(len(scene.groups))]
    if error.relation:
        first, second = sorted((order.index(error.subject), order.index(error.anchor)))
        order[first], order[second] = error.anchor, error.subject
    plan: list[Statement] = []
    placed: list[int] = []
    for subject in order:
        adjectives = tuple(
            adjective
            for adjective in ADJECTIVES
            if (subject == error.subject and adjective in error.adjectives)
            or (rng.random() < 0.4 * richness and (subject != error.subject or adjective != error.form))
        )
        anchor, relation = _placing(rng, scene, error, subject, placed)
        template = int(rng.integers(NUM_TEMPLATES)) if richness else 0
        plan.append(Statement("intro", subject, template, adjectives, anchor, relation))
        if not relation:
            placed.append(subject)
        if subject == error.subject and error.form != "intro":
            plan.append(Statement(error.form, subject))
    return plan


def _placing(
    rng: np.random.Generator, scene: CaptionScene, error: Error, subject: int, placed: Sequence[int]
) -> tuple[int, str]:
    """By which earlier group and how a group is placed; `(-1, "")` where it is by its cell."""
    if subject == error.subject and error.kind == "spatial":
        return error.anchor, error.relation
    found = [] if subject == error.anchor else _relations(scene, error, subject, placed)
    return found[int(rng.integers(len(found)))] if found and rng.random() < 0.3 else (-1, "")


def _relations(scene: CaptionScene, error: Error, subject: int, anchors: Sequence[int]) -> list[tuple[int, str]]:
    """True relations of a group to others that may be named again, in words that the falsified phrase leaves free."""
    groups = scene.groups
    taken = {error.relation, OPPOSITES.get(error.relation)}
    return [
        (anchor, relation)
        for anchor in anchors
        for relation in RELATIONS
        if anchor != subject
        and not (anchor == error.subject and error.hides)
        and not (anchor == error.anchor and relation in taken)
        and holds(relation, groups[subject], groups[anchor])
    ]


def _extras(rng: np.random.Generator, scene: CaptionScene, error: Error, plan: Sequence[Statement]) -> list[Statement]:
    """Further true sentences in random order; none about what is falsified."""
    extras = [Statement("ground", -1)]
    intros = [statement for statement in plan if statement.form == "intro"]
    placed = [statement.subject for statement in intros if not statement.relation]
    for intro in intros:
        subject, group = intro.subject, scene.groups[intro.subject]
        forms: tuple[Adjective, ...] = ADJECTIVES if group.size else ADJECTIVES[1:]
        if group.noun != SIGN:
            alone = [form for form in forms if form not in intro.adjectives]
            extras += [Statement(form, subject) for form in alone if subject != error.subject or form != error.form]
        if subject != error.subject or error.kind != "spatial":
            related = _relations(scene, error, subject, placed)
            extras += [
                Statement("relation", subject, anchor=anchor, relation=relation)
                for anchor, relation in related
                if (anchor, relation) != (intro.anchor, intro.relation)
            ]
    return [extras[int(i)] for i in rng.permutation(len(extras))]
