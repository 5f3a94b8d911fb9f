"""The summary of re-scored rollouts: a histogram of each reward, and how it goes with what the run had stored.

What enters: values of rewards, and the records that they were computed from. What leaves: lines of text.

Shapes: N records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.float64]

_BAR_CHARS = 40
_BINS = 10
#: Up to so many different values are shown as they are.
_FEW_VALUES = 6


class ScoreSummary:
    """Collects values and tells about them."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._stored: dict[str, list[float]] = {}
        self._totals: list[float] = []

    def add(self, scores: Mapping[str, float | None], record: Mapping[str, Any]) -> None:
        """Take in one record.

        Args:
            scores: reward -> its value now.
            record: as in `rollouts.jsonl`; its `rewards` and `reward` are what was stored.
        """
        stored = record.get("rewards")
        for name, value in scores.items():
            self._values.setdefault(name, []).append(_number(value))
            before = stored.get(name) if isinstance(stored, dict) else None
            self._stored.setdefault(name, []).append(_number(before))
        self._totals.append(_number(record.get("reward")))

    def lines(self) -> Iterator[str]:
        """The summary, line by line."""
        totals = np.array(self._totals)
        for name, listed in self._values.items():
            values = np.array(listed)
            given = values[np.isfinite(values)]
            missing = len(values) - len(given)
            head = f"{name}: {len(given)} values"
            if len(given):
                low, high = given.min(), given.max()
                head += f", all {low:.3g}" if low == high else f", mean {given.mean():.3g}, {low:.3g}..{high:.3g}"
            yield head + (f"; {missing} records without" if missing else "")
            yield from _histogram(given)
            for what, other in ((f"the stored {name}", np.array(self._stored[name])), ("the stored total", totals)):
                if np.isfinite(other).any():
                    yield f"  with {what}: {_agreement(values, other)}"


def _number(value: object) -> float:
    """A finite number, or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return math.nan
    return float(value)


def _histogram(values: FloatArray) -> Iterator[str]:
    """A bar for each value, if there are few, or for each of ten equal bins."""
    counts = Counter(values.tolist())
    if len(counts) <= _FEW_VALUES:
        rows = [(f"{value:.3g}", counts[value]) for value in sorted(counts)]
    else:
        numbers, edges = np.histogram(values, bins=_BINS)
        rows = [(f"{edges[i]:.3g}..{edges[i + 1]:.3g}", int(count)) for i, count in enumerate(numbers)]
    widest = max((len(label) for label, _ in rows), default=0)
    most = max((count for _, count in rows), default=0)
    for label, count in rows:
        bar = "█" * math.ceil(_BAR_CHARS * count / most)
        yield f"  {label:>{widest}}  {bar:<{_BAR_CHARS}}  {count}"


def _agreement(values: FloatArray, stored: FloatArray) -> str:
    """Pearson's and Spearman's correlation over the records that have both."""
    both = np.isfinite(values) & np.isfinite(stored)
    ours, theirs = values[both], stored[both]
    if len(ours) < 2 or np.ptp(ours) == 0.0 or np.ptp(theirs) == 0.0:
        return f"no correlation, one of them does not vary (n = {len(ours)})"
    pearson = np.corrcoef(ours, theirs)[0, 1]
    spearman = np.corrcoef(rankdata(ours), rankdata(theirs))[0, 1]
    return f"Pearson {pearson:.3f}, Spearman {spearman:.3f} (n = {len(ours)})"
