"""The data doctor: one pass over a data file that decodes every image and reports everything found.

Enters: a `DataConfig`. Leaves: a `DoctorReport`, which `rich` prints. Bad rows never stop it. No torch here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmreason.config.schema import DataConfig
from mmreason.data.readers import ScannedRow, SkippedRow, image_loader, scan
from mmreason.errors import ConfigError
from mmreason.labelled_boxes import images_of_boxes

#: Problems that are kept with line and reason; all are counted.
MAX_LISTED = 20
#: Boxes on pictures this large that never pass 1000 are suspected to be 0..1000 relative.
_LARGE_SIDE_PX = 1200


@dataclass(frozen=True)
class DoctorReport:
    """What a data file holds and what is wrong with it.

    Attributes:
        path: the file.
        num_rows: rows in it, good and bad.
        num_ok: rows that can be trained on.
        bad_by_kind: kind of problem -> rows, most frequent first.
        problems: the first bad rows with line and reason, at most `MAX_LISTED`.
        image_sizes: `(width, height)` of the images of good rows, once per use.
        box_sides: `(width, height)` in original pixels of the target boxes of good rows.
        box_shares: area of each such box as a share of its image.
        duplicates: groups of different files with the same content.
        hints: suspicions that no single row shows.
    """

    path: str
    num_rows: int
    num_ok: int
    bad_by_kind: dict[str, int]
    problems: list[SkippedRow]
    image_sizes: list[tuple[int, int]]
    box_sides: list[tuple[float, float]]
    box_shares: list[float]
    duplicates: list[tuple[str, ...]]
    hints: list[str]

    @property
    def ok(self) -> bool:
        """True if there are rows and every one can be used."""
        return self.num_rows > 0 and self.num_ok == self.num_rows

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._summary()]
        if self.problems:
            table = Table("line", "problem", title=f"first {len(self.problems)} problems", title_justify="left")
            for problem in self.problems:
                table.add_row(str(problem.line), escape(problem.reason))
            parts.append(table)
        parts += [Text(f"hint: {hint}", style="yellow") for hint in self.hints]
        if self.num_rows and not self.ok:
            parts.append(Text("Fix these rows, or train on the others with data.on_bad_row=skip."))
        return Group(*parts)

    def _summary(self) -> Table:
        table = Table(title=escape(self.path), title_justify="left", show_header=False)
        table.add_row("rows ok", f"{self.num_ok} of {self.num_rows}")
        for kind, count in self.bad_by_kind.items():
            table.add_row(Text(f"bad: {kind}", style="red"), str(count))
        if self.image_sizes:
            widths, heights = zip(*self.image_sizes, strict=True)
            sizes = f"{min(widths)}–{max(widths)} × {min(heights)}–{max(heights)} px"
            table.add_row("images", f"{len(self.image_sizes)}, {sizes}")
        if self.box_sides:
            sides = [side for box in self.box_sides for side in box]
            shares = f"{min(self.box_shares):.2%} / {median(self.box_shares):.2%} / {max(self.box_shares):.2%}"
            table.add_row("boxes", f"{len(self.box_sides)}, sides {min(sides):g}–{max(sides):g} px")
            table.add_row("box area in the image", f"{shares} (least / median / most)")
        for group in self.duplicates[:5]:
            table.add_row("same picture twice", escape(", ".join(Path(name).name for name in group[:4])))
        if len(self.duplicates) > 5:
            table.add_row("same picture twice", f"… {len(self.duplicates)} groups in all")
        return table


@dataclass
class _Tally:
    """Running totals of one pass."""

    num_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[SkippedRow] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    box_sides: list[tuple[float, float]] = field(default_factory=list)
    box_shares: list[float] = field(default_factory=list)
    #: Largest coordinate of each box on a large picture.
    reaches: list[float] = field(default_factory=list)

    def add(self, item: ScannedRow) -> None:
        self.num_rows += 1
        if item.problem is not None:
            self.kinds[item.problem.kind] += 1
            if len(self.problems) < MAX_LISTED:
                self.problems.append(item.problem)
        if item.row is None:
            return
        self.image_sizes += item.image_sizes
        for (x1, y1, x2, y2), index in zip(
            item.row.target.get("boxes", []), images_of_boxes(item.row.target), strict=True
        ):
            width, height = item.image_sizes[index]
            self.box_sides.append((x2 - x1, y2 - y1))
            self.box_shares.append((x2 - x1) * (y2 - y1) / (width * height))
            if min(width, height) >= _LARGE_SIDE_PX:
                self.reaches.append(max(x2, y2))

    def hints(self) -> list[str]:
        found = []
        if len(self.reaches) >= 20 and max(self.reaches) <= 1000:
            found.append(
                f"none of {len(self.reaches)} boxes on pictures of {_LARGE_SIDE_PX} px and more passes 1000: "
                "are they 0..1000 relative? Boxes must be in pixels of the original image."
            )
        if len(self.box_shares) >= 20 and median(self.box_shares) > 0.9:
            found.append("most boxes cover the whole picture: a model could score by always answering that.")
        return found


def data_config(path: Path, options: Mapping[str, str]) -> DataConfig:
    """The configuration of one file from options as typed, without `data.`; raises `ConfigError` by name."""
    if "path" in options:
        raise ConfigError("data.path: the file is the first word: mmreason data check FILE")
    try:
        return DataConfig.model_validate({**options, "path": str(path)})
    except ValidationError as error:
        known = ", ".join(f"data.{name}" for name in DataConfig.model_fields if name != "path")
        lines = [
            f"data.{'.'.join(map(str, item['loc']))}={item['input']}: {item['msg'].lower()}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join([*lines, f"Options are written OPTION=VALUE; there are: {known}."])) from None


def check_file(config: DataConfig) -> DoctorReport:
    """Check every row and decode every image of a data file, whatever `on_bad_row` says.

    Raises:
        DataError: the file does not exist or cannot be read.
        ImageError: the image root is not a folder.
    """
    loader = image_loader(config)
    files_by_content: defaultdict[bytes, set[str]] = defaultdict(set)

    def inspect(image: str) -> tuple[int, int]:
        data = loader.read(image)
        files_by_content[hashlib.sha256(data).digest()].add(image)
        return loader.open_bytes(data, image).size

    tally = _Tally()
    for item in scan(config, inspect):
        tally.add(item)
    return DoctorReport(
        path=str(config.path),
        num_rows=tally.num_rows,
        num_ok=tally.num_rows - sum(tally.kinds.values()),
        bad_by_kind=dict(tally.kinds.most_common()),
        problems=tally.problems,
        image_sizes=tally.image_sizes,
        box_sides=tally.box_sides,
        box_shares=tally.box_shares,
        duplicates=sorted(tuple(sorted(group)) for group in files_by_content.values() if len(group) > 1),
        hints=tally.hints(),
    )
