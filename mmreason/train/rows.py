"""Rows for training: an endless, seeded order over a task or a file, prepared once per prompt.

What enters: a task or the rows of a file, and the policy that resizes their images. What leaves:
`TrainingRows`, which answers "what is the prompt at position p" the same way in every process and after every
restart. A position is the number of a prompt counted from the start of the run; the trainer's dataset holds
nothing but positions, so that rows are drawn and images decoded only when completions are really sampled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from mmreason.data.transforms import mask_patches
from mmreason.errors import DataError, ImageError, MMReasonError
from mmreason.records import Row

if TYPE_CHECKING:
    from mmreason.config.schema import AugmentConfig, DataConfig, RunConfig
    from mmreason.data.base import Task, TaskOptions
    from mmreason.data.readers import RowFile
    from mmreason.images import ImageLoader
    from mmreason.policy.policy import Policy, Prepared

#: First number of the seeds of augmentation: apart from the random streams of orders and tasks.
_AUGMENT_STREAM = 0x617567

#: Bad rows in a row after which the data is called unusable.
MAX_BAD_ROWS_IN_A_ROW = 100


class RowSource(Protocol):
    """An endless sequence of rows."""

    def row(self, position: int) -> Row:
        """The row at a position; equal positions give equal rows."""
        ...


class TaskRows:
    """Training rows of a generated task: position = index."""

    def __init__(self, task: Task[TaskOptions]) -> None:
        self.task = task

    def row(self, position: int) -> Row:
        return self.task.row(position, "train")


class FileRows:
    """Rows of a file, in a new seeded order every epoch.

    Args:
        rows: the training rows, at least one.
        seed: of the orders.
    """

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        if not rows:
            raise DataError("there is no row to train on. Check data.path, and that data.eval_share leaves some rows.")
        self.rows = rows
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def row(self, position: int) -> Row:
        epoch, place = divmod(position, len(self.rows))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)).tolist()
        return self.rows[self._order[place]]


class ShiftedRows:
    """The rows of a source from another position on: `row(p)` is the source's `row(p + shift)`."""

    def __init__(self, source: RowSource, shift: int) -> None:
        self.source = source
        self.shift = shift

    def row(self, position: int) -> Row:
        return self.source.row(position + self.shift)


class RowFiles:
    """The data files of a run, each read once."""

    def __init__(self) -> None:
        self._read: dict[DataConfig, RowFile] = {}

    def of(self, config: DataConfig) -> RowFile | None:
        """The file of a section `data`; `None` if it names none. Errors as `mmreason.data.readers.read_rows`."""
        if config.path is None:
            return None
        if config not in self._read:
            from mmreason.data.readers import read_rows

            self._read[config] = read_rows(config)
        return self._read[config]

    def all(self) -> list[RowFile]:
        """Those read so far."""
        return list(self._read.values())


@dataclass(frozen=True)
class RowSupply:
    """Where rows come from, and what happens to them: the arguments of `TrainingRows` that can change within a run."""

    source: RowSource
    loader: ImageLoader | None = None
    on_bad_row: Literal["skip", "raise"] = "raise"
    augment: AugmentConfig | None = None


def row_supply(config: RunConfig, files: RowFiles) -> RowSupply:
    """The training rows of a configuration: those of its task, or of its data file without the held-out ones."""
    file = files.of(config.data)
    if file is None:
        from mmreason.data.base import build_task

        return RowSupply(TaskRows(build_task(config.task, config.seed)), augment=config.augment)
    from mmreason.data.readers import image_loader, split_rows

    train_rows, _ = split_rows(file.rows, config.data.eval_share, config.seed)
    source = FileRows(train_rows, config.seed)
    return RowSupply(source, image_loader(config.data), config.data.on_bad_row, config.augment)


class TrainingRows:
    """Prepared prompts by position, with bad rows replaced and counted.

    Args:
        source: where rows come from.
        policy: resizes the images and writes the prompt.
        loader: opens image paths; tasks draw in memory and need none.
        on_bad_row: what a row does whose image turns out to be unreadable: `skip` takes the next position's
            row instead.
        cache_size: prepared prompts held; the completions of a group, and its processes, ask for the same
            one.
        augment: random changes of the pictures.
        seed: of those changes.
        files: data files of the run.

    Attributes:
        skipped: row id -> (kind, reason), for rows left out so far.
    """

    def __init__(
        self,
        source: RowSource,
        policy: Policy,
        loader: ImageLoader | None = None,
        on_bad_row: Literal["skip", "raise"] = "raise",
        cache_size: int = 64,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        files: RowFiles | None = None,
    ) -> None:
        self.policy = policy
        self.cache_size = cache_size
        self.seed = seed
        self.files = files or RowFiles()
        self.skipped: dict[str, tuple[str, str]] = {}
        self.turn_to(RowSupply(source, loader, on_bad_row, augment))

    def turn_to(self, supply: RowSupply) -> None:
        """Go on with the rows of another supply."""
        self.source = supply.source
        self.loader = supply.loader
        self.on_bad_row = supply.on_bad_row
        self.augment = supply.augment if supply.augment is not None and supply.augment.active() else None
        self._cache: OrderedDict[int, Prepared] = OrderedDict()

    def prepared(self, position: int) -> Prepared:
        """The prompt at a position, images opened and resized.

        Raises:
            ImageError, DataError: the row is bad and `on_bad_row` is `raise`, or too many rows in a row are
                bad.
        """
        if position in self._cache:
            self._cache.move_to_end(position)
            return self._cache[position]
        item = self._first_good(position)
        self._cache[position] = item
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return item

    def masked(self, position: int, probability: float, patch_px: int, seed: Sequence[int]) -> Prepared:
        """The prompt at a position with masked images: same text, same sizes.

        Args:
            position: of the prompt.
            probability: of each cell of the grid on the original image to be blackened.
            patch_px: side of a cell in original pixels.
            seed: of the mask.
        """
        item = self.prepared(position)
        rng = np.random.default_rng(list(seed))
        pictures = self.policy.open_images(item.row, self.loader)
        masked = [mask_patches(picture, probability, patch_px, rng) for picture in pictures]
        return replace(item, images=[self.policy.prepare_image(picture)[0] for picture in masked])

    def _first_good(self, position: int) -> Prepared:
        last: MMReasonError | None = None
        for offset in range(MAX_BAD_ROWS_IN_A_ROW):
            row = self.source.row(position + offset)
            try:
                self.policy.open_hidden(row, self.loader)
                return self.policy.prepare(self._augmented(row, position + offset), self.loader)
            except (ImageError, DataError) as error:
                self._refuse_or_count(row, error, self.on_bad_row)
                last = error
        raise DataError(f"{MAX_BAD_ROWS_IN_A_ROW} rows in a row cannot be used; the last: {last}")

    def _augmented(self, row: Row, position: int) -> Row:
        """The row with changed pictures; a matter of seed and position alone, so that a continued run sees the same."""
        if self.augment is None:
            return row
        from mmreason.data.transforms import augment_row

        rng = np.random.default_rng([_AUGMENT_STREAM, self.seed, position])
        return augment_row(row, self.policy.open_images(row, self.loader), self.augment, rng)

    def usable(
        self, rows: Sequence[Row], loader: ImageLoader | None, on_bad_row: Literal["skip", "raise"]
    ) -> list[Row]:
        """Those of `rows` whose images `loader` can read; the others are counted, or raise, as in training."""
        kept = []
        for row in rows:
            try:
                self.policy.open_images(row, loader)
                self.policy.open_hidden(row, loader)
            except (ImageError, DataError) as error:
                self._refuse_or_count(row, error, on_bad_row)
            else:
                kept.append(row)
        return kept

    def _refuse_or_count(self, row: Row, error: MMReasonError, on_bad_row: Literal["skip", "raise"]) -> None:
        if on_bad_row == "raise":
            kind = ImageError if isinstance(error, ImageError) else DataError
            raise kind(f"row {row.id}: {error} (data.on_bad_row=skip leaves such rows out and counts them)") from error
        self.skipped.setdefault(row.id, (getattr(error, "kind", "unusable"), str(error)))
