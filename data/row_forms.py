"""The written forms of a row, turned into one: no files, no images opened here.

Enters: one decoded JSON value of a data file. Leaves: a `RawRow`, or `RowProblem` saying what is wrong.

    prompt    `messages` (chat), or `conversations` (VLM-R1's `from`/`value`), or a text called `prompt`,
              `problem` or `question`; the first of these that is there is used. A final assistant turn is the
              gold completion.
    images    `image` or `images`: one path or a list. `<image>` in the text says where; without it, first.
    target    `target` (an object), or `answer`, or `solution`, or else the gold completion. A box quadruple,
              or a list of them, becomes `{"boxes": ...}` in original pixels; other text `{"answer": text}`.
    which     `image_index`, in the target or beside it, says in which image the boxes lie, counted from 0: one
    image     number if the question says it too, a list with a number for each box if the answer has to say it.
              With one image it may be missing; with several it must be there, for nothing else tells.
    boxes in  `{"type": "boxes", "boxes": [...], "label": ..., "image_index": ...}` among the parts of a user turn:
    a prompt  boxes in original pixels, which each model is shown in its own frame (`mmreason.prompt_boxes`).

Whatever is left of the object becomes `columns`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mmreason.boxes import MAX_COORDINATE
from mmreason.prompt_boxes import BOXES_PART
from mmreason.records import Message
from mmreason.text import extract_answer

IMAGE_MARKER = "<image>"
_PROMPT_KEYS = ("messages", "conversations", "prompt", "problem", "question")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
#: Written out in a prompt or in a text to learn, these would become control tokens and break the count of images.
_CONTROL = re.compile(r"<\|(?:im_start|im_end|image_pad|video_pad|vision_pad|vision_start|vision_end)\|>")


class RowProblem(Exception):
    """Why a row cannot be used.

    Attributes:
        kind: two to four words by which problems are counted.
        detail: the particulars and the remedy.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row whose form is right; its images and the place of its boxes are not checked yet.

    Attributes:
        id: as written, or None.
        messages: the prompt, contents as lists of parts; ends with a user turn.
        image_paths: as written, in the order of the image parts.
        target: boxes are lists of four ordinary numbers, answers are text; `image_index` names images that are
            there, and is there itself wherever boxes could lie in several.
        columns: everything else; `completion` holds the gold completion if the row has one.
    """

    id: str | None
    messages: tuple[Message, ...]
    image_paths: tuple[str, ...]
    target: dict[str, Any]
    columns: dict[str, Any]


def interpret(record: object) -> RawRow:
    """Read one JSON value in any of the forms; raises `RowProblem`."""
    if not isinstance(record, dict):
        raise RowProblem("not a JSON object", f"a row is an object {{...}}, this is {_shown(record)}")
    rest = dict(record)
    row_id = _row_id(rest.pop("id", None))
    turns = _turns(rest)
    completion = _text_of(turns.pop()) if turns[-1]["role"] == "assistant" else None
    if not turns or turns[-1]["role"] != "user":
        raise RowProblem("no question", "the turns must end with the user's (after it, at most one gold answer)")
    listed_paths = _listed_paths(rest)
    target = _target(rest, completion)
    if completion is not None:
        rest.setdefault("completion", completion)
    if isinstance(rest.get("completion"), str):
        refuse_control(rest["completion"], "`completion`: leave it out, the end of the turn is added by itself")
    messages, image_paths = _with_images(turns, listed_paths)
    _take_image_index(rest, target)
    _check_image_index(target, len(image_paths))
    for part in (part for turn in messages for part in turn["content"] if part["type"] == BOXES_PART):
        _check_index(part.get("image_index", 0), len(image_paths))
    return RawRow(row_id, messages, image_paths, target, rest)


def _shown(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _row_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RowProblem("bad id", f"`id` must be a text or a whole number, not {_shown(value)}")
    return str(value)


# --------------------------------------------------------------------------------------------- the prompt


def _turns(rest: dict[str, Any]) -> list[Message]:
    """The conversation as `{"role", "content": parts}`; removes its key from `rest`."""
    key = next((name for name in _PROMPT_KEYS if rest.get(name) is not None), None)
    if key is None:
        known = ", ".join(f"`{name}`" for name in _PROMPT_KEYS)
        raise RowProblem("no question", f"none of {known} is there; keys: {_shown(sorted(map(str, rest)), 200)}")
    value = rest.pop(key)
    if isinstance(value, str) and key not in ("messages", "conversations"):
        return [{"role": "user", "content": _parts(value, "user")}]
    if not isinstance(value, list) or not value:
        raise RowProblem("bad question", f"`{key}` must be a list of turns, not {_shown(value)}")
    return [_turn(turn, f"{key}[{place}]") for place, turn in enumerate(value)]


def _turn(turn: object, place: str) -> Message:
    if not isinstance(turn, dict):
        raise RowProblem("bad question", f"{place} must be an object, not {_shown(turn)}")
    written_role = turn.get("role", turn.get("from"))
    role = _ROLES.get(written_role) if isinstance(written_role, str) else None
    if role is None:
        raise RowProblem("bad question", f"{place} has role {_shown(written_role)}; known: {', '.join(_ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return {"role": role, "content": _parts(content, role)}
    if not isinstance(content, list):
        raise RowProblem("bad question", f"{place} needs text in `content` (or `value`), not {_shown(content)}")
    return {"role": role, "content": [made for part in content for made in _given_part(part, role, place)]}


def _given_part(part: object, role: str, place: str) -> list[dict[str, str]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict):
        if kind == "text" and isinstance(part.get("text"), str):
            return _parts(part["text"], role)
        if kind == "image" and role == "user" and isinstance(part.get("image", ""), str):
            return [{"type": "image", "image": part["image"]} if "image" in part else {"type": "image"}]
        if kind == BOXES_PART and role == "user":
            return [_boxes_part(part, place)]
    known = "{'type': 'text', 'text': …} or, for the user, {'type': 'image'}"
    raise RowProblem("bad question", f"{place}: a part is {known}; not {_shown(part)}")


def _boxes_part(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A part of boxes, its numbers and label checked; its image is not known yet."""
    unknown = sorted(map(str, part.keys() - {"type", "boxes", "label", "image_index"}))
    if "boxes" not in part or unknown:
        detail = f"it has {unknown[0]!r:.40}" if unknown else "`boxes` is missing"
        raise RowProblem("bad question", f"{place}: a part of boxes has boxes, label and image_index; {detail}")
    made: dict[str, Any] = {"type": BOXES_PART, "boxes": _boxes(part["boxes"])}
    if part.get("label") is not None:
        if not isinstance(part["label"], str):
            raise RowProblem("bad question", f"{place}: `label` must be a text, not {_shown(part['label'])}")
        refuse_control(part["label"], "the label of boxes: leave it out")
        made["label"] = part["label"]
    if part.get("image_index") is not None:
        made["image_index"] = part["image_index"]
    return made


def _parts(text: str, role: str) -> list[dict[str, str]]:
    """Text cut at `<image>` into parts; only the user's text has image marks."""
    refuse_control(text, f"a turn: write {IMAGE_MARKER} for an image")
    if role != "user":
        return [{"type": "text", "text": text}]
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARKER)):
        if number:
            parts.append({"type": "image"})
        written = piece.removeprefix("\n") if number else piece
        if written.strip():
            parts.append({"type": "text", "text": written})
    return parts


def refuse_control(text: str, place_and_remedy: str) -> None:
    """Raise `RowProblem` if a text holds one of the control tokens of the chat format, written out."""
    found = _CONTROL.search(text)
    if found:
        raise RowProblem("control token in text", f"{found[0]} is the model's own and cannot be in {place_and_remedy}")


def _text_of(message: Message) -> str:
    return "".join(part["text"] for part in message["content"])


# --------------------------------------------------------------------------------------------- the images


def _listed_paths(rest: dict[str, Any]) -> list[str]:
    keys = [key for key in ("image", "images") if rest.get(key) is not None]
    if len(keys) == 2:
        raise RowProblem("bad image list", "`image` and `images` are both there; keep one")
    value = rest.pop(keys[0]) if keys else []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise RowProblem("bad image list", f"`{keys[0]}` must be a path or a list of paths, not {_shown(value)}")
    for key in ("image", "images"):
        rest.pop(key, None)  # a null beside the other one
    return paths


def _with_images(turns: list[Message], listed: list[str]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Every image part matched with its path, in order."""
    parts = [part for turn in turns for part in turn["content"]]
    marks = [part for part in parts if part["type"] == "image"]
    inline = [part.pop("image") for part in marks if "image" in part]
    if inline and (listed or len(inline) != len(marks)):
        raise RowProblem("bad image list", "give image paths either inside the turns or in `images`, not both")
    paths = inline or listed
    if not marks and paths:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = [{"type": "image"} for _ in paths] + first["content"]
    elif len(marks) != len(paths):
        raise RowProblem(
            "image count",
            f"the text has {len(marks)} {IMAGE_MARKER} and the row {len(paths)} images; make them equal",
        )
    if not all(turn["content"] for turn in turns):
        raise RowProblem("no question", "a turn is empty")
    return tuple(turns), tuple(paths)


# --------------------------------------------------------------------------------------------- the target


def _target(rest: dict[str, Any], completion: str | None) -> dict[str, Any]:
    """The target, its key removed from `rest`; `answer` goes before `solution`, which may be a worked one."""
    if rest.get("target") is not None:
        target = rest.pop("target")
        if not isinstance(target, dict):
            example = '{"boxes": [[x1, y1, x2, y2]]} or {"answer": "7"}'
            raise RowProblem("bad target", f"`target` must be an object such as {example}, not {_shown(target)}")
        return _checked_target(dict(target))
    for key in ("answer", "solution"):
        if rest.get(key) is not None:
            return _gold(rest.pop(key), key)
    if completion is not None:
        return _gold(completion, "gold completion")
    raise RowProblem(
        "no target",
        '`target`, `answer` or `solution` is missing; write "target": {} if your rewards need none',
    )


def _checked_target(target: dict[str, Any]) -> dict[str, Any]:
    if "boxes" in target:
        boxes = target["boxes"]
        target["boxes"] = _boxes(boxes)
        labels = target.get("labels")
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(target["boxes"])):
            raise RowProblem("bad target", f"`labels` must list one label for each of {len(target['boxes'])} boxes")
    if "answer" in target:
        target["answer"] = _answer_text(target["answer"], "target.answer")
    return target


def _take_image_index(rest: dict[str, Any], target: dict[str, Any]) -> None:
    """Move an `image_index` beside the target into it; without boxes, such a column is the user's own."""
    if target.get("image_index") is None:
        target.pop("image_index", None)
    if "boxes" not in target:
        if "image_index" in target:
            raise RowProblem("bad image index", "`image_index` of the target says where its boxes lie, and it has none")
        return
    beside = rest.pop("image_index", None)
    if beside is None:
        return
    if "image_index" in target:
        raise RowProblem("bad image index", "`image_index` is in the target and beside it; keep one")
    target["image_index"] = beside


def _check_image_index(target: dict[str, Any], num_images: int) -> None:
    """Every box lies in one known image of the row; a row without images is refused for that later."""
    declared, boxes = target.get("image_index"), target.get("boxes") or []
    if declared is None:
        if boxes and num_images > 1:
            raise RowProblem(
                "box without image index",
                f'the row has {num_images} images: write "image_index" into the target, counted from 0; one number if '
                "the question says which image, a list with one for each box if the answer has to",
            )
        return
    if boxes and not num_images:
        return
    if not isinstance(declared, list):
        _check_index(declared, num_images)
        return
    if len(declared) != len(boxes):
        raise RowProblem("bad image index", f"{len(declared)} numbers for {len(boxes)} boxes: list one for each")
    for index in declared:
        _check_index(index, num_images)


def _check_index(index: object, num_images: int) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_images:
        last = f"; the last of {num_images} images is {num_images - 1}" if num_images else "; the row has no image"
        raise RowProblem("bad image index", f"{_shown(index)} is not the number of an image counted from 0{last}")


def _gold(value: object, key: str) -> dict[str, Any]:
    """A target from a bare value: boxes if it is nothing but boxes, an answer otherwise."""
    if isinstance(value, str):
        tagged = extract_answer(value)
        text = (value if tagged is None else tagged).strip()
        value = text
        if text.startswith("["):
            try:
                listed = json.loads(text)
            except (ValueError, RecursionError):
                listed = None
            if _looks_like_boxes(listed):
                value = listed
    if _looks_like_boxes(value):
        return {"boxes": _boxes(value)}
    return {"answer": _answer_text(value, key)}


def _answer_text(value: object, key: str) -> str:
    if isinstance(value, str) and value.strip():
        refuse_control(value, f"`{key}`: leave it out")
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise RowProblem("bad target", f"`{key}` must be a text or a number, not {_shown(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_quadruple(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value)


def _looks_like_boxes(value: object) -> bool:
    return _is_quadruple(value) or (isinstance(value, list) and bool(value) and all(map(_is_quadruple, value)))


def _boxes(value: object) -> list[list[float]]:
    """`[[x1, y1, x2, y2], ...]` from that or from one bare quadruple; the numbers stay as written."""
    boxes = [value] if _is_quadruple(value) else value
    if not isinstance(boxes, list) or not all(map(_is_quadruple, boxes)):
        raise RowProblem("bad box", f"boxes are lists of four numbers [x1, y1, x2, y2], not {_shown(value)}")
    for box in boxes:
        # The comparison is false for NaN, and exact for whole numbers of any length.
        if not all(-MAX_COORDINATE <= number <= MAX_COORDINATE for number in box):
            raise RowProblem("bad box", f"{_shown(box)} has a number that is not finite")
    return boxes
