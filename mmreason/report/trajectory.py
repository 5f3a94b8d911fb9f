"""Rollouts with tools as the page shows them: who wrote which tokens, the calls, and the pictures in their places.

What enters: one record of `rollouts.jsonl`, hostile. What leaves: plain dicts ready for JSON. No HTML here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmreason.report.texts import MAX_ITEMS, Segment, cut_middle, items, number, segments_of, shorten

Record = Mapping[str, Any]

#: Stretches of tokens, pictures and calls of one rollout.
MAX_SPANS, MAX_PICTURES, MAX_CALLS = 200, 64, 200
#: Characters of the arguments of a call, and of a stretch, whatever the others need.
MAX_ARGUMENT_CHARS, MIN_SPAN_CHARS = 2_000, 400
#: Reasons to end that mean that an episode was cut off.
CUT_OFF = ("length", "budget")

_PICTURE = re.compile(r"\[(img_[0-9]{1,4})\]")


def describe_trajectory(record: Record, max_chars: int, *, trains_cut: bool = True) -> dict[str, Any] | None:
    """What the page shows of an episode; `None` for a rollout without tools.

    Args:
        record: of the rollout.
        max_chars: of all its stretches together.
        trains_cut: episodes that were cut off count in the loss (`agent.over_budget=keep`); for records that do not say themselves
            what was trained.

    Returns:
        `spans`: for each stretch `sampled`, `tokens`, how many of them are `trained`, `segments` (of what the model wrote) or `parts` (of what it was shown:
        `["text", …]` or `["picture", id]`) and `calls`; `pictures`: id -> `path`, `tool`, `size`; `rest`: calls that belong to no stretch.
    """
    told = items(record.get("spans"))[:MAX_SPANS]
    trained = _trained(record, told, trains_cut)
    spans = [(*span, count) for span, count in zip(told, trained, strict=True) if _is_span(span)]
    calls = _calls(record)
    if not spans and not any(call["tool"] or call["error"] for call in calls):
        return None
    pictures = _pictures(record)
    share = max(MIN_SPAN_CHARS, max_chars // max(1, len(spans)))
    waiting = _by_turn(calls)
    unseen = dict.fromkeys(pictures)
    described = []
    for sampled, tokens, text, count in spans:
        one: dict[str, Any] = {"sampled": bool(sampled), "trained": count, "tokens": tokens}
        if sampled:
            one["segments"] = cut_middle(segments_of(text), share)
            one["calls"] = next(waiting, [])
        else:
            one["parts"] = list(_parts(text, share, unseen))
        described.append(one)
    return {"spans": described, "pictures": pictures, "rest": [call for group in waiting for call in group]}


def failed_calls(record: Record) -> bool:
    """Whether a turn held no call where it should have, or a call failed."""
    return any(isinstance(turn, Mapping) and turn.get("ok") is False for turn in items(record.get("turns"))[:MAX_CALLS])


def _trained(record: Record, spans: Sequence[object], trains_cut: bool) -> list[float]:
    """How many tokens of each stretch count in the loss: as the record says, else by why the episode ended."""
    told = [number(count) for count in items(record.get("trained"))[:MAX_SPANS]]
    if len(told) == len(spans) and None not in told:
        return [count for count in told if count is not None]
    counts = trains_cut or record.get("stop_reason") not in CUT_OFF
    return [span[1] if counts and _is_span(span) and span[0] == 1 else 0 for span in spans]  # type: ignore[index]


def _is_span(span: object) -> bool:
    if not isinstance(span, list) or len(span) != 3 or not isinstance(span[2], str):
        return False
    return span[0] in (0, 1) and number(span[1]) is not None


def _calls(record: Record) -> list[dict[str, Any]]:
    """Turns with what the page tells of their calls."""
    found = []
    for turn in items(record.get("turns"))[:MAX_CALLS]:
        if not isinstance(turn, Mapping):
            continue
        tool, arguments = turn.get("tool"), turn.get("arguments")
        found.append(
            {
                "starts": bool(turn.get("text")),
                "tool": shorten(tool, 80) if isinstance(tool, str) else "",
                "arguments": _arguments(arguments) if isinstance(arguments, Mapping) else [],
                "ok": turn.get("ok") is not False,
                "error": shorten(str(turn.get("error") or ""), 80),
                "images": int(number(turn.get("num_images")) or 0),
            }
        )
    return found


def _by_turn(calls: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Calls of each turn of the model: the later ones of a turn have no text of their own."""
    group: list[dict[str, Any]] = []
    for call in calls:
        if call["starts"] and group:
            yield [one for one in group if one["tool"] or one["error"]]
            group = []
        group.append(call)
    if group:
        yield [one for one in group if one["tool"] or one["error"]]


def _arguments(arguments: Record) -> list[list[str]]:
    """Names and values, values as JSON."""
    found = []
    for name, value in list(arguments.items())[:MAX_ITEMS]:
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            text = "?"
        found.append([shorten(str(name), 80), shorten(text, MAX_ARGUMENT_CHARS)])
    return found


def _pictures(record: Record) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for picture in items(record.get("pictures"))[:MAX_PICTURES]:
        if not isinstance(picture, Mapping) or not isinstance(picture.get("path"), str):
            continue
        size = [number(side) for side in items(picture.get("size"))]
        found[shorten(str(picture.get("id", "")), 20)] = {
            "path": picture["path"],
            "tool": shorten(str(picture.get("tool") or ""), 80),
            "size": size if len(size) == 2 and None not in size else None,
        }
    return found


def _parts(text: str, max_chars: int, unseen: dict[str, None]) -> Iterator[list[str]]:
    """Text, and the pictures where they stand in it; each once, whatever the text says."""
    position = 0
    for match in _PICTURE.finditer(text):
        if match[1] not in unseen:
            continue
        del unseen[match[1]]
        if match.start() > position:
            yield ["text", _cut(text[position : match.start()], max_chars)]
        yield ["picture", match[1]]
        position = match.end()
    if position < len(text):
        yield ["text", _cut(text[position:], max_chars)]


def _cut(text: str, max_chars: int) -> str:
    pieces: Sequence[Segment] = cut_middle([("text", text)], max_chars)
    return "".join(piece for _, piece in pieces)
