"""What the run page says of each reward: histograms, missing values, groups without spread, correlations.

What enters: the records of `rollouts.jsonl`, twice and in the same order: once to measure extents, once to count. What
leaves: a plain dict ready for JSON. Memory does not grow with the file: records become rows of numbers, and those are
counted and dropped a chunk at a time. No field of a record is trusted to have its type.

Legend of shapes: n rows of a chunk, K columns (the total, the completion length and each reward), G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreason.report.collect import Record, group_key
from mmreason.report.texts import number, shorten

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: Rewards told apart; those that appear later are left out.
MAX_REWARDS = 24
#: Columns that are no rewards: the total and the length in tokens.
TOTAL, LENGTH = "total", "length"
#: Rows that are turned into numbers at once.
CHUNK_ROWS = 8192
#: A reward with up to so many different values gets a bar for each, any other one `BINS` equal bins.
MAX_DISTINCT, BINS = 12, 24
#: Points of the curve of groups without spread.
MAX_BLOCKS = 60
#: The first and the last steps that the histograms compare, as a share of the run.
EDGE_SHARE = 0.25
#: Rewards of a group that differ by no more are equal: the trainer's own bound.
NO_SPREAD = 1e-6
#: Bins cover the middle values where the outer ones, this share at either end, would stretch them `_STRETCH`-fold.
_TAIL_SHARE, _STRETCH = 0.005, 5.0
_SAMPLE_ROWS = 4096
#: Beyond it, squares are no numbers any more.
_LARGEST = 1e100


class RewardSurvey:
    """Measures, then counts.

    Call `measure` with every record, then `count` with every record again, then `result`.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {TOTAL: 0, LENGTH: 1}
        self.left_out = 0
        #: Name as records write it -> column.
        self._places: dict[str, int] = {}
        #: Steps, as often as they change: the rollouts of a step follow each other.
        self._steps, self._last_step = 0, -math.inf
        self._chunk = _Chunk()
        self._extents = _Extents()
        self._tally: _Tally | None = None

    def measure(self, record: Record) -> None:
        """First reading: which rewards there are, and between which bounds they lie."""
        step = _step(record)
        self._steps += step != self._last_step and not math.isnan(step + self._last_step)
        self._last_step = step
        self._chunk.add(self._row(record, learn=True), step)
        if len(self._chunk) >= CHUNK_ROWS:
            self._extents.update(*self._chunk.take(len(self.names))[:2])

    def count(self, record: Record) -> None:
        """Second reading."""
        tally = self._opened()
        if not self._extents.rows:
            return  # nothing was there to measure, and the file has grown since
        # Rows of a group stay together: they follow each other, and a step ends all of its groups.
        step, key = _step(record), group_key(record)
        if len(self._chunk) >= CHUNK_ROWS and self._chunk.begins_group(step, key):
            tally.update(*self._chunk.take(len(self.names)))
        self._chunk.add(self._row(record), step, key)

    def result(self) -> dict[str, Any]:
        """What the page shows; an empty dict if there was no record.

        Returns:
            `early` and `late` (first and last step of both ends of the run, `None` if there is one step only),
            `rollouts` and `rollouts_a_step`, `rewards` (a list, the total first), `matrix` (names, and `r` and `n` over all completions and `within`
            groups) and `left_out` (values of rewards beyond `MAX_REWARDS`).
        """
        tally = self._opened()
        if not self._extents.rows:
            return {}
        if len(self._chunk):
            tally.update(*self._chunk.take(len(self.names)))
        shown = [name for name in self.names if name != LENGTH]
        return {
            "early": tally.periods[0],
            "late": tally.periods[1],
            "rollouts": self._extents.rows,
            "rollouts_a_step": self._extents.rows / max(1, self._steps),
            "rewards": [{"name": name, **tally.describe(self.names[name])} for name in shown],
            "matrix": {"names": list(self.names), **tally.correlations()},
            "left_out": self.left_out,
        }

    def _row(self, record: Record, learn: bool = False) -> dict[int, float]:
        """Column -> value of one record; `learn` makes columns for new rewards."""
        row = {0: _bounded(record.get("reward")), 1: _bounded(record.get("num_tokens"))}
        rewards = record.get("rewards")
        if not isinstance(rewards, Mapping):
            return row
        for name, value in rewards.items():
            column = self._places.get(name)
            if column is None:
                column = self._place(str(name), learn)
            if column is not None:
                row[column] = _bounded(value)
        return row

    def _place(self, name: str, learn: bool) -> int | None:
        """The column of a reward that is long, new or one too many."""
        short = _column_name(name)
        if short not in self.names:
            if not learn:
                return None
            if len(self.names) >= MAX_REWARDS + 2:
                self.left_out += 1
                return None
            self.names[short] = len(self.names)
        if len(name) <= len(short):
            self._places[name] = self.names[short]
        return self.names[short]

    def _opened(self) -> _Tally:
        if self._tally is None:
            if len(self._chunk):
                self._extents.update(*self._chunk.take(len(self.names))[:2])
            self._tally = _Tally(self._extents)
        return self._tally


class _Chunk:
    """Rows on their way to an array."""

    def __init__(self) -> None:
        self._rows: list[dict[int, float]] = []
        self._steps: list[float] = []
        self._keys: list[bytes] = []

    def __len__(self) -> int:
        return len(self._rows)

    def begins_group(self, step: float, key: bytes) -> bool:
        """A record belongs to another step or, where a step is huge, at least to another group."""
        return step != self._steps[-1] or (len(self) >= 4 * CHUNK_ROWS and key != self._keys[-1])

    def add(self, row: dict[int, float], step: float, key: bytes = b"") -> None:
        self._rows.append(row)
        self._steps.append(step)
        self._keys.append(key)

    def take(self, num_columns: int) -> tuple[FloatArray, FloatArray, IntArray]:
        """Values `[n, K]`, NaN where there is none; steps `[n]`; number of the group within the chunk `[n]`."""
        values = np.full((len(self._rows), num_columns), np.nan)
        for index, row in enumerate(self._rows):
            values[index, list(row)] = list(row.values())
        steps = np.array(self._steps)
        seen: dict[bytes, int] = {}
        groups = np.array([seen.setdefault(key, len(seen)) for key in self._keys], dtype=np.int64)
        self._rows, self._steps, self._keys = [], [], []
        return values, steps, groups


class _Extents:
    """Bounds, means and typical values of each column, and the first and last step."""

    def __init__(self) -> None:
        self.rows = 0
        self.num_columns = 0
        self.first_step, self.last_step = math.inf, -math.inf
        self.counts: FloatArray = np.zeros(0)
        self.means: FloatArray = np.zeros(0)
        self.lows: FloatArray = np.zeros(0)
        self.highs: FloatArray = np.zeros(0)
        #: The different values of a column, until there are too many.
        self.distinct: list[FloatArray] = []
        self._samples: list[FloatArray] = []
        self._stride = 1

    def update(self, values: FloatArray, steps: FloatArray) -> None:
        """Take in `[n, K]` values and `[n]` steps; K may grow from call to call."""
        self._widen(values.shape[1])
        known = np.isfinite(values)
        amount = known.sum(axis=0)
        sums = np.where(known, values, 0.0).sum(axis=0)
        total = self.counts + amount
        self.means = np.divide(self.means * self.counts + sums, total, out=self.means.copy(), where=total > 0)
        self.counts = total
        self.lows = np.minimum(self.lows, np.where(known, values, np.inf).min(axis=0))
        self.highs = np.maximum(self.highs, np.where(known, values, -np.inf).max(axis=0))
        for column in range(self.num_columns):
            if len(self.distinct[column]) <= MAX_DISTINCT:
                found = np.union1d(self.distinct[column], values[known[:, column], column])
                self.distinct[column] = found[: MAX_DISTINCT + 1]
        self._sample(values)
        self.rows += len(values)
        dated = steps[np.isfinite(steps)]
        if len(dated):
            self.first_step = min(self.first_step, float(dated.min()))
            self.last_step = max(self.last_step, float(dated.max()))

    def steps(self) -> tuple[float, float]:
        """First and last step; 0 and 0 if no record has one."""
        return (self.first_step, self.last_step) if math.isfinite(self.first_step) else (0.0, 0.0)

    def edges(self, column: int) -> FloatArray:
        """The values to count (few different ones), or the bounds of the bins."""
        values = self.distinct[column]
        if len(values) <= MAX_DISTINCT:
            return values
        low, high = self.lows[column], self.highs[column]
        sample = np.concatenate([part[:, column] for part in self._samples if part.shape[1] > column])
        sample = sample[np.isfinite(sample)]
        if len(sample):
            inner = np.quantile(sample, [_TAIL_SHARE, 1.0 - _TAIL_SHARE])
            if 0.0 < (inner[1] - inner[0]) * _STRETCH < high - low:
                low, high = inner
        bounds: FloatArray = np.linspace(low, high, BINS + 1)
        return bounds

    def _widen(self, num_columns: int) -> None:
        more = num_columns - self.num_columns
        self.num_columns = num_columns
        self.counts = np.append(self.counts, np.zeros(more))
        self.means = np.append(self.means, np.zeros(more))
        self.lows = np.append(self.lows, np.full(more, np.inf))
        self.highs = np.append(self.highs, np.full(more, -np.inf))
        self.distinct += [np.zeros(0)] * more

    def _sample(self, values: FloatArray) -> None:
        """Keep every `_stride`-th row of the file; twice as sparse whenever there are too many."""
        kept = values[-self.rows % self._stride :: self._stride]
        self._samples.append(kept)
        while sum(map(len, self._samples)) > _SAMPLE_ROWS:
            widest = self._samples[-1].shape[1]
            padded = [
                np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=np.nan) for part in self._samples
            ]
            self._samples = [np.concatenate(padded)[::2]]
            self._stride *= 2


class _Tally:
    """Counts in bins, by group and by pair of columns.

    Args:
        extents: of the whole file.
    """

    def __init__(self, extents: _Extents) -> None:
        self.extents = extents
        columns = extents.num_columns
        self.edges = [extents.edges(column) for column in range(columns)]
        #: First and last step; rows without one count as of the first.
        self.first, self.last = extents.steps()
        span = (self.last - self.first) * EDGE_SHARE
        #: First and last step of the early and the late part; one step has no two parts.
        self.periods = (
            (self.first, self.first + span) if span > 0 else None,
            (self.last - span, self.last),
        )
        bars = [len(edges) if self._few(k) else BINS for k, edges in enumerate(self.edges)]
        #: Part (early, late) -> counts of each bar, rows without a value, and sum and number of the others.
        self.bars = [[np.zeros(count) for count in bars] for _ in range(2)]
        self.missing = np.zeros((2, columns))
        self.sums = np.zeros((2, columns))
        self.given = np.zeros((2, columns))
        self.blocks = int(min(MAX_BLOCKS, self.last - self.first + 1.0))
        self.flat = np.zeros((self.blocks, columns))
        self.groups = np.zeros((self.blocks, columns))
        scale = extents.highs - extents.lows
        self.scale = np.where(np.isfinite(scale) & (scale > 0.0), scale, 1.0)
        self.overall, self.within = _Moments(columns), _Moments(columns)

    def update(self, values: FloatArray, steps: FloatArray, groups: IntArray) -> None:
        """Take in whole groups: values `[n, K]`, steps `[n]`, and which group a row is of `[n]`."""
        # The file may have grown since it was measured: its last step is not moved any more.
        steps = np.clip(np.where(np.isfinite(steps), steps, self.first), self.first, self.last)
        for part, period in enumerate(self.periods):
            if period is not None:
                self._count_bars(part, values[(steps >= period[0]) & (steps <= period[1])])
        centred = (values - self.extents.means) / self.scale
        self.overall.add(centred)
        order = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        self._count_groups(values[order], steps[order], starts)
        self._count_within(centred[order], starts)

    def describe(self, column: int) -> dict[str, Any]:
        """What is shown of one column."""
        few = self._few(column)
        parts = [
            {
                "bars": [int(count) for count in self.bars[part][column]],
                "missing": int(self.missing[part, column]),
                "n": int(self.given[part, column]),
                "mean": _ratio(self.sums[part, column], self.given[part, column]),
            }
            if self.periods[part] is not None
            else None
            for part in (0, 1)
        ]
        low, high = self.extents.lows[column], self.extents.highs[column]
        edges = self.edges[column]
        return {
            "early": parts[0],
            "late": parts[1],
            "values" if few else "edges": edges.tolist(),
            "cut": not few and bool(low < edges[0] or high > edges[-1]),
            "low": float(low) if math.isfinite(low) else None,
            "high": float(high) if math.isfinite(high) else None,
            "missing": int(self.extents.rows - self.extents.counts[column]),
            "without_spread": _ratio(self.flat[:, column].sum(), self.groups[:, column].sum()),
            "groups": int(self.groups[:, column].sum()),
            "spread": self._spread_curve(column),
        }

    def correlations(self) -> dict[str, Any]:
        """`all` and `within`: Pearson's r `[K][K]`, `None` where one of two does not vary, and n `[K][K]`."""
        return {"all": self.overall.describe(), "within": self.within.describe()}

    def _few(self, column: int) -> bool:
        return len(self.extents.distinct[column]) <= MAX_DISTINCT

    def _count_bars(self, part: int, values: FloatArray) -> None:
        known = np.isfinite(values)
        self.missing[part] += (~known).sum(axis=0)
        self.given[part] += known.sum(axis=0)
        self.sums[part] += np.where(known, values, 0.0).sum(axis=0)
        for column, edges in enumerate(self.edges):
            found = values[known[:, column], column]
            if not len(found) or not len(edges):
                continue
            # A file that has grown since it was measured may hold other values: they go to the nearest bar.
            if self._few(column):
                place = np.searchsorted((edges[1:] + edges[:-1]) / 2.0, found)
            else:
                place = np.clip(np.searchsorted(edges, found, side="right") - 1, 0, BINS - 1)
            self.bars[part][column] += np.bincount(place, minlength=len(self.bars[part][column]))

    def _count_groups(self, values: FloatArray, steps: FloatArray, starts: IntArray) -> None:
        """Rows sorted by group; `starts` `[G]` is where each group begins. Groups of one completion do not count."""
        known = np.isfinite(values)
        highs = np.maximum.reduceat(np.where(known, values, -np.inf), starts, axis=0)
        lows = np.minimum.reduceat(np.where(known, values, np.inf), starts, axis=0)
        sizes = np.diff(starts, append=len(values))
        told = np.isfinite(highs) & (sizes > 1)[:, None]
        flat = told & (np.where(told, highs, 0.0) - np.where(told, lows, 0.0) <= NO_SPREAD)
        block = ((steps[starts] - self.first) / (self.last - self.first + 1.0) * self.blocks).astype(np.int64)
        np.add.at(self.groups, block, told)
        np.add.at(self.flat, block, flat)

    def _count_within(self, centred: FloatArray, starts: IntArray) -> None:
        """Take the group's mean off each value that is there."""
        known = np.isfinite(centred)
        filled = np.where(known, centred, 0.0)
        count = np.add.reduceat(known, starts, axis=0, dtype=np.float64)
        means = np.divide(np.add.reduceat(filled, starts, axis=0), count, out=np.zeros_like(count), where=count > 0)
        sizes = np.diff(starts, append=len(centred))
        own = centred - np.repeat(means, sizes, axis=0)
        self.within.add(own[np.repeat(sizes > 1, sizes)])

    def _spread_curve(self, column: int) -> dict[str, list[float | None]]:
        width = (self.last - self.first + 1.0) / self.blocks
        shares = [_ratio(a, b) for a, b in zip(self.flat[:, column], self.groups[:, column], strict=True)]
        # A block is drawn at its last step, as a metric is logged after its step.
        at = [self.first + math.floor((k + 1) * width + 1e-9) - 1.0 for k in range(self.blocks)]
        return {"x": [*at], "y": shares}


class _Moments:
    """Sums over the rows in which both of two columns have a value: `[K, K]` each."""

    def __init__(self, columns: int) -> None:
        self.n, self.x, self.xx, self.xy = (np.zeros((columns, columns)) for _ in range(4))

    def add(self, values: FloatArray) -> None:
        known = np.isfinite(values).astype(np.float64)
        filled = np.where(known > 0, values, 0.0)
        self.n += known.T @ known
        self.x += filled.T @ known
        self.xx += (filled * filled).T @ known
        self.xy += filled.T @ filled

    def describe(self) -> dict[str, Any]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            together = self.xy - self.x * self.x.T / self.n
            alone = self.xx - self.x**2 / self.n
            r = together / np.sqrt(alone * alone.T)
        # Rounding leaves a trace of variance in a column that does not vary.
        varies = (self.n > 1) & (alone > 1e-12 * np.maximum(self.xx, 1e-300) + 1e-18)
        usable = varies & varies.T & np.isfinite(r)
        return {
            "r": [
                [round(float(np.clip(r[i, j], -1.0, 1.0)), 4) if usable[i, j] else None for j in range(len(r))]
                for i in range(len(r))
            ],
            "n": self.n.astype(np.int64).tolist(),
        }


def _column_name(name: object) -> str:
    """A reward's name; one that would be taken for the total or the length is told apart."""
    text = shorten(str(name), 60)
    return f"{text} (reward)" if text in (TOTAL, LENGTH) else text


def _bounded(value: object) -> float:
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value
    known = number(value)
    return math.nan if known is None else min(max(known, -_LARGEST), _LARGEST)


def _step(record: Record) -> float:
    """The step, NaN if there is none; kept to where float steps are still one apart."""
    step = number(record.get("step"))
    return math.nan if step is None or abs(step) > 2**52 else step


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None
