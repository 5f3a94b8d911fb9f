"""Captions of caption scenes, in which every claim is known: what is said, in which words, about which group.

What enters: a scene and a plan (who is mentioned how). What leaves: a text and its units, the phrases that claim something. The
same plan told about groups of which one is changed gives the same caption with one phrase falsified.

    There are three cracked wooden red stars in the top left. They are left of the fish.
              `--------- unit ------------'    `--unit--'           `---unit----'

A name is used once: later sentences say `it` or `they`. A group may be named again, by its noun alone, where another is said to be
left of it or below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmreason.data.caption_scenes import SIGN, THINGS, Group

Kind = Literal["count", "material", "spatial", "color", "object", "condition", "shape", "text"]

COUNT_WORDS = ("none", "one", "two", "three", "four", "five")
#: Relation -> its step in columns and rows.
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "center", "right")}

#: What may be said beside a name.
Adjective = Literal["size", "condition", "material"]
ADJECTIVES: tuple[Adjective, ...] = ("size", "condition", "material")
#: What a sentence says: it introduces a group, or adds something about the one before.
Form = Literal["intro", "material", "condition", "size", "relation", "ground"]
#: Ways to introduce a group at a place. {is} is `is` or `are`.
_INTROS = (
    "There {is} {group} in {place}.",
    "In {place} there {is} {group}.",
    "You can see {group} in {place}.",
    "In {place} of the picture you can see {group}.",
    "The picture shows {group} in {place}.",
)
NUM_TEMPLATES = len(_INTROS)
_RELATED_INTROS = ("There {is} {group} {relation}.", "You can see {group} {relation}.")
_SUBSTANCE = {"wooden": "wood", "metal": "metal", "glass": "glass", "stone": "stone"}
_DAMAGE = {"whole": "no damage", "cracked": "a crack", "pierced": "a hole"}


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence of a plan.

    Attributes:
        form: what it says. subject: index of the group; -1 for the ground.
        template: which of the ways to say it.
        adjectives: what an introduction says beside the name.
        anchor, relation: the group that the subject is placed by, and how; an introduction without them names the place.
    """

    form: Form
    subject: int
    template: int = 0
    adjectives: tuple[Adjective, ...] = ()
    anchor: int = -1
    relation: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """A phrase that claims something.

    Attributes:
        text: as it stands in the caption, lower case but for letters on signs.
        spans: kind of claim -> the two to five words around what it claims.
        subject: index of the group.
    """

    text: str
    spans: Mapping[Kind, str]
    subject: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and its units in order."""

    text: str
    units: tuple[Unit, ...]


def place_phrase(cell: tuple[int, int], grid: int) -> str:
    """`the top left`, `the middle center`: a cell of a grid of `grid` cells a side."""
    return f"the {_ROWS[grid][cell[1]]} {_COLUMNS[grid][cell[0]]}"


def holds(relation: str, subject: Group, anchor: Group) -> bool:
    """Whether the subject lies in a column (or row) further left, right, up or down than the anchor."""
    step = RELATIONS[relation]
    return any(step[i] * (subject.cell[i] - anchor.cell[i]) > 0 for i in (0, 1))


def noun_of(group: Group) -> str:
    """The noun in the group's number."""
    if group.count == 1:
        return group.noun
    return {"cross": "crosses", "fish": "fish"}.get(group.noun, f"{group.noun}s")


def name_unit(group: Group, subject: int, adjectives: Sequence[Adjective]) -> Unit:
    """`three cracked wooden red stars`, and which part of it claims what."""
    said = {
        "size": group.size if "size" in adjectives else "",
        "condition": group.condition if "condition" in adjectives else "",
        "material": group.material if "material" in adjectives else "",
    }
    words = [word for word in said.values() if word]
    tail = [group.color, noun_of(group)]
    spans: dict[Kind, str] = {"color": " ".join(tail)}
    if group.noun != SIGN:
        spans["object" if group.noun in THINGS else "shape"] = " ".join(tail)
    if said["material"]:
        spans["material"] = " ".join([said["material"], *tail])
    if said["condition"]:
        spans["condition"] = " ".join([word for word in (said["condition"], said["material"]) if word] + tail)
    whole = " ".join([COUNT_WORDS[group.count], *words, *tail])
    if group.count > 1:
        spans["count"] = whole
    return Unit(whole, spans, subject)


def tell(plan: Sequence[Statement], groups: Sequence[Group], grid: int, ground: str) -> Caption:
    """Write the caption of a plan, about `groups`, on a `light` or `dark` ground."""
    sentences, units = [], []
    for statement in plan:
        text, found = _sentence(statement, groups, grid, ground)
        sentences.append(text)
        units += found
    return Caption(" ".join(sentences), tuple(units))


def _sentence(statement: Statement, groups: Sequence[Group], grid: int, ground: str) -> tuple[str, list[Unit]]:
    if statement.form == "ground":
        return f"The background is {ground}.", []
    group = groups[statement.subject]
    pronoun = "It" if group.count == 1 else "They"
    if statement.form == "intro":
        return _introduction(statement, groups, grid)
    if statement.form == "material":
        span = f"made of {_SUBSTANCE[group.material]}"
        start = f"{pronoun} {_is(group)}"
        kinds: dict[Kind, str] = {"material": span}
    elif statement.form == "condition":
        span = _DAMAGE[group.condition]
        start = f"{pronoun} {'has' if group.count == 1 else 'have'}"
        kinds = {"condition": span}
    elif statement.form == "size":
        span, start, kinds = group.size, f"{pronoun} {_is(group)}", {}
    else:
        span = _relation_phrase(statement, groups)
        start, kinds = f"{pronoun} {_is(group)}", {"spatial": span}
    return f"{start} {span}.", [Unit(span, kinds, statement.subject)]


def _introduction(statement: Statement, groups: Sequence[Group], grid: int) -> tuple[str, list[Unit]]:
    group = groups[statement.subject]
    name = name_unit(group, statement.subject, statement.adjectives)
    units = {"{group}": name}
    template = _INTROS[statement.template % len(_INTROS)]
    if statement.relation:
        template = _RELATED_INTROS[statement.template % len(_RELATED_INTROS)]
        phrase = _relation_phrase(statement, groups)
        units["{relation}"] = Unit(phrase, {"spatial": phrase}, statement.subject)
    else:
        phrase = place_phrase(group.cell, grid)
        units["{place}"] = Unit(phrase, {"spatial": phrase}, statement.subject)
    written = template
    for mark, unit in units.items():
        written = written.replace(mark, unit.text)
    in_order = [units[mark] for mark in sorted(units, key=template.index)]
    if group.noun == SIGN:
        said = f"the text {group.text}"
        written = written.replace(name.text, f"{name.text} with {said}")
        in_order.insert(in_order.index(name) + 1, Unit(said, {"text": said}, statement.subject))
    return written.replace("{is}", _is(group)), in_order


def _relation_phrase(statement: Statement, groups: Sequence[Group]) -> str:
    return f"{statement.relation} the {noun_of(groups[statement.anchor])}"


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"
