"""The user's own rows: a JSONL file (or JSON array) in any form of `row_forms`, checked and made into `Row`s.

Enters: a `DataConfig`. Leaves: a `RowFile` with the usable rows and a list of the others, each with its line
and reason; with `on_bad_row=raise` the first bad row is a `DataError`. Images stay files: a row holds the
real path, checked to lie inside the image root, and `ImageLoader` opens it when needed. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from mmreason.config.schema import DataConfig
from mmreason.data.captioned import with_caption
from mmreason.data.row_forms import RawRow, RowProblem, interpret, refuse_control
from mmreason.errors import DataError, ImageError
from mmreason.images import ImageLoader, ImageRefused
from mmreason.labelled_boxes import images_of_boxes
from mmreason.prompt_boxes import BOXES_PART
from mmreason.records import Message, Row

#: Longer lines are bad rows: a row holds text and paths, not pictures.
MAX_LINE_BYTES = 4_000_000
#: A JSON array is read whole; above this size it must be JSONL.
MAX_ARRAY_BYTES = 256_000_000
#: A box may reach this far over the edge (annotation tools round); it is cut to the image.
BOX_TOLERANCE_PX = 1.0

#: Checks one image, given by its real path, and returns its `(width, height)`.
Inspect = Callable[[str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was left out.

    Attributes:
        line: line in the file from 1, or place in the JSON array from 1.
        reason: what is wrong, e.g. `box outside the image: [1, 2, 900, 4] in an image of 640 × 480`.
        kind: the first words of the reason, by which rows are counted.
    """

    line: int
    reason: str
    kind: str


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """One row of a file after all checks: `row` or `problem`, and the sizes of its images as far as known."""

    line: int
    row: Row | None
    problem: SkippedRow | None
    image_sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RowFile:
    """What a data file holds.

    Attributes:
        path: the file as the user wrote it.
        rows: usable rows in file order.
        skipped: the others in file order.
    """

    path: str
    rows: list[Row]
    skipped: list[SkippedRow] = field(default_factory=list)

    @property
    def skipped_by_kind(self) -> dict[str, int]:
        """Kind of problem -> number of skipped rows, most frequent first."""
        return dict(Counter(row.kind for row in self.skipped).most_common())

    def skipped_summary(self, limit: int = 20) -> str:
        """The skipped rows for the end of a run: counts, then the first ones with reasons; "" if none."""
        if not self.skipped:
            return ""
        kinds = ", ".join(f"{count} × {kind}" for kind, count in self.skipped_by_kind.items())
        shown = [f"  {self.path}:{row.line}: {row.reason}" for row in self.skipped[:limit]]
        more = len(self.skipped) - limit
        tail = [f"  … and {more} more; `mmreason data check {self.path}` counts them all"] if more > 0 else []
        head = f"{len(self.skipped)} of {len(self.skipped) + len(self.rows)} rows skipped ({kinds}):"
        return "\n".join([head, *shown, *tail])


def read_rows(config: DataConfig, *, full_check: bool = False) -> RowFile:
    """Read and check the data file.

    Args:
        config: where the file and its images are, and what a bad row does.
        full_check: decode every image instead of reading its header; finds truncated pictures, costs time.

    Raises:
        DataError: no such file, no usable row, or, with `on_bad_row=raise`, the first bad row.
        ImageError: the image root is not a folder.
    """
    path = existing_file(config)
    loader = image_loader(config)
    rows: list[Row] = []
    skipped: list[SkippedRow] = []
    for item in scan(config, (lambda image: loader.open(image).size) if full_check else loader.check):
        if item.row is not None:
            rows.append(item.row)
        elif item.problem is not None:
            if config.on_bad_row == "raise":
                raise DataError(
                    f"{path}:{item.line}: {item.problem.reason}. Fix the row, or leave bad rows out with "
                    f"data.on_bad_row=skip; `mmreason data check {path}` lists them all."
                )
            skipped.append(item.problem)
    if not rows:
        bad = f" {len(skipped)} bad ones, line {skipped[0].line}: {skipped[0].reason}." if skipped else ""
        raise DataError(f"{path} holds no usable row.{bad}")
    return RowFile(str(config.path), rows, skipped)


def image_loader(config: DataConfig) -> ImageLoader:
    """The loader that opens the images of this data file, now and while training."""
    root = Path(config.image_root) if config.image_root is not None else existing_file(config).parent
    return ImageLoader(root, max_pixels=config.max_image_pixels, max_bytes=config.max_image_bytes)


class _Named(Protocol):
    @property
    def id(self) -> str: ...


NamedT = TypeVar("NamedT", bound=_Named)


def split_rows(rows: Sequence[NamedT], eval_share: float, seed: int) -> tuple[list[NamedT], list[NamedT]]:
    """Divide rows (or anything with an `id`) into training and held-out ones, in file order, by a hash of seed and id.

    A row's side does not change when others are added or reordered (except for the one row that is moved
    so that, with a share above 0 and two rows or more, neither side is empty).
    """
    if eval_share <= 0:
        return list(rows), []
    places = [_hash_share(row.id, seed) for row in rows]
    held = [place < eval_share for place in places]
    if len(rows) >= 2 and not any(held):
        held[places.index(min(places))] = True
    if len(rows) >= 2 and all(held):
        held[places.index(max(places))] = False
    train = [row for row, is_held in zip(rows, held, strict=True) if not is_held]
    return train, [row for row, is_held in zip(rows, held, strict=True) if is_held]


def _hash_share(row_id: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


# ------------------------------------------------------------------------------------------------ scanning


def scan(config: DataConfig, inspect: Inspect) -> Iterator[ScannedRow]:
    """Every row of the file with its outcome; bad rows never stop it. `inspect` runs once per image file."""
    path = existing_file(config)
    loader = image_loader(config)
    size_of = once_each(inspect)
    seen: dict[str, int] = {}

    for line, value in json_values(path):
        try:
            if isinstance(value, RowProblem):
                raise value
            raw = interpret(value)
            if config.caption_column is not None:
                raw = captioned(raw, config.caption_column)
            row_id = raw.id if raw.id is not None else f"{path.name}:{line}"
            if row_id in seen:
                raise RowProblem("duplicate id", f"'{row_id}' is also the id of line {seen[row_id]}; make ids unique")
            row, sizes = placed_row(raw, row_id, path.stem, loader, size_of)
        except RowProblem as problem:
            yield ScannedRow(line, None, SkippedRow(line, str(problem), problem.kind))
        except ImageError as error:
            kind = f"image: {error.kind}" if isinstance(error, ImageRefused) else "image: refused"
            yield ScannedRow(line, None, SkippedRow(line, f"image {error}", kind))
        else:
            seen[row_id] = line
            yield ScannedRow(line, row, None, sizes)


def captioned(raw: RawRow, column: str) -> RawRow:
    """The row with the text of a column in front of its question; raises `RowProblem` if there is none."""
    caption = raw.columns.get(column)
    if not isinstance(caption, str) or not caption.strip():
        raise RowProblem("no caption", f"`{column}` (data.caption_column) must be a text with something in it")
    refuse_control(caption, f"`{column}`: leave it out")
    return dataclasses.replace(raw, messages=with_caption(raw.messages, caption))


def once_each(inspect: Inspect) -> Inspect:
    """The same check, made once for each image, however often it is asked for."""
    known: dict[str, tuple[int, int] | ImageError] = {}

    def size_of(image: str) -> tuple[int, int]:
        if image not in known:
            try:
                known[image] = inspect(image)
            except ImageError as error:
                known[image] = error
        found = known[image]
        if isinstance(found, ImageError):
            raise found
        return found

    return size_of


def placed_row(
    raw: RawRow, row_id: str, dataset: str, loader: ImageLoader, size_of: Inspect
) -> tuple[Row, tuple[tuple[int, int], ...]]:
    """The row with its images found and its boxes checked against them, and the images' sizes.

    Raises:
        RowProblem: a box does not fit, or `hidden` is no pictures by name. ImageError: an image cannot be used.
    """
    images = tuple(str(loader.resolve(image)) for image in raw.image_paths)
    sizes = tuple(size_of(image) for image in images)
    messages = tuple(_placed_message(message, sizes) for message in raw.messages)
    columns = _placed_hidden(raw.columns, loader, size_of)
    return Row(row_id, messages, images, _placed_target(raw, sizes), dataset, columns), sizes


def _placed_hidden(columns: dict[str, Any], loader: ImageLoader, size_of: Inspect) -> dict[str, Any]:
    """The columns with the pictures that tools may bring up found and checked as those of the row are."""
    if "hidden" not in columns:
        return columns
    hidden, pages = columns["hidden"], columns.get("pages", {})
    if not isinstance(hidden, dict) or not all(isinstance(path, str) for path in hidden.values()):
        raise RowProblem("hidden pictures", '`hidden` must hold paths of pictures by name: {"page 1": "pages/1.png"}')
    if not isinstance(pages, dict) or not all(isinstance(page, str) for page in pages.values()):
        raise RowProblem("pages", "`pages` must hold the texts of hidden pictures, by the same names")
    if unknown := sorted(set(pages) - set(hidden)):
        raise RowProblem("pages", f"`pages` has the text of {unknown[0]!r}, which is not one of `hidden`")
    found = {name: str(loader.resolve(path)) for name, path in hidden.items()}
    for path in found.values():
        size_of(path)
    return {**columns, "hidden": found}


def _placed_target(raw: RawRow, sizes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """The target with each of its boxes checked against its own image and cut to it."""
    if not raw.target.get("boxes"):
        return raw.target
    if not sizes:
        raise RowProblem("box without image", "the target has boxes and the row has no image")
    cut = []
    for box, index in zip(raw.target["boxes"], images_of_boxes(raw.target), strict=True):
        _check_box(box, sizes[index], f" (image_index {index})" if len(sizes) > 1 else "")
        cut.append(_cut(box, sizes[index]))
    return {**raw.target, "boxes": cut}


def _placed_message(message: Message, sizes: tuple[tuple[int, int], ...]) -> Message:
    """The message with the boxes of its parts checked against their images and cut to them."""
    parts = []
    for part in message["content"]:
        if part["type"] == BOXES_PART:
            index = part.get("image_index", 0)
            for box in part["boxes"]:
                _check_box(box, sizes[index], f" (image_index {index}), in the prompt")
            part = {**part, "boxes": [_cut(box, sizes[index]) for box in part["boxes"]]}
        parts.append(part)
    return {**message, "content": parts}


def _check_box(box: list[float], size: tuple[int, int], place: str = "") -> None:
    """Raise `RowProblem` if a box does not fit its image; `place` says which image that is."""
    x1, y1, x2, y2 = box
    width, height = size
    if x1 > x2 or y1 > y2:
        raise RowProblem(
            "box corners swapped",
            f"{box} must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2 (not x, y, width, height)",
        )
    if max(x2, y2) <= 1 and min(x1, y1) >= 0:
        raise RowProblem("box looks relative", f"{box} lies within 0..1; write pixels of the original image")
    if max(-x1, -y1, x2 - width, y2 - height) > BOX_TOLERANCE_PX:
        raise RowProblem(
            "box outside the image",
            f"{box} in an image of {width} × {height}{place}; boxes are [x1, y1, x2, y2] in pixels of the original "
            "image (turned upright), neither resized nor 0..1000",
        )
    left, top, right, bottom = _cut(box, size)
    if right <= left or bottom <= top:
        raise RowProblem("box without area", f"{box} in an image of {width} × {height}{place}")


def _cut(box: list[float], size: tuple[int, int]) -> list[float]:
    """The box cut to the image; numbers inside stay as they were written, whole ones whole."""
    x1, y1, x2, y2 = box
    return [max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])]


# ------------------------------------------------------------------------------------------------ the file


def existing_file(config: DataConfig) -> Path:
    """The data file; `DataError` with what may be meant if there is none."""
    if config.path is None:
        raise DataError("data.path is not set. Name a JSONL file: data.path=FILE.jsonl")
    path = Path(config.path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path} is a folder, data.path needs a JSONL file.{_others(path, '')}")
    raise DataError(f"no data file {path}.{_others(path.parent, path.name)} data.path must name a local JSONL file.")


def _others(folder: Path, wanted: str) -> str:
    """` Did you mean ...` from the data files that are in the folder."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".jsonl", ".json"))
    except OSError:
        return f" Its folder {folder} does not exist either."
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{folder / close[0]}'?"
    return f" There are: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}." if names else ""


def json_values(path: Path) -> Iterator[tuple[int, object]]:
    """Line (or place in an array) and JSON value, or a `RowProblem` in its stead."""
    try:
        with path.open("rb") as handle:
            start = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            handle.seek(0)
            # A row is an object, so a file that begins with a bracket is an array of rows.
            if start.startswith(b"["):
                yield from enumerate(_array(path, handle.read(MAX_ARRAY_BYTES + 1)), start=1)
                return
            line = 0
            while raw := handle.readline(MAX_LINE_BYTES + 1):
                line += 1
                if len(raw) > MAX_LINE_BYTES:
                    while raw and not raw.endswith(b"\n"):
                        raw = handle.readline(MAX_LINE_BYTES)
                    yield (
                        line,
                        RowProblem("line too long", f"above {MAX_LINE_BYTES:,} bytes; put images in files"),
                    )
                elif raw.strip():
                    yield line, _json_value(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _json_value(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return RowProblem("not JSON", f"{error.msg} at column {error.colno}; each line is one whole JSON object")
    except UnicodeDecodeError as error:
        return RowProblem("not UTF-8", f"byte {error.start} of the line; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return RowProblem("not JSON", str(error))


def _array(path: Path, raw: bytes) -> list[object]:
    if len(raw) > MAX_ARRAY_BYTES:
        raise DataError(f"{path} is a JSON array above {MAX_ARRAY_BYTES:,} bytes. Write it as JSONL, one row a line.")
    try:
        values = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    assert isinstance(values, list)
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")
