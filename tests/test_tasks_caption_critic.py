"""caption_critic: true captions with exactly one falsehood, read by a reader of its own; only that phrase is paid."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_rows import DIFFICULTIES, INDICES, geometry_of, picture, question, score, the_task
from PIL import Image

from mmreason.boxes import Frame
from mmreason.config.compose import compose
from mmreason.config.schema import TaskConfig
from mmreason.data.base import build_task
from mmreason.data.caption_critic import KINDS, CaptionCriticOptions
from mmreason.data.caption_scenes import (
    CONDITIONS,
    MATERIALS,
    SIGN,
    THINGS,
    Group,
    cast_of,
    copy_boxes,
    draw_caption_scene,
    draw_group,
)
from mmreason.data.captions import Caption, Statement, tell
from mmreason.data.scenes import COLORS, SHAPES, SUPERSAMPLE
from mmreason.records import Row
from mmreason.rewards.caption_critic import caption_critic, occurrences, words_of

# caption_critic: an independent reader of captions


COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
SINGULAR = {"crosses": "cross", "fish": "fish"}
_NAME = (
    rf"(?P<count>{'|'.join(COUNTS)}) (?:(?P<size>small|large) )?(?:(?P<condition>{'|'.join(CONDITIONS)}) )?"
    rf"(?:(?P<material>{'|'.join(MATERIALS)}) )?(?P<color>{'|'.join(COLORS)}) (?P<noun>[a-z]+)(?: with the text (?P<text>[A-Z]+))?"
)
_PLACE = r"in the (?P<place>(?:top|middle|bottom) (?:left|center|right))(?: of the picture)?"
_RELATION = r"(?P<relation>left of|right of|above|below) the (?P<anchor>[a-z]+)"
_INTRODUCTIONS = [
    re.compile(rf"(?:There (?:is|are)|You can see|The picture shows) {_NAME} (?:{_PLACE}|{_RELATION})", re.IGNORECASE),
    re.compile(rf"{_PLACE} (?:there (?:is|are)|you can see) {_NAME}", re.IGNORECASE),
]
_LATER = re.compile(
    rf"(?P<pronoun>It|They) (?:(?:is|are) made of (?P<material>wood|metal|glass|stone)|(?:is|are) (?P<size>small|large)|"
    rf"(?:is|are) {_RELATION}|(?:has|have) (?P<damage>a crack|a hole|no damage))"
)
_DAMAGE = {"a crack": "cracked", "a hole": "pierced", "no damage": "whole"}


def singular(noun: str) -> str:
    return SINGULAR.get(noun, noun if noun in (*SHAPES, *THINGS, SIGN) else noun.removesuffix("s"))


def place_of(group: Group, size: tuple[int, int], grid: int) -> str:
    """From the centre of the drawn box, not from the cell."""
    x1, y1, x2, y2 = group.box
    words = (
        (("top", "bottom"), ("left", "right"))
        if grid == 2
        else (("top", "middle", "bottom"), ("left", "center", "right"))
    )
    column, row = int(grid * (x1 + x2) / 2 / size[0]), int(grid * (y1 + y2) / 2 / size[1])
    return f"{words[0][row]} {words[1][column]}"


def relation_holds(relation: str, a: Group, b: Group) -> bool:
    (ax, ay), (bx, by) = (((g.box[0] + g.box[2]) / 2, (g.box[1] + g.box[3]) / 2) for g in (a, b))
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[relation]


def check_caption(text: str, row: Row) -> list[tuple[str, str]]:
    """`(kind, value)` of every claim of a caption that is false of the picture; fails on a sentence that it cannot read."""
    groups: tuple[Group, ...] = row.columns["groups"]
    false: list[tuple[str, str]] = []
    subject: Group | None = None
    assert text.endswith(".")
    for sentence in text.removesuffix(".").split(". "):
        if sentence.startswith("The background is "):
            corner = np.asarray(picture(row).convert("L"), np.float64)
            border = np.median(np.concatenate([corner[0], corner[-1], corner[:, 0], corner[:, -1]]))
            assert sentence.endswith("light" if border > 120 else "dark")
            continue
        later = _LATER.fullmatch(sentence)
        if later is not None:
            assert subject is not None
            false += _false_later(later, subject, groups)
            continue
        found = next((m for m in (form.fullmatch(sentence) for form in _INTRODUCTIONS) if m), None)
        assert found is not None, f"unread: {sentence}"
        subject, wrong = _read_introduction(found, groups, picture(row).size, row.columns["grid"])
        false += wrong
    return false


def _false_later(said: re.Match[str], subject: Group, groups: tuple[Group, ...]) -> list[tuple[str, str]]:
    assert (said["pronoun"] == "It") == (subject.count == 1)
    if said["material"]:
        material = {"wood": "wooden"}.get(said["material"], said["material"])
        return [] if subject.material == material else [("material", material)]
    if said["damage"]:
        return [] if subject.condition == _DAMAGE[said["damage"]] else [("condition", said["damage"])]
    if said["size"]:
        assert subject.size == said["size"]
        return []
    (anchor,) = [group for group in groups if group.noun == singular(said["anchor"])]
    return [] if relation_holds(said["relation"], subject, anchor) else [("spatial", said["relation"])]


def _read_introduction(
    said: re.Match[str], groups: tuple[Group, ...], size: tuple[int, int], grid: int
) -> tuple[Group, list[tuple[str, str]]]:
    """The group meant, and what is said falsely: the noun if no group has it, else whatever does not fit."""
    noun = singular(said["noun"])
    meant = [group for group in groups if group.noun == noun]
    if meant:
        return meant[0], _false_in_introduction(said, meant[0], groups, size, grid)
    # A noun that is not there: then the group is meant that the rest fits best.
    alike = [group for group in groups if (group.noun in THINGS) == (noun in THINGS) and group.noun != SIGN]
    wrong = [_false_in_introduction(said, group, groups, size, grid) for group in alike]
    best = min(range(len(alike)), key=lambda i: len(wrong[i]))
    return alike[best], [("object" if noun in THINGS else "shape", noun), *wrong[best]]


def _false_in_introduction(
    said: re.Match[str], group: Group, groups: tuple[Group, ...], size: tuple[int, int], grid: int
) -> list[tuple[str, str]]:
    """All but the noun."""
    parts = said.groupdict()
    facts = {"count": group.count, "color": group.color, "material": group.material, "condition": group.condition}
    told = {**parts, "count": COUNTS[parts["count"]]}
    false = [(kind, str(told[kind])) for kind, fact in facts.items() if told[kind] is not None and told[kind] != fact]
    if parts["size"] not in (None, group.size):
        false.append(("size", parts["size"]))
    if parts["text"] is not None and parts["text"] != group.text:
        false.append(("text", parts["text"]))
    if parts["place"] is not None and parts["place"] != place_of(group, size, grid):
        false.append(("spatial", parts["place"]))
    if parts.get("relation") is not None:
        (anchor,) = [other for other in groups if other.noun == singular(parts["anchor"])]
        if not relation_holds(parts["relation"], group, anchor):
            false.append(("spatial", parts["relation"]))
    return false


@given(index=INDICES, difficulty=DIFFICULTIES)
@settings(max_examples=150, deadline=None)
def test_exactly_one_phrase_of_a_caption_is_false_and_it_is_the_target(index: int, difficulty: int) -> None:
    row = the_task("caption_critic", difficulty).row(index)
    target = row.target
    assert check_caption(row.columns["original_caption"], row) == []
    ((kind, value),) = check_caption(target["caption"], row)
    assert kind == row.columns["kind"]
    caption, original = words_of(target["caption"]), words_of(row.columns["original_caption"])
    assert len(occurrences(words_of(target["span"]), caption)) == 1
    assert len(occurrences(words_of(target["original_span"]), original)) == 1
    assert target["caption"].count(target["span"]) == 1
    assert target["caption"].replace(target["span"], target["original_span"]) == row.columns["original_caption"]
    assert 2 <= len(target["span"].split()) <= 5
    if kind != "count":
        assert value.casefold() in " ".join(words_of(target["span"])) or value == "wooden"
    low, high = CaptionCriticOptions(difficulty=difficulty).word_range
    assert low <= len(target["caption"].split()) <= high
    assert question(row).endswith(target["caption"])


@given(
    index=INDICES, low=st.integers(20, 192), room=st.integers(8, 60), kind=st.sampled_from(KINDS), sign=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_any_length_from_20_to_200_words_and_any_kind_can_be_had(
    index: int, low: int, room: int, kind: str, sign: bool
) -> None:
    high = min(200, low + room)
    kinds = sorted({kind, "text"}) if sign and high >= 40 else [kind]
    if "text" in kinds and high < 40:
        return
    row = build_task(TaskConfig(name="caption_critic", words=[low, high], kinds=kinds), 0).row(index)
    assert low <= len(row.target["caption"].split()) <= high
    assert row.columns["kind"] in kinds
    assert check_caption(row.columns["original_caption"], row) == []
    assert [found for found, _ in check_caption(row.target["caption"], row)] == [row.columns["kind"]]


def test_the_eight_kinds_come_equally_often() -> None:
    kinds = [the_task("caption_critic").row(i).columns["kind"] for i in range(400)]
    assert all(30 <= kinds.count(kind) <= 72 for kind in KINDS)


def test_words_alone_do_not_show_a_second_mention_of_what_is_falsified() -> None:
    """A falsified noun is named once; a falsified place is one that nothing else is said to be in."""
    for index in range(150):
        row = the_task("caption_critic", 3).row(index)
        words = words_of(row.target["caption"])
        if row.columns["kind"] in ("shape", "object"):
            assert words.count(words_of(row.target["span"])[-1]) == 1
            assert words_of(row.target["original_span"])[-1] not in words


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("count", {"count": 3}),
        ("material", {"material": "stone"}),
        ("material", {"material": "glass"}),
        ("material", {"material": "metal"}),
        ("color", {"color": "green"}),
        ("object", {"noun": "tree"}),
        ("shape", {"noun": "star"}),
        ("condition", {"condition": "cracked"}),
        ("condition", {"condition": "pierced"}),
        ("spatial", {"box": (50.0, 50.0, 90.0, 90.0)}),
        ("text", {"noun": SIGN, "text": "MAT"}),
    ],
)
def test_each_kind_of_fact_is_visible(kind: str, change: dict[str, Any]) -> None:
    """Two pictures that differ in one fact differ in many pixels, and only inside the boxes."""
    noun = {"object": "house", "text": SIGN}.get(kind, "square")
    base = Group(
        2 if kind == "count" else 1, "red", noun, (0, 0), "wooden", "whole", text="MAX" if noun == SIGN else ""
    )
    base = replace(base, box=(4.0, 4.0, 46.0, 46.0))
    changed = replace(base, **change)
    drawn = []
    for group in (base, changed):
        canvas = Image.new("RGB", (SUPERSAMPLE * 100, SUPERSAMPLE * 100), (200, 200, 200))
        draw_group(canvas, group, np.random.default_rng(0))
        drawn.append(np.asarray(canvas.reduce(SUPERSAMPLE), np.float64))
    differs = np.abs(drawn[0] - drawn[1]).max(axis=2) > 40
    assert differs.sum() > 40
    ys, xs = np.nonzero(differs)
    left, top, right, bottom = (f(a, b) for f, a, b in zip((min, min, max, max), base.box, changed.box, strict=True))
    assert left - 1 <= xs.min() <= xs.max() <= right + 1
    assert top - 1 <= ys.min() <= ys.max() <= bottom + 1


@given(seed=st.integers(0, 2**31), num_groups=st.integers(2, 8), difficulty=DIFFICULTIES, sign=st.booleans())
@settings(max_examples=60, deadline=None)
def test_groups_lie_apart_in_their_cells_with_exact_boxes(
    seed: int, num_groups: int, difficulty: int, sign: bool
) -> None:
    sign = sign and num_groups > 2
    scene = draw_caption_scene(np.random.default_rng(seed), cast_of(difficulty), num_groups, sign, (112, 160))
    width, height = scene.image.size
    assert len(scene.groups) == num_groups == len({g.noun for g in scene.groups}) == len({g.cell for g in scene.groups})
    assert any(g.count > 1 for g in scene.groups)
    assert sum(g.noun == SIGN for g in scene.groups) == sign
    assert any(g.noun in THINGS for g in scene.groups)
    assert any(g.noun in SHAPES for g in scene.groups)
    for group in scene.groups:
        x1, y1, x2, y2 = group.box
        assert group.cell[0] * width / scene.grid <= x1 < x2 <= (group.cell[0] + 1) * width / scene.grid + 1e-9
        assert group.cell[1] * height / scene.grid <= y1 < y2 <= (group.cell[1] + 1) * height / scene.grid + 1e-9
        boxes = np.asarray(copy_boxes(group))
        assert len(boxes) == group.count
        hull = (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))
        assert hull == pytest.approx(group.box)


def test_a_caption_says_what_its_plan_says() -> None:
    fish = Group(2, "orange", "fish", (0, 0), "wooden", "cracked")
    sign = Group(1, "red", SIGN, (1, 1), text="HAT")
    plan = [
        Statement("ground", -1),
        Statement("intro", 0, 0, ("condition", "material")),
        Statement("relation", 0, anchor=1, relation="left of"),
        Statement("intro", 1, 1),
        Statement("condition", 0),
        Statement("material", 0),
    ]
    caption = tell(plan, (fish, sign), 2, "dark")
    assert isinstance(caption, Caption)
    assert caption.text == (
        "The background is dark. There are two cracked wooden orange fish in the top left. They are left of the sign. "
        "In the bottom right there is one red sign with the text HAT. They have a crack. They are made of wood."
    )
    assert [unit.text for unit in caption.units] == [
        "two cracked wooden orange fish",
        "the top left",
        "left of the sign",
        "the bottom right",
        "one red sign",
        "the text HAT",
        "a crack",
        "made of wood",
    ]
    assert caption.units[0].spans == {
        "color": "orange fish",
        "object": "orange fish",
        "material": "wooden orange fish",
        "condition": "cracked wooden orange fish",
        "count": "two cracked wooden orange fish",
    }


@given(index=INDICES, difficulty=DIFFICULTIES)
@settings(max_examples=40, deadline=None)
def test_only_the_false_phrase_is_paid(index: int, difficulty: int) -> None:
    row = the_task("caption_critic", difficulty).row(index)
    target, units = row.target, row.columns["units"]
    assert score(row, target["span"]) == score(row, target["span"].upper()) == 1.0
    wrong = [
        target["caption"],
        target["original_span"],
        "",
        "none",
        row.columns["kind"],
        ". ".join(target["caption"].split(". ")[:2]),
    ]
    wrong += [unit.text for unit, true in zip(units, row.columns["true_units"], strict=True) if unit == true]
    wrong.append(", ".join(unit.text for unit in units))
    changed = [
        i
        for i, (a, b) in enumerate(zip(words_of(target["span"]), words_of(target["original_span"]), strict=True))
        if a != b
    ]
    assert len(changed) >= 1
    for answer in wrong:
        if len(answer.split()) > len(target["span"].split()) + 3 or target["span"] not in answer:
            assert caption_critic(target, answer) == 0.0, answer
    # A whole name, with the phrase somewhere in it, is paid by the published reward and not by the configured one.
    (whole,) = [unit.text for unit, true in zip(units, row.columns["true_units"], strict=True) if unit != true]
    assert score(row, whole) == float(whole == target["span"])
    assert caption_critic(target, whole) == float(len(whole.split()) <= len(target["span"].split()) + 3)
    assert compose("train", ["task=caption_critic"]).config.reward.active()["caption_critic"]["strict"] is True
    # One word of the phrase that is the same in both captions is no answer.
    same = [w for i, w in enumerate(target["span"].split()) if i not in changed]
    assert all(caption_critic(target, word) == 0.0 for word in same)


def test_looking_goes_through_the_claims_up_to_the_wrong_one() -> None:
    for index in range(40):
        row = the_task("caption_critic", 2).row(index)
        text = the_task("caption_critic", 2).trace(row, "look", geometry_of(row), Frame.resized_px)
        listed, checked = text.removeprefix("<think>").split("</think>")[0].split(". ")
        assert listed.count("[") == len(row.columns["groups"])
        verdicts = [step.rpartition(" ")[2] for step in checked.split(", ")]
        assert verdicts == ["yes"] * (len(verdicts) - 1) + ["no"]
        assert row.target["span"] in checked.split(", ")[-1]
