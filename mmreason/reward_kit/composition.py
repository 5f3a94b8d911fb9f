"""From the values of all rewards to one total: gates, weights, schedules, and sum, product or minimum.

What enters: the matrix of values, and what the config says of each reward. What leaves: the total of every rollout, and
the terms that a weighted sum (TRL's) makes the same total of. Pure arithmetic; none of it is a reward of its own.

    value ──gate──▶ value, or 0 where the condition does not hold ──× weight × schedule──▶ combine ──▶ total

Shapes: N rollouts, R rewards; NaN = "does not apply".
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Combine: TypeAlias = Literal["sum", "product", "min"]

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(
    r"[ \t]{0,8}(?P<name>[A-Za-z][A-Za-z0-9_]{0,99}(?:/[A-Za-z][A-Za-z0-9_]{0,99})?)"
    r"[ \t]{0,8}(?P<sign>>=|<=|==|!=|>|<)"
    r"[ \t]{0,8}(?P<number>[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,2})?)[ \t]{0,8}\Z"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """`NAME OP NUMBER`, such as `exact > 0.5`: whether the value of a reward passes a bound.

    Attributes:
        name: a reward of the run.
        sign: `>`, `>=`, `<`, `<=`, `==` or `!=`.
        number: what it is compared with.
    """

    name: str
    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition; raises `ValueError` with the form in its message."""
        match = _CONDITION.match(text)
        if match is None:
            raise ValueError(
                f"a condition is NAME OP NUMBER with OP one of {', '.join(_OPERATORS)}, such as 'exact > 0'"
            )
        return cls(match["name"], match["sign"], float(match["number"]))

    def holds(self, values: FloatArray) -> FloatArray:
        """Where the condition holds, `[N]`: 1, 0, or NaN where the value is missing."""
        passed = _OPERATORS[self.sign](values, self.number)
        holds: FloatArray = np.where(np.isnan(values), np.nan, passed.astype(np.float64))
        return holds


def check_schedule(points: Sequence[Sequence[float]]) -> None:
    """Refuse a schedule that is none; raises `ValueError`.

    Args:
        points: `[progress, factor]` pairs, progress rising from 0 to 1 at most.
    """
    if not points:
        raise ValueError("a schedule needs at least one point [progress, factor], such as [[0, 1], [0.5, 0.2]]")
    progress = [point[0] for point in points]
    if any(not 0.0 <= share <= 1.0 for share in progress):
        raise ValueError("progress, the first number of a point, is a share of the training between 0 and 1")
    if any(later <= earlier for earlier, later in itertools.pairwise(progress)):
        raise ValueError("the points must come in the order of their progress, each later than the one before")


@dataclass(frozen=True)
class Composition:
    """How the values of R rewards become a total.

    Attributes:
        names: `[R]`.
        weights: `[R]`, before the schedules.
        gates: `[R]` conditions on values of other rewards (or the same), or `None`.
        schedules: `[R]` points `(progress, factor)` of a piecewise linear factor of the weight, or `None`.
        combine: `sum`, `product` or `min` of the weighted values that apply.
    """

    names: tuple[str, ...]
    weights: FloatArray
    gates: tuple[Condition | None, ...]
    schedules: tuple[tuple[tuple[float, float], ...] | None, ...]
    combine: Combine = "sum"

    def factors(self, progress: float) -> FloatArray:
        """Factor of each weight at this progress, `[R]`; constant before the first point and after the last."""
        factors = np.ones(len(self.names))
        for index, points in enumerate(self.schedules):
            if points is not None:
                shares, heights = zip(*points, strict=True)
                factors[index] = np.interp(progress, shares, heights)
        return factors

    def gated(self, values: FloatArray, raw: FloatArray) -> FloatArray:
        """Values behind their gates, `[N, R]`: 0 where the gate's condition fails, NaN where it cannot be told.

        Args:
            values: `[N, R]`.
            raw: `[N, R]`, before shapers: what the conditions look at.
        """
        result = values.copy()
        for index, gate in enumerate(self.gates):
            if gate is not None:
                # NaN times anything stays NaN: where the condition cannot be told, the reward does not apply.
                result[:, index] *= gate.holds(raw[:, self.names.index(gate.name)])
        return result

    def terms(self, values: FloatArray, raw: FloatArray, progress: float) -> FloatArray:
        """The matrix of which `sum over r of weights[r] · terms[n, r]`, NaN left out, is the total.

        Args:
            values: `[N, R]`.
            raw: `[N, R]`, before shapers.
            progress: share of the training that is done, 0..1.

        Returns:
            `[N, R]`; a row without any score is NaN throughout.
        """
        factors = self.factors(progress)
        terms = self.gated(values, raw) * factors
        terms[:, factors == 0.0] = np.nan
        if self.combine != "sum":
            terms = self._one_column(terms)
        terms[np.isnan(weighted_total(terms, self.weights))] = np.nan
        return terms

    def total(self, values: FloatArray, raw: FloatArray, progress: float) -> FloatArray:
        """The total of every rollout, `[N]`; NaN where no reward with a weight other than 0 applies."""
        return weighted_total(self.terms(values, raw, progress), self.weights)

    def _one_column(self, terms: FloatArray) -> FloatArray:
        """Product or minimum, put into the column of the first reward that weighs, divided by its weight."""
        weighs = np.flatnonzero(self.weights)
        result = np.full_like(terms, np.nan)
        if len(weighs) == 0:
            return result
        weighted = terms[:, weighs] * self.weights[weighs]
        applies = ~np.isnan(weighted)
        if self.combine == "product":
            combined = np.where(applies, weighted, 1.0).prod(axis=1)
        else:
            combined = np.where(applies, weighted, math.inf).min(axis=1)
        combined[~applies.any(axis=1)] = np.nan
        result[:, weighs[0]] = combined / self.weights[weighs[0]]
        return result


def weighted_total(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Sum over the rewards that apply.

    Args:
        values: `[N, R]`, NaN = does not apply.
        weights: `[R]`.

    Returns:
        `[N]`; NaN where no reward with a weight other than 0 applies.
    """
    weighs = weights != 0.0
    applies = ~np.isnan(values[:, weighs])
    total: FloatArray = np.where(applies, values[:, weighs] * weights[weighs], 0.0).sum(axis=1)
    total[~applies.any(axis=1)] = np.nan
    return total
