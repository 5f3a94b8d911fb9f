"""Preference pairs: a JSONL file of chosen and rejected completions, checked and made into `PreferencePair`s.

Enters: a `DataConfig` whose file holds pairs, and which steps of a pair count. Leaves: a `PairFile` with the usable pairs
and the others, each with its line and reason; with `on_bad_row=raise` the first bad pair is a `DataError`. A line is

    {"question": "<image>Where is the cat?", "image": "cat.jpg", "chosen": "[31, 40, …]", "rejected": "[0, 0, …]"}

with the prompt in any form of `row_forms`; it is one step, called `answer`. Pairs with several steps (VisRL, arXiv 2503.07523)
hold one such object for each, and a side that has a prompt of its own, such as its own crop, is a row with a `completion`:

    {"id": "7", "steps": {"box":    {"messages": […], "images": ["7.png"], "chosen": "[31, …]", "rejected": "[0, …]"},
                          "answer": {"chosen":   {"messages": […], "images": ["7.png", "7a.png"], "completion": "red"},
                                     "rejected": {"messages": […], "images": ["7.png", "7b.png"], "completion": "blue"}}}}

A side may also be written as a list of one assistant turn, as TRL does. Boxes in completions are the model's own text: they
are in the frame of the family that wrote them. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmreason.config.schema import DataConfig
from mmreason.data.readers import (
    Inspect,
    RowFile,
    SkippedRow,
    existing_file,
    image_loader,
    json_values,
    once_each,
    placed_row,
)
from mmreason.data.row_forms import RowProblem, interpret, refuse_control
from mmreason.errors import DataError, ImageError
from mmreason.images import ImageLoader, ImageRefused
from mmreason.records import Row

#: The one step of a pair that names none.
ONLY_STEP = "answer"
SIDES = ("chosen", "rejected")
#: More steps than this are no pair of turns but a mistake.
MAX_STEPS = 16
_OF_A_PAIR = frozenset({"id", "steps"})
#: A pair needs no target; with boxes in it, a model is told how to write boxes, as it was when the pair was sampled.
_TARGETS = ("target", "answer", "solution")


@dataclass(frozen=True, slots=True)
class Side:
    """A prompt and what was written."""

    row: Row
    completion: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One question with what should be likelier and what should not, by step.

    Attributes:
        id: unique in its file.
        steps: step -> (chosen, rejected); the two have equal prompts unless the file gave each its own.
    """

    id: str
    steps: Mapping[str, tuple[Side, Side]]


@dataclass(frozen=True, slots=True)
class PairFile:
    """What a file of pairs holds: usable pairs in file order, and the others."""

    path: str
    pairs: list[PreferencePair]
    skipped: list[SkippedRow] = field(default_factory=list)

    @property
    def skipped_by_kind(self) -> dict[str, int]:
        """Kind of problem -> number of skipped pairs."""
        return RowFile(self.path, [], self.skipped).skipped_by_kind


def read_pairs(config: DataConfig, steps: Collection[str] = (ONLY_STEP,)) -> PairFile:
    """Read and check a file of pairs, every image decoded.

    Args:
        config: where the file and its images are, and what a bad pair does.
        steps: those that every pair must have; others are left out.

    Raises:
        DataError: no such file, no usable pair, or, with `on_bad_row=raise`, the first bad pair.
        ImageError: the image root is not a folder.
    """
    path = existing_file(config)
    loader = image_loader(config)
    size_of = once_each(lambda image: loader.open(image).size)
    pairs: list[PreferencePair] = []
    skipped: list[SkippedRow] = []
    seen: dict[str, int] = {}
    for line, value in json_values(path):
        try:
            pair = _pair(value, f"{path.name}:{line}", steps, _Images(loader, size_of))
            if pair.id in seen:
                raise RowProblem("duplicate id", f"'{pair.id}' is also the id of line {seen[pair.id]}; make ids unique")
        except RowProblem as problem:
            skipped.append(SkippedRow(line, str(problem), problem.kind))
        except ImageError as error:
            kind = f"image: {error.kind}" if isinstance(error, ImageRefused) else "image: refused"
            skipped.append(SkippedRow(line, f"image {error}", kind))
        else:
            seen[pair.id] = line
            pairs.append(pair)
            continue
        if config.on_bad_row == "raise":
            raise DataError(
                f"{path}:{line}: {skipped[-1].reason}. Fix the pair, or leave bad ones out with data.on_bad_row=skip."
            )
    if not pairs:
        bad = f" {len(skipped)} bad ones, line {skipped[0].line}: {skipped[0].reason}." if skipped else ""
        raise DataError(f"{path} holds no usable pair.{bad} `mmreason collect collect.pairs=true` writes such files.")
    return PairFile(str(config.path), pairs, skipped)


@dataclass(frozen=True)
class _Images:
    loader: ImageLoader
    size_of: Inspect


def _pair(value: object, place: str, wanted: Collection[str], images: _Images) -> PreferencePair:
    if isinstance(value, RowProblem):
        raise value
    if not isinstance(value, dict):
        raise RowProblem("not a JSON object", "a pair is an object with `chosen` and `rejected`")
    pair_id = value.get("id", place)
    if isinstance(pair_id, bool) or not isinstance(pair_id, (str, int)) or pair_id == "":
        raise RowProblem("bad id", "`id` must be a text or a whole number")
    written = _steps(value)
    missing = [name for name in wanted if name not in written]
    if missing:
        has = ", ".join(f"`{name:.40}`" for name in written)
        raise RowProblem(
            "missing step", f"dpo.step_weights asks for step `{missing[0]}`, and this pair has {has or 'none'}"
        )
    steps = {name: _step(written[name], f"{pair_id}/{name}", name, images) for name in wanted}
    return PreferencePair(str(pair_id), steps)


def _steps(value: dict[str, Any]) -> dict[str, Any]:
    if "steps" not in value:
        return {ONLY_STEP: {name: part for name, part in value.items() if name not in _OF_A_PAIR}}
    steps = value["steps"]
    if any(side in value for side in SIDES):
        raise RowProblem("bad pair", "`steps` and `chosen`/`rejected` are both there; keep one")
    if not isinstance(steps, dict) or not 0 < len(steps) <= MAX_STEPS:
        raise RowProblem("bad pair", f"`steps` must be an object of 1 to {MAX_STEPS} steps")
    return steps


def _step(value: object, place: str, name: str, images: _Images) -> tuple[Side, Side]:
    if not isinstance(value, dict) or not all(side in value for side in SIDES):
        raise RowProblem("bad pair", f"step `{name:.40}` needs `chosen` and `rejected`")
    prompt = {key: part for key, part in value.items() if key not in SIDES}
    chosen, rejected = (_side(value[side], prompt, f"{place}/{side}", side, images) for side in SIDES)
    if not chosen.completion.strip():
        raise RowProblem("bad pair", f"step `{name:.40}`: `chosen` is empty")
    same_prompt = (chosen.row.messages, chosen.row.images) == (rejected.row.messages, rejected.row.images)
    if same_prompt and chosen.completion == rejected.completion:
        raise RowProblem("nothing to prefer", f"step `{name:.40}`: chosen and rejected are the same")
    return chosen, rejected


def _side(value: object, prompt: dict[str, Any], row_id: str, side: str, images: _Images) -> Side:
    """One side: a text after the step's prompt, or a row of its own."""
    if isinstance(value, dict) and "completion" in value:
        prompt, text = {key: part for key, part in value.items() if key != "completion"}, value["completion"]
    else:
        text = _turn_text(value)
    if not isinstance(text, str):
        raise RowProblem("bad pair", f"`{side}` must be a text, or a row with a text `completion`")
    refuse_control(text, f"`{side}`: leave it out, the end of the turn is added by itself")
    if not any(prompt.get(key) is not None for key in _TARGETS):
        prompt = {**prompt, "target": {}}
    raw = interpret({**prompt, "id": row_id})
    if raw.columns.get("completion") is not None:
        raise RowProblem("bad pair", f"the prompt of `{side}` holds a completion; it must end with the user's turn")
    row, _ = placed_row(raw, row_id, "", images.loader, images.size_of)
    return Side(row, text)


def _turn_text(value: object) -> object:
    """The text of a list of one assistant turn; anything else as it is."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        turn = value[0]
        if turn.get("role") == "assistant" and set(turn) == {"role", "content"}:
            return turn["content"]
    return value
