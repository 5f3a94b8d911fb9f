"""Whether a score rises while correctness falls: the sign of a reward that can be had without being right.

What enters: the logged metrics of one step after the other. What leaves: a sentence while both trends stand. No torch.

The rule. Both series are tested for a monotone trend over their last `WINDOW` observations, and over the last 4 and 16
times as many in block means, so that a slow slide shows as well. The test is Mann and Kendall's (Mann 1945, Econometrica
13; Kendall, Rank Correlation Methods): it uses ranks only, so that neither one odd step nor the unit of a reward matters.
Neighbouring steps may be alike without any trend; the z-score is therefore divided by the factor that their correlation
(lag 1, of what the Theil-Sen line leaves) widens it by. Correctness alone must pass a bound (`FALL_Z`) that pure noise
passes in about one of a hundred runs of 200 steps, all looks together, so the rate of false alarms stays below that
whatever the number of rewards and however their noise is tied to that of correctness. The rise need only be likely
(`RISE_Z`). The fall must be worth a word too (`MIN_FALL`).

Legend of shapes: n observations, S scores (the total and every reward).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmreason.stats import Trend, rough_z, trend

FloatArray = NDArray[np.float64]

#: Points of one test, and how many observations make a point.
WINDOW, BLOCKS = 48, (1, 4, 16)
#: Observations between two looks at a series that every step adds to.
LOOK_EVERY = 4
#: Least observations for a test: of a series that every step adds to, and of held-out scores.
FIRST_STEPS, FIRST_EVALUATIONS = 16, 7
#: Bounds of the z-scores. Held-out scores are looked at far less often, and so may have the lower bound.
FALL_Z, FALL_Z_EVALUATIONS, RISE_Z = 3.7, 3.0, 2.0
#: A standing alarm ends when no window shows a fall beyond this.
CLEAR_Z = 1.5
#: Least fall of correctness over the window, as a share of the answers.
MIN_FALL = 0.03
#: Most looks find nothing: below this share of the bound, the rough score spares the exact one.
_SCREEN = 0.75


class ScoreWatch:
    """Watches one measure of correctness beside the scores.

    Args:
        correct: metric that says how many answers are right: `correct` or `eval/accuracy`.
        reward_names: rewards that are trained on.
    """

    def __init__(self, correct: str, reward_names: Sequence[str]) -> None:
        self.correct = correct
        self.scores = ("reward", *(f"rewards/{name}" for name in reward_names))
        self.held_out = correct.startswith("eval/")
        self._seen: deque[list[float]] = deque(maxlen=WINDOW * BLOCKS[-1])
        self._since: list[list[float]] = []
        self._count = 0
        self._standing = ""
        #: Observations a point -> z-score of correctness at the last look.
        self._falls: dict[int, float] = {}

    def observe(self, metrics: Mapping[str, float]) -> str:
        """Take the metrics of a step.

        Returns:
            What rises and what falls while the alarm stands, else an empty text.
        """
        self._since.append([metrics.get(name, math.nan) for name in self.scores])
        del self._since[:-WINDOW]
        right = metrics.get(self.correct, math.nan)
        if not math.isfinite(right):
            return self._standing
        scores = np.array(self._since)
        self._since.clear()
        row = [right, *(_mean(column) for column in scores.T)]
        if self._seen and np.array_equal(row, self._seen[-1], equal_nan=True):
            return self._standing  # several optimizer steps on one batch of rollouts log the same numbers
        self._seen.append(row)
        self._count += 1
        if len(self._seen) >= (FIRST_EVALUATIONS if self.held_out else FIRST_STEPS) and (
            self.held_out or self._count % LOOK_EVERY == 0
        ):
            self._look()
        return self._standing

    def _look(self) -> None:
        seen = np.array(self._seen)  # [n, 1 + S]
        for block in BLOCKS:
            if block > 1 and (len(seen) < WINDOW * block or self._count % block):
                continue
            window = seen[-WINDOW * block :]
            points = window if block == 1 else _block_means(window, block)
            bound = FALL_Z_EVALUATIONS if self.held_out else FALL_Z
            if not self._standing and rough_z(points[:, 0]) > -_SCREEN * bound:
                continue
            fall = trend(points[:, 0])
            self._falls[block] = fall.z
            if fall.z > -bound or fall.start - fall.end < MIN_FALL or self._standing:
                continue
            rising = self._rising(points[:, 1:])
            if rising:
                told = ", ".join(f"{name} {one.start:.3g} → {one.end:.3g}" for name, one in rising)
                what = "evaluations" if self.held_out else "steps"
                self._standing = (
                    f"over the last {len(window)} {what} {told}, but {self.correct} {fall.start:.3g} → {fall.end:.3g}"
                )
        if self._standing and min(self._falls.values()) > -CLEAR_Z:
            self._standing = ""

    def _rising(self, points: FloatArray) -> list[tuple[str, Trend]]:
        """The scores `[n, S]` that rise, by name."""
        found = []
        for name, column in zip(self.scores, points.T, strict=True):
            known = column[np.isfinite(column)]
            one = trend(known)
            if len(known) >= len(column) / 2 and one.z >= RISE_Z and one.end > one.start:
                found.append((name.removeprefix("rewards/"), one))
        return found


def _block_means(window: FloatArray, block: int) -> FloatArray:
    """`[n, 1 + S]` -> `[n / block, 1 + S]`, NaN left out."""
    parts = window.reshape(-1, block, window.shape[1])
    count = np.isfinite(parts).sum(axis=1)
    total = np.where(np.isfinite(parts), parts, 0.0).sum(axis=1)
    means: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
