"""What a run leaves on disk, and how it is read back: run folder, metrics, rollouts, pictures.

What enters: plain dicts of numbers, and `Rollout` records with their rewards. What leaves: the files below,
and iterators over them. Only the main process writes (the caller decides). No torch.

    RUN/config.yaml        resolved configuration            RUN/checkpoint-*/  resumable states
    RUN/metrics.jsonl      one JSON object per log step      RUN/final/         loads with plain transformers
    RUN/rollouts.jsonl     one JSON object per completion    RUN/summary.json   scores before and after
    RUN/images/<sha>.png   pictures that were in memory      RUN/report.html    made by `mmreason report RUN`
    RUN/tools/<sha>.png    pictures that tools made, or .jpg; small copies, for people

Steps count optimizer steps from 1 in both JSONL files: a rollout carries the number of the step it feeds,
so that after `checkpoint-10` everything up to and including step 10 is kept and the rest can be cut.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from PIL import Image

from mmreason.errors import DataError
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageSource, Message, Rollout, ToolPicture

#: Longest line that the readers accept, in bytes; one rollout record is a few kilobytes.
MAX_LINE_BYTES = 32_000_000

#: Pillow modes that PNG stores as they are; any other picture is converted to RGB.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})

#: Longest side of the copy that is kept of a tool's picture, and up to which side it is lossless.
TOOL_PICTURE_SIDE_PX, _LOSSLESS_SIDE_PX = 512, 256
_JPEG_START = b"\xff\xd8"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; it need not exist until something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts.jsonl"
        self.images = self.path / "images"
        self.tool_pictures = self.path / "tools"
        self.report = self.path / "report.html"
        self.final = self.path / "final"
        self.summary = self.path / "summary.json"

    def create(self) -> RunFolder:
        """Make the folder (and its parents) and return self."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def checkpoints(self) -> list[Path]:
        """Folders `checkpoint-<step>`, oldest first. Whether one is complete is not looked at here."""
        found = []
        for folder in self.path.glob("checkpoint-*"):
            number = folder.name.removeprefix("checkpoint-")
            if folder.is_dir() and number.isdecimal():
                found.append((int(number), folder))
        return [folder for _, folder in sorted(found)]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration as YAML, in the order given."""
        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.create().config, text.encode("utf-8"))

    def read_config(self) -> dict[str, Any] | None:
        """The resolved configuration, or `None` when there is none; `DataError` if it is damaged."""
        if not self.config.is_file():
            return None
        try:
            loaded = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{self.config} is not readable YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise DataError(f"{self.config} holds a {type(loaded).__name__}, not a mapping of options.")
        return loaded

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` (scores before and after, seconds, memory, rows skipped, rewards failed)."""
        text = json.dumps(to_plain(summary), indent=2, ensure_ascii=False)
        write_atomically(self.create().summary, text.encode("utf-8", "backslashreplace") + b"\n")

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or `None` while the run has not finished; `DataError` if it is damaged."""
        if not self.summary.is_file():
            return None
        return _parse_object(self.summary.read_bytes(), str(self.summary))

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; `metrics` needs an integer `step`, and a NaN or infinity is written as null."""
        if not isinstance(metrics.get("step"), int):
            raise ValueError(f"metrics need an integer 'step', got {metrics.get('step')!r}")
        append_lines(self.create().metrics, [metrics])

    def truncate_after(self, step: int) -> dict[str, int]:
        """Cut both JSONL files back to a checkpoint: lines of later steps go, and a half-written last line.

        Args:
            step: the checkpoint's step; lines with a `step` above it are removed.

        Returns:
            File name -> lines removed.
        """
        files = (self.metrics, self.rollouts)
        return {path.name: _truncate(path, step) for path in files if path.is_file()}


class RolloutWriter:
    """Writes `rollouts.jsonl`: the record of every completion, each picture once.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def write(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        rewards: Mapping[str, Sequence[float | None]],
        total: Sequence[float | None],
        advantages: Sequence[float | None],
    ) -> None:
        """Append the rollouts of one step and flush them.

        Args:
            step: optimizer step that they feed, counted from 1.
            rollouts: `[N]`, groups in any order.
            rewards: reward name -> `[N]` values, `None` where the reward does not apply or failed.
            total: `[N]` weighted sums.
            advantages: `[N]`.

        Raises:
            ValueError: the lengths differ.
        """
        count = len(rollouts)
        lengths = {name: len(values) for name, values in rewards.items()}
        lengths.update(total=len(total), advantages=len(advantages))
        if wrong := {name: length for name, length in lengths.items() if length != count}:
            raise ValueError(f"{count} rollouts, but {wrong} values: one value per rollout is needed")
        # A group shares its pictures, so each object is hashed once; the rollouts keep them alive.
        saved: dict[int, str] = {}
        lines = []
        for index, rollout in enumerate(rollouts):
            record = rollout_record(rollout, step, [self._place(image, saved) for image in rollout.row.images])
            record["rewards"] = {name: values[index] for name, values in rewards.items()}
            record["reward"] = total[index]
            record["advantage"] = advantages[index]
            if rollout.pictures:
                record["pictures"] = [self._tool_picture(picture) for picture in packed(rollout).pictures]
            lines.append(record)
        append_lines(self.folder.create().rollouts, lines)

    def _tool_picture(self, picture: ToolPicture) -> dict[str, Any]:
        """Save a packed picture unless it is there; returns what a record says of it."""
        assert isinstance(picture.image, bytes)
        suffix = ".jpg" if picture.image.startswith(_JPEG_START) else ".png"
        name = hashlib.sha256(picture.image).hexdigest()[:32]
        path = self.folder.tool_pictures / f"{name}{suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(picture.image)
            temporary.replace(path)
        place = path.relative_to(self.folder.path).as_posix()
        return {"id": picture.id, "tool": picture.tool, "path": place, "size": list(picture.size)}

    def _place(self, image: ImageSource, saved: dict[int, str]) -> str:
        """Path of the picture relative to the run folder; one that is in memory is saved under its hash."""
        if isinstance(image, str):
            # Both real: `..` climbs the folder that a symbolic link leads to, not the one that holds the link.
            start = os.path.realpath(self.folder.path)
            return Path(os.path.relpath(os.path.realpath(image), start)).as_posix()
        if id(image) not in saved:
            saved[id(image)] = save_picture(image, self.folder.images).relative_to(self.folder.path).as_posix()
        return saved[id(image)]


def rollout_record(rollout: Rollout, step: int, image_paths: Sequence[str]) -> dict[str, Any]:
    """The record of one rollout as it stands in `rollouts.jsonl`, without rewards and advantage.

    Args:
        rollout: the completion.
        step: optimizer step that it feeds.
        image_paths: path of each picture of the row, relative to the run folder.
    """
    sizes = [
        {"path": path, "original_size": list(geometry.original_size), "model_size": list(geometry.model_size)}
        for path, geometry in zip(image_paths, rollout.geometry, strict=True)
    ]
    return {
        "id": rollout.row.id,
        "group": rollout.group,
        "step": step,
        "dataset": rollout.row.dataset,
        "messages": [
            _text_only(message)
            for message in with_boxes_written(rollout.row.messages, rollout.geometry, rollout.box_frame)
        ],
        "completion": rollout.text,
        "answer": rollout.answer,
        "target": dict(rollout.row.target),
        "images": sizes,
        "box_frame": rollout.box_frame,
        "num_tokens": rollout.num_tokens,
        "stop_reason": rollout.stop_reason,
        **({"turns": [asdict(turn) for turn in rollout.turns]} if rollout.turns else {}),
        **({"spans": [[int(one.sampled), one.num_tokens, one.text] for one in rollout.spans]} if rollout.spans else {}),
        **({"trained": list(rollout.trained)} if rollout.trained is not None else {}),
        **({"forced": True} if rollout.forced else {}),
    }


def packed(rollout: Rollout) -> Rollout:
    """The rollout with small copies of its tools' pictures, as bytes: what travels between processes, and what is kept."""
    if not any(isinstance(picture.image, Image.Image) for picture in rollout.pictures):
        return rollout
    pictures = (replace(picture, image=_small(picture.image)) for picture in rollout.pictures)
    return replace(rollout, pictures=tuple(pictures))


def _small(image: Image.Image | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    copy = image.convert("RGB")  # always a copy
    copy.thumbnail((TOOL_PICTURE_SIDE_PX, TOOL_PICTURE_SIDE_PX), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    if max(copy.size) <= _LOSSLESS_SIDE_PX:
        copy.save(written, format="PNG")
    else:
        copy.save(written, format="JPEG", quality=85)
    return written.getvalue()


def save_picture(image: Image.Image, folder: Path) -> Path:
    """Save a picture as `<folder>/<hash of its content>.png` unless it is there already; return that path."""
    picture = image if image.mode in _PNG_MODES else image.convert("RGB")
    path = folder / f"{pixel_digest(picture)}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    return path


def pixel_digest(picture: Image.Image) -> str:
    """32 hexadecimal digits that say what a picture holds: mode, size, pixels, palette."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size} ".encode())
    digest.update(picture.tobytes())
    if picture.mode == "P":
        digest.update(bytes(picture.getpalette() or ()))
    return digest.hexdigest()[:32]


def read_metrics(path: str | Path, torn_tail: Literal["raise", "skip"] = "skip") -> Iterator[dict[str, Any]]:
    """Yield the objects of a `metrics.jsonl`; see `read_rollouts` for errors and `torn_tail`."""
    for _, record in read_objects(Path(path), torn_tail):
        yield record


def read_rollouts(path: str | Path, torn_tail: Literal["raise", "skip"] = "raise") -> Iterator[dict[str, Any]]:
    """Yield the records of a `rollouts.jsonl`, in file order.

    Args:
        path: the file. Blank lines are passed over; NaN and infinities read as `None`.
        torn_tail: what to do with a last line that has no newline and does not parse: a run that is
            killed, or read, in the middle of writing leaves one.

    Raises:
        DataError: no such file, or a line that is no JSON object with a text `completion`.
    """
    for where, record in read_objects(Path(path), torn_tail):
        if not isinstance(record.get("completion"), str):
            found = "no 'completion'" if "completion" not in record else f"'completion' = {record['completion']!r:.60}"
            raise DataError(f"{where}: {found}. A rollout record needs 'completion', the text that the model wrote.")
        yield record


def to_plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: numpy to lists, paths to text, non-finite to `None`."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        return to_plain(value.tolist())
    if isinstance(value, Image.Image):
        raise TypeError("a picture cannot be written to JSON: put it in Row.images, which are saved as files")
    raise TypeError(f"a {type(value).__name__} cannot be written to JSON: {value!r:.80}")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one go: readers see the old or the new content, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _text_only(message: Message) -> Message:
    """The message without anything but text and the places of images: pictures stand in `images`."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        kept = [
            {"type": "image"} if part.get("type") == "image" else {"type": "text", "text": str(part.get("text", ""))}
            for part in content
        ]
        return {"role": message.get("role", ""), "content": kept}
    return {"role": message.get("role", ""), "content": content}


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines in one write and flush, so that a crash leaves at most one torn line."""
    text = "".join(json.dumps(to_plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    with path.open("ab") as file:
        # A lone surrogate has no UTF-8 form; its backslash escape is valid JSON and reads back the same.
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()


def read_objects(path: Path, torn_tail: Literal["raise", "skip"]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `("file:line", object)` of a JSONL file, in file order; blank lines are passed over.

    Raises:
        DataError: no such file, a line over `MAX_LINE_BYTES`, or one that is not a JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. A run writes it unless trainer.save_rollouts=false.")
    with path.open("rb") as file:
        for number, line in _lines(file, path):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = _parse_object(line, where)
            except DataError:
                if torn_tail == "skip" and not line.endswith(b"\n"):
                    return
                raise
            yield where, record


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines, refusing one that is too long to be a record."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}:{number}: line longer than {MAX_LINE_BYTES:,} bytes; is this a JSONL file?")
        yield number, line


def _parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; `DataError` naming `where` if it is none."""
    try:
        parsed = json.loads(content.decode("utf-8-sig"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{where}: a JSON {type(parsed).__name__}; one JSON object per line is needed.")
    return parsed


def _truncate(path: Path, step: int) -> int:
    """Rewrite one JSONL file without lines of later steps; return how many lines went."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    removed = 0
    with path.open("rb") as source, temporary.open("wb") as kept:
        for number, line in _lines(source, path):
            try:
                line_step = _parse_object(line, f"{path}:{number}").get("step")
            except DataError:
                if line.endswith(b"\n"):
                    temporary.unlink()
                    raise
                removed += 1
                continue
            if isinstance(line_step, (int, float)) and line_step > step:
                removed += 1
            else:
                kept.write(line if line.endswith(b"\n") else line + b"\n")
        kept.flush()
        os.fsync(kept.fileno())
    temporary.replace(path)
    return removed
