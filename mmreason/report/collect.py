"""Turns the records of a run into what the page shows: groups of rollouts with boxes and causes; curves.

What enters: dicts read from `rollouts.jsonl` and `metrics.jsonl`, which may come from anywhere, so no field
is trusted to have its type. What leaves: plain dicts ready for JSON. No HTML here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmreason.boxes import Boxes, Frame
from mmreason.errors import BoxError
from mmreason.labelled_boxes import images_of_answer, images_of_boxes, parse_labelled_boxes
from mmreason.prompt_boxes import BOXES_PART, written_part
from mmreason.records import ImageGeometry
from mmreason.report.texts import MAX_ITEMS, cut_middle, items, number, segments_of, shorten
from mmreason.report.trajectory import describe_trajectory, failed_calls
from mmreason.run_records import read_rollouts

#: Rollouts on one page, and characters of text over all of them.
MAX_ROLLOUTS = 4_000
MAX_TEXT_CHARS = 12_000_000
#: Characters shown of one completion, whatever the others need.
MIN_COMPLETION_CHARS, MAX_COMPLETION_CHARS = 1_500, 30_000
#: Characters shown of one prompt message or target.
MAX_PROMPT_CHARS = 4_000
#: Groups that are told apart while a file is read.
MAX_TRACKED = 100_000
#: Curves of one page.
MAX_CURVES = 400
#: Characters of the name of a curve, and points of one.
MAX_NAME_CHARS, MAX_POINTS = 80, 1_000
#: A predicted box that overlaps less than this with every true one counts as off (accuracy@0.5).
IOU_HIT = 0.5


Record = Mapping[str, Any]
#: Of each image of a row; `None` where a record does not say.
Geometry = tuple[ImageGeometry | None, ...]
Observer = Callable[[Record], None]


def _ignore(record: Record) -> None:
    """Nobody listens."""


def collect_groups(
    path: Path,
    max_groups: int,
    first_reading: Observer = _ignore,
    second_reading: Observer = _ignore,
    *,
    trains_cut: bool = True,
) -> dict[str, Any]:
    """Read the rollouts, twice, and keep at most `max_groups` groups, spread evenly over the run.

    Args:
        path: the file; however large it is, no more than the groups shown and `MAX_TRACKED` keys are in memory.
        max_groups: how many groups to keep.
        first_reading: told every record of the first reading.
        second_reading: told every record of the second one.
        trains_cut: episodes with tools that were cut off count in the loss.

    Returns:
        `groups` (see `describe_group`), and the counts `total_groups` (rounded where not all of them are tracked),
        `total_rollouts`, `shown_rollouts`.

    Raises:
        DataError: a damaged line; a last line cut short by a running job is passed over.
    """
    census = _Census()
    for record in read_rollouts(path, torn_tail="skip"):
        census.add(record)
        first_reading(record)
    kept: dict[bytes, list[Record]] = {key: [] for key in census.chosen(max_groups)}
    for record in read_rollouts(path, torn_tail="skip"):
        members = kept.get(group_key(record))
        if members is not None and len(members) < MAX_ROLLOUTS:
            members.append(record)
        second_reading(record)
    shown = sum(len(members) for members in kept.values())
    max_chars = min(MAX_COMPLETION_CHARS, max(MIN_COMPLETION_CHARS, MAX_TEXT_CHARS // max(1, shown)))
    return {
        # A group may have vanished between the two readings if the run was cut back meanwhile.
        "groups": [describe_group(members, max_chars, trains_cut=trains_cut) for members in kept.values() if members],
        "total_groups": census.total_groups,
        "total_rollouts": census.total_rollouts,
        "shown_rollouts": shown,
    }


class _Census:
    """Counts rollouts and groups; of very many groups, tracks every second one, every fourth one and so on."""

    def __init__(self) -> None:
        self.total_rollouts = 0
        #: Group -> first step and rollouts.
        self._groups: dict[bytes, tuple[float, int]] = {}
        self._stride = 1

    @property
    def total_groups(self) -> int:
        return len(self._groups) * self._stride

    def add(self, record: Record) -> None:
        self.total_rollouts += 1
        key = group_key(record)
        if not self._tracks(key):
            return
        step, size = self._groups.get(key, (number(record.get("step")) or 0.0, 0))
        self._groups[key] = (step, size + 1)
        while len(self._groups) > MAX_TRACKED:
            self._stride *= 2
            self._groups = {key: found for key, found in self._groups.items() if self._tracks(key)}

    def chosen(self, max_groups: int) -> list[bytes]:
        """At most `max_groups` groups, evenly spaced, first and last included; fewer where groups are large."""
        keys = sorted(self._groups, key=lambda key: self._groups[key][0])
        typical = max((size for _, size in self._groups.values()), default=1)
        count = max(1, min(max_groups, len(keys), MAX_ROLLOUTS // typical))
        if count >= len(keys):
            return keys
        if count == 1:
            return [keys[-1]]
        return [keys[round(index * (len(keys) - 1) / (count - 1))] for index in range(count)]

    def _tracks(self, key: bytes) -> bool:
        return int.from_bytes(key[:4], "little") % self._stride == 0


def describe_group(
    records: Sequence[Record], max_chars: int = MAX_COMPLETION_CHARS, *, trains_cut: bool = True
) -> dict[str, Any]:
    """What the page shows of the rollouts of one prompt.

    Args:
        records: rollout records of one group, at least one.
        max_chars: characters kept of a completion; the middle of a longer one is cut out.
        trains_cut: episodes with tools that were cut off count in the loss.
    """
    first = records[0]
    target = first.get("target")
    target = target if isinstance(target, Mapping) else {}
    images = [image for image in items(first.get("images"))[:MAX_ITEMS] if isinstance(image, Mapping)]
    geometry = tuple(_geometry(image) for image in images)
    frame = str(first.get("box_frame") or "")
    truth = _Truth.of(target, geometry)
    rollouts = [_describe_rollout(record, truth, geometry, max_chars, trains_cut) for record in records]
    totals = [rollout["reward"] for rollout in rollouts if rollout["reward"] is not None]
    labels = [shorten(str(label), 60) for label in items(target.get("labels"))[:MAX_ITEMS]]
    lengths = [rollout["tokens"] for rollout in rollouts if rollout["tokens"] is not None]
    return {
        "id": shorten(str(first.get("id", "")), 200),
        "step": number(first.get("step")),
        "dataset": shorten(str(first.get("dataset") or ""), 100),
        "prompt": [_describe_message(message, geometry, frame) for message in items(first.get("messages"))[:MAX_ITEMS]],
        "target": _describe_target(target, labels, truth),
        "labels": labels,
        "true_boxes": [] if truth.boxes is None else truth.boxes.xyxy.tolist(),
        "true_images": truth.images,
        "images": [_describe_image(image, seen) for image, seen in zip(images, geometry, strict=True)],
        "frame": frame,
        "mean": _mean(totals),
        "spread": _spread_of(totals),
        "gap": max(totals) - min(totals) if totals else None,
        "length": _mean(lengths),
        "rollouts": sorted(rollouts, key=lambda rollout: -_or_low(rollout["reward"])),
    }


def collect_series(metrics: Iterable[Record]) -> dict[str, dict[str, list[float | None]]]:
    """Turn metric lines into curves: name -> `{"x": steps, "y": values}`, thinned to `MAX_POINTS` points;
    at most `MAX_CURVES` of them."""
    series: dict[str, dict[str, list[float | None]]] = {}
    for line in metrics:
        step = number(line.get("step"))
        if step is None:
            continue
        for name, value in line.items():
            if name == "step" or isinstance(value, (bool, str, list, dict)):
                continue
            short = shorten(str(name), MAX_NAME_CHARS)
            if short not in series and len(series) >= MAX_CURVES:
                continue
            curve = series.setdefault(short, {"x": [], "y": []})
            curve["x"].append(step)
            curve["y"].append(number(value))
    for curve in series.values():
        stride = -(-len(curve["x"]) // MAX_POINTS)
        if stride > 1:
            last = len(curve["x"]) - 1
            kept = sorted({*range(0, last + 1, stride), last})
            curve["x"] = [curve["x"][index] for index in kept]
            curve["y"] = [curve["y"][index] for index in kept]
    return {name: curve for name, curve in series.items() if any(value is not None for value in curve["y"])}


def group_key(record: Record) -> bytes:
    """What the rollouts of one group have in common: a digest, since a hostile id may be long."""
    group = record.get("group")
    name = f"{record.get('step')}\0{record.get('id') if group is None else group}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()


@dataclass(frozen=True)
class _Truth:
    """What is right for a group, with nothing in it that has another type than it should.

    Attributes:
        boxes: in original pixels of the image of each; `None` if the target is not about boxes.
        images: index of the image of each box, counted from 0; `None` for an image that the row does not have.
        target: the boxes and `image_index`, as `images_of_answer` reads them.
    """

    boxes: Boxes | None
    images: list[int | None]
    target: Record

    @classmethod
    def of(cls, target: Record, geometry: Geometry) -> _Truth:
        boxes = _true_boxes(target)
        declared = target.get("image_index")
        index = [_index(item) for item in declared[:MAX_ITEMS]] if isinstance(declared, list) else _index(declared)
        if boxes is None:
            return cls(None, [], {"image_index": index})
        clean = {"boxes": boxes.xyxy.tolist(), "image_index": index}
        images = [item if item is not None and item < len(geometry) else None for item in images_of_boxes(clean)]
        # A list that does not fit says nothing of any box.
        return cls(boxes, images if len(images) == len(boxes) else [None] * len(boxes), clean)


@dataclass(frozen=True)
class _Placed:
    """Boxes that a model wrote, in original pixels of their images.

    Attributes:
        boxes: those that lie in an image of the row whose size is known.
        images: index of the image of each, counted from 0.
        homeless: how many more name no image of the row where they should.
    """

    boxes: Boxes
    images: list[int]
    homeless: int

    def overlap(self, truth: _Truth) -> float | None:
        """Largest IoU with a true box of the same image; `None` if there is nothing to compare."""
        if truth.boxes is None or not len(truth.boxes) or not self.images:
            return None
        ious = self.boxes.ordered().iou(truth.boxes.ordered())
        found = [
            float(ious[row, column])
            for row, ours in enumerate(self.images)
            for column, theirs in enumerate(truth.images)
            if ours == theirs
        ]
        return max(found, default=0.0)


def _describe_rollout(
    record: Record, truth: _Truth, geometry: Geometry, max_chars: int, trains_cut: bool
) -> dict[str, Any]:
    completion = str(record["completion"])
    answer = record.get("answer")
    answer = answer if isinstance(answer, str) else None
    segments = segments_of(completion)
    thinking = "".join(text for kind, text in segments if kind == "think")
    frame = str(record.get("box_frame") or "")
    given = _placed(answer or "", frame, truth, geometry)
    overlap = given.overlap(truth) if given is not None else None
    looked = _placed(thinking, frame, truth, geometry)
    rewards = record.get("rewards")
    rewards = rewards if isinstance(rewards, Mapping) else {}
    trajectory = describe_trajectory(record, max_chars, trains_cut=trains_cut)
    return {
        "segments": [] if trajectory is not None and trajectory["spans"] else cut_middle(segments, max_chars),
        "trajectory": trajectory,
        "reward": number(record.get("reward")),
        "rewards": {shorten(str(name), 60): number(value) for name, value in list(rewards.items())[:MAX_ITEMS]},
        "advantage": number(record.get("advantage")),
        "tokens": number(record.get("num_tokens")),
        "stop": shorten(str(record.get("stop_reason") or ""), 40),
        "boxes": [] if given is None else given.boxes.xyxy.tolist(),
        "box_images": [] if given is None else given.images,
        "looked": [] if looked is None else looked.boxes.xyxy.tolist(),
        "looked_images": [] if looked is None else looked.images,
        "iou": overlap,
        "why": list(_causes(record, answer, given, truth, overlap)),
    }


def _causes(
    record: Record, answer: str | None, given: _Placed | None, truth: _Truth, overlap: float | None
) -> Iterator[str]:
    """Why a rollout may have earned nothing: `format`, `no_box`, `no_image`, `box_off`, `wrong`, `length`, `budget`, `call`."""
    rewards = record.get("rewards")
    rewards = rewards if isinstance(rewards, Mapping) else {}
    format_score = number(rewards.get("format"))
    if answer is None or (format_score is not None and format_score <= 0):
        yield "format"
    if truth.boxes is not None and len(truth.boxes) and given is not None:
        if answer is not None and not given.images and not given.homeless:
            yield "no_box"
        if given.homeless:
            yield "no_image"
        if given.images and (overlap is None or overlap < IOU_HIT):
            yield "box_off"
    target = record.get("target")
    if answer is not None and isinstance(target, Mapping) and isinstance(target.get("answer"), str):
        scores = [number(value) for name, value in rewards.items() if name != "format"]
        if scores and all(score is not None and score <= 0 for score in scores):
            yield "wrong"
    if record.get("stop_reason") in ("length", "budget"):
        yield str(record["stop_reason"])
    if failed_calls(record):
        yield "call"


def _placed(text: str, frame: str, truth: _Truth, geometry: Geometry) -> _Placed | None:
    """Boxes in the text, on their images as rewards place them; `None` if the frame or all images are unknown."""
    if not any(geometry):
        return None
    try:
        found = parse_labelled_boxes(text, frame)
    except BoxError:
        return None
    images = images_of_answer(found, truth.target, len(geometry))
    corners: list[Sequence[float]] = []
    places: list[int] = []
    for row, image in enumerate(images):
        seen = None if image is None else geometry[image]
        if image is None or seen is None:
            continue
        try:
            moved = Boxes(found.boxes.xyxy[row : row + 1], found.boxes.frame).to(Frame.original_px, seen)
        except BoxError:
            continue
        corners += moved.xyxy.tolist()
        places.append(image)
    return _Placed(Boxes.of(corners, Frame.original_px), places, sum(image is None for image in images))


def _true_boxes(target: Record) -> Boxes | None:
    if not isinstance(target.get("boxes"), list):
        return None
    try:
        return Boxes.of(target["boxes"][:MAX_ITEMS], Frame.original_px)
    except BoxError:
        return None


def _index(value: object) -> int | None:
    """An index counted from 0, or `None` for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _geometry(image: Record) -> ImageGeometry | None:
    """Geometry for converting boxes; the patch size is not recorded and not needed for that."""
    sizes = []
    for name in ("original_size", "model_size"):
        size = [number(value) for value in items(image.get(name))]
        if len(size) != 2 or any(value is None or value < 1 for value in size):
            return None
        sizes.append((int(size[0] or 0), int(size[1] or 0)))
    return ImageGeometry(original_size=sizes[0], model_size=sizes[1], patch_size=1, merge_size=1)


def _describe_image(image: Record, geometry: ImageGeometry | None) -> dict[str, Any]:
    return {
        "path": str(image.get("path") or ""),
        "size": list(geometry.original_size) if geometry else None,
        "model_size": list(geometry.model_size) if geometry else None,
    }


def _describe_message(message: object, geometry: Geometry, frame: str) -> dict[str, str]:
    """Role and text of a chat message; `[image]` stands where one is, and boxes as the model was shown them."""
    if not isinstance(message, Mapping):
        return {"role": "", "text": shorten(str(message), MAX_PROMPT_CHARS)}
    content = message.get("content")
    if not isinstance(content, str):
        parts = [part for part in items(content) if isinstance(part, Mapping)]
        content = " ".join(_describe_part(part, geometry, frame) for part in parts)
    return {"role": shorten(str(message.get("role", "")), 20), "text": shorten(content, MAX_PROMPT_CHARS)}


def _describe_part(part: Record, geometry: Geometry, frame: str) -> str:
    if part.get("type") == "image":
        return "[image]"
    if part.get("type") != BOXES_PART:
        return str(part.get("text", ""))
    # This program writes boxes out before it records them; others may not.
    index = _index(part.get("image_index", 0))
    seen = geometry[index] if index is not None and index < len(geometry) else None
    if seen is not None and isinstance(part.get("boxes"), list):
        try:
            return written_part({**part, "image_index": 0}, (seen,), Frame.of(frame))
        except BoxError:
            pass  # shown as it stands
    return json.dumps(part, ensure_ascii=False)


def _describe_target(target: Record, labels: Sequence[str], truth: _Truth) -> str:
    """The truth in words: an answer, or labelled boxes in original pixels; else the target as JSON.

    Where the target says in which images the boxes lie, so does this, counted from 1 as in answers.
    """
    if isinstance(target.get("answer"), str):
        return shorten(target["answer"], MAX_PROMPT_CHARS)
    if truth.boxes is not None and set(target) <= {"boxes", "labels", "image_index"}:
        boxes = [f"[{', '.join(f'{value:.0f}' for value in box)}]" for box in truth.boxes.xyxy.tolist()]
        if target.get("image_index") is not None:
            places = ["image ?" if image is None else f"image {image + 1}" for image in truth.images]
            boxes = [f"{place} {box}" for place, box in zip(places, boxes, strict=True)]
        named = [f"{label} {box}".strip() for label, box in zip_longest(labels, boxes, fillvalue="")]
        return shorten("\n".join(named), MAX_PROMPT_CHARS)
    return shorten(json.dumps(target, ensure_ascii=False), MAX_PROMPT_CHARS) if target else ""


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _spread_of(values: Sequence[float]) -> float | None:
    """Population standard deviation."""
    if not values:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _or_low(value: float | None) -> float:
    return -math.inf if value is None else value
