"""How a coefficient moves during training.

What enters: global progress, 0 at the first optimizer step and 1 at the last. What leaves: the coefficient at that
point. No state, so a resumed run goes on where it was.

Progress is of the whole run. Visionary-R1's released code puts the fraction of the epoch into its cosine, which lets
the coefficient rise again in every further epoch; values outside 0..1 are therefore refused rather than clamped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def constant(progress: float, value: float) -> float:
    """`value` throughout."""
    _check_progress(progress)
    return value


def linear(progress: float, start: float, end: float = 0.0, until: float = 1.0) -> float:
    """Straight from `start` to `end` at progress `until` (0 < until <= 1), then `end`.

    PAPO anneals γ with `linear(progress, 0.01, 0.0, until=0.5)`, and both entropy coefficients by the same factor
    (arXiv 2507.06448, off by default).
    """
    return end + (start - end) * (1.0 - _share(progress, until))


def cosine(progress: float, start: float, end: float = 0.0, until: float = 1.0) -> float:
    """Half a cosine from `start` to `end` at progress `until`, then `end`: `end + (start - end) (1 + cos π u) / 2`.

    Visionary-R1 takes the reference KL from β = 0.04 to 0 this way (arXiv 2505.14677): .04, .034142, .02, .005858, 0 at
    progress 0, .25, .5, .75, 1.
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _share(progress, until)))


def piecewise_linear(progress: float, points: Sequence[tuple[float, float]]) -> float:
    """Straight lines between `(progress, value)` points; the first value before the first, the last after the last.

    Raises:
        ValueError: no points, places outside 0..1 or not strictly ascending, or a value that is not finite.
    """
    _check_progress(progress)
    places = [place for place, _ in points]
    if not points or not all(0 <= place <= 1 for place in places) or any(a >= b for a, b in pairwise(places)):
        raise ValueError(f"points need ascending places in 0..1, not {places}")
    if not all(math.isfinite(value) for _, value in points):
        raise ValueError(f"points need finite values, not {[value for _, value in points]}")
    if progress <= places[0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if progress <= right:
            return low + (high - low) * (progress - left) / (right - left)
    return points[-1][1]


def _share(progress: float, until: float) -> float:
    _check_progress(progress)
    if not 0 < until <= 1:
        raise ValueError(f"until must lie in 0 < until <= 1, not {until}")
    return min(1.0, progress / until)


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is a share of the whole run, 0..1, not {progress}")
