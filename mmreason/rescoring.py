"""Reading saved rollouts back, so that any reward can be computed on them again.

What enters: a `rollouts.jsonl` (the records that a run writes, or records of your own with fewer fields).
What leaves: `Rollout` records as rewards take them. Images are not opened; their sizes stand in the record.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.boxes import Frame
from mmreason.errors import DataError
from mmreason.records import ImageGeometry, Rollout, Row, Turn
from mmreason.text import extract_answer

#: Assumed: records do not state patch and merge size; only rewards that count image tokens use them.
_PATCH_SIZE, _MERGE_SIZE = 14, 2
#: Most tokens of one rollout; a larger number is a damaged or hostile record.
MAX_TOKENS = 10_000_000


def rollout_from_record(record: Mapping[str, Any], needs: frozenset[str] = frozenset()) -> Rollout:
    """Rebuild a rollout from its record.

    The answer is taken from `completion` anew, so that a record cannot claim another one. `token_ids` are not
    on record and stay empty.

    Args:
        record: as in `rollouts.jsonl`; only `completion` and what `needs` names must be there. Each image
        needs
            `original_size`, and `model_size` too where boxes are in `resized_px`.
        needs: what the chosen rewards need (`RewardSpec.needs`).

    Raises:
        DataError: a field is missing or has the wrong type; the message names the field, not the file.
    """
    completion = _field(record, "completion", str, None, "the text that the model wrote")
    frame = _frame(record, required=not needs.isdisjoint({"boxes", "box_frame"}))
    geometry = _geometry(record, frame, required="geometry" in needs)
    no_target: dict[str, Any] | None = None if "target" in needs else {}
    target = _field(record, "target", dict, no_target, 'what is right, such as {"boxes": [[x1, y1, x2, y2]]}')
    row = Row(
        id=str(record.get("id", "")),
        messages=tuple(_field(record, "messages", list, [], "the prompt")),
        images=(),
        target=target,
        dataset=_field(record, "dataset", str, "", "the name of the task or file"),
        columns=_field(record, "columns", dict, {}, "the row's other columns"),
    )
    return Rollout(
        row=row,
        group=_field(record, "group", int, 0, "the number of the group"),
        token_ids=(),
        text=completion,
        answer=extract_answer(completion),
        num_tokens=_field(record, "num_tokens", int, 0, "the number of sampled tokens"),
        stop_reason=_field(record, "stop_reason", str, "stop", "stop or length"),
        geometry=geometry,
        box_frame=frame.value,
        step=_field(record, "step", int, 0, "the optimizer step"),
        turns=_turns(record),
        owner=_owner(record),
        forced=_forced(record),
    )


def _turns(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a rollout with tools; records of rollouts without have none."""
    turns = []
    for index, turn in enumerate(_field(record, "turns", list, [], "the turns of a rollout with tools")):
        where = f"turns[{index}]"
        if not isinstance(turn, dict):
            raise DataError(f"'{where}' must be an object with text, tool, arguments and ok, not {turn!r:.80}")
        ok, tool, shown = turn.get("ok", True), turn.get("tool"), turn.get("shown", [])
        if not isinstance(ok, bool):
            raise DataError(f"'{where}.ok' must be true or false (the call was carried out), not {ok!r:.80}")
        if tool is not None and not isinstance(tool, str):
            raise DataError(f"'{where}.tool' must be the name of a tool, or null, not {tool!r:.80}")
        if not isinstance(shown, list) or not all(isinstance(page, str) for page in shown):
            raise DataError(f"'{where}.shown' must be a list of ids, each a text, not {shown!r:.80}")
        arguments = _field(turn, "arguments", dict, {}, f"arguments of the call in {where}")
        num_images = _field(turn, "num_images", int, 0, f"pictures that the call in {where} returned")
        text = _field(turn, "text", str, "", f"what the model wrote in {where}")
        error = _field(turn, "error", str, "", f"why the call in {where} failed")
        turns.append(Turn(text, tool, arguments, ok, num_images, tuple(shown), error, _piece(turn.get("piece"), where)))
    return tuple(turns)


def _owner(record: Mapping[str, Any]) -> tuple[int, ...]:
    """Which tokens the model sampled, from the spans of a rollout with tools."""
    owner: list[int] = []
    for index, span in enumerate(_field(record, "spans", list, [], "the tokens of a rollout with tools")):
        sampled, count = span[:2] if isinstance(span, list) and len(span) == 3 else (None, None)
        known = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        if sampled not in (0, 1) or isinstance(sampled, bool) or not known:
            raise DataError(f"'spans[{index}]' must be [1 if sampled else 0, number of tokens, text], not {span!r:.80}")
        assert isinstance(count, int)
        if len(owner) + count > MAX_TOKENS:
            raise DataError(f"'spans' have more than {MAX_TOKENS:,} tokens; is this a rollout record?")
        owner += [int(sampled)] * count
    return tuple(owner)


def _forced(record: Mapping[str, Any]) -> bool:
    forced = record.get("forced", False)
    if not isinstance(forced, bool):
        raise DataError(f"'forced' must be true or false (the model was told to answer), not {forced!r:.80}")
    return forced


def _piece(given: Any, where: str) -> tuple[float, float, float, float] | None:
    """The part of a picture that a call looked at."""
    if given is None:
        return None
    numbers = isinstance(given, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in given)
    if not numbers or len(given) != 4:
        raise DataError(
            f"'{where}.piece' must be four shares [x1, y1, x2, y2] of a picture, or null, not {given!r:.80}"
        )
    x1, y1, x2, y2 = given
    return x1, y1, x2, y2


def _field(record: Mapping[str, Any], name: str, kind: type, default: Any, meaning: str) -> Any:
    """A field of the right type; null or absent gives the default, and no default makes it required."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise DataError(f"'{name}' is missing: {meaning}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"'{name}' must be {_JSON_NAMES[kind]} ({meaning}), not {value!r:.80}")
    return value


_JSON_NAMES: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def _frame(record: Mapping[str, Any], *, required: bool) -> Frame:
    default = None if required else Frame.original_px.value
    name = _field(record, "box_frame", str, default, "the frame of the model's boxes, such as relative_1000")
    try:
        return Frame(name)
    except ValueError:
        known = ", ".join(frame.value for frame in Frame)
        raise DataError(f"'box_frame' must be one of {known}, not {name!r:.80}") from None


def _geometry(record: Mapping[str, Any], frame: Frame, *, required: bool) -> tuple[ImageGeometry, ...]:
    images = _field(record, "images", list, None if required else [], 'a list of {"original_size": [w, h], ...}')
    geometry = []
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if not isinstance(image, dict):
            raise DataError(f"'{where}' must be an object with original_size and model_size, not {image!r:.80}")
        if "original_size" not in image and not required:
            continue
        original = _size(image, "original_size", where, None)
        model = _size(image, "model_size", where, None if frame is Frame.resized_px and required else original)
        geometry.append(ImageGeometry(original, model, _PATCH_SIZE, _MERGE_SIZE))
    return tuple(geometry)


def _size(image: Mapping[str, Any], name: str, where: str, default: tuple[int, int] | None) -> tuple[int, int]:
    size = image.get(name)
    if size is None and default is not None:
        return default
    pair = isinstance(size, list) and len(size) == 2
    if not pair or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size or ()):
        raise DataError(f"'{where}.{name}' must be [width, height] in pixels, not {size!r:.80}")
    assert isinstance(size, list)
    return size[0], size[1]
