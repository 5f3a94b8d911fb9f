"""What a study may say: a paired difference over seeds, its interval, and one of four outcomes.

What enters: one number a seed for the baseline and for a method. What leaves: a `Comparison` for every measure, and a `Decision`
for the primary one, in words that claim no more than the interval does.

The rule: with `d` the differences of equal seeds, turned so that better is positive, the claim "shows up" if the t interval of
their mean lies above 0, is "opposite" if it lies below 0, and "does not show at this size" otherwise. If there is no effect and `d` is
normal, a study of any number of seeds says one of the first two with the chance `1 - confidence`, half of it each. Seeds differ
in training rows, sampling and held-out rows, so that the interval covers all three. Without a spread there is no interval and
no outcome: one seed, or differences that are all equal and not 0.

Legend of shapes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmreason.stats import Interval, t_interval
from mmreason.study.settings import Guard, Measure, StudyConfig

Outcome = Literal["shows up", "does not show at this size", "opposite", "cannot be told"]


@dataclass(frozen=True)
class Comparison:
    """One measure of one method against the baseline.

    Attributes:
        measure: what is measured.
        method: name of the arm.
        seeds: those that have a number on both sides, `[S]`.
        differences: method minus baseline, in the measure's own direction, `[S]`.
        interval: of their mean, at the study's confidence.
    """

    measure: Measure
    method: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    interval: Interval

    @property
    def towards_better(self) -> Interval:
        """The interval turned so that better is positive; as it is where neither direction is better."""
        if self.measure.better != "lower":
            return self.interval
        return Interval(-self.interval.mean, -self.interval.high, -self.interval.low, self.interval.n)


@dataclass(frozen=True)
class Decision:
    """What a study says about one method, in one word and in one paragraph."""

    method: str
    outcome: Outcome
    text: str

    def as_dict(self) -> dict[str, str]:
        return {"method": self.method, "outcome": self.outcome, "text": self.text}


def compare(
    measure: Measure,
    method: str,
    ours: Mapping[int, float],
    baseline: Mapping[int, float],
    confidence: float,
) -> Comparison:
    """Pair the seeds of a method with those of the baseline.

    Args:
        measure: what is measured.
        method: name of the arm.
        ours: seed -> number of the method; NaN where it is undefined.
        baseline: seed -> number of the baseline.
        confidence: of the interval.
    """
    seeds = [seed for seed in sorted(ours.keys() & baseline.keys()) if math.isfinite(ours[seed] - baseline[seed])]
    differences = tuple(ours[seed] - baseline[seed] for seed in seeds)
    return Comparison(measure, method, tuple(seeds), differences, t_interval(differences, confidence))


def outcome(differences: Sequence[float], confidence: float) -> Outcome:
    """The rule of this module for differences that are turned so that better is positive."""
    interval = t_interval(differences, confidence)
    if interval.n < 2 or (interval.low == interval.high and interval.mean != 0.0):
        return "cannot be told"
    if interval.low > 0.0:
        return "shows up"
    return "opposite" if interval.high < 0.0 else "does not show at this size"


def decide(study: StudyConfig, planned: int, comparisons: Mapping[str, Comparison]) -> Decision:
    """The verdict of one method.

    Args:
        study: the study.
        planned: number of seeds that were asked for.
        comparisons: measure -> comparison of this method.
    """
    primary = comparisons[study.primary.name]
    sign = 1.0 if primary.measure.better == "higher" else -1.0
    found = outcome([sign * value for value in primary.differences], study.confidence)
    parts = [_reason(primary, found, study.confidence)]
    guard = study.verdict.guard
    if guard is not None and found == "shows up":
        kept, reason = _guarded(guard, comparisons[guard.measure])
        found = "shows up" if kept else "does not show at this size"
        parts.append(reason)
    if len(primary.seeds) < planned:
        parts.append(
            f"Only {len(primary.seeds)} of {planned} seeds count: the others failed, are not done, or have no such number."
        )
    label = study.arms[primary.method].label
    return Decision(primary.method, found, f"{label}: **{found}**. " + " ".join(parts))


def _reason(primary: Comparison, found: Outcome, confidence: float) -> str:
    label, interval = primary.measure.label, primary.interval
    if found == "cannot be told":
        if interval.n < 2:
            return f"{label}: {interval.n} paired seed(s); an interval needs two or more."
        return (
            f"{label}: all {interval.n} paired differences are exactly {interval.mean:+.4g}; without a spread there is no "
            "interval. More held-out rows or seeds would tell."
        )
    text = f"{label}, method minus baseline: {signed(interval)}, {percent(confidence)} t interval over {interval.n} paired seeds; "
    text += f"{primary.measure.better} is better. "
    if found == "does not show at this size":
        return text + "The interval holds 0: this study finds no difference and does not show that there is none."
    if found == "opposite":
        return text + "The interval lies on the worse side of 0."
    return text + "The interval lies on the better side of 0."


def _guarded(guard: Guard, comparison: Comparison) -> tuple[bool, str]:
    label, interval = comparison.measure.label, comparison.towards_better
    if interval.n < 2:
        return (
            False,
            f"But {label} cannot be compared over {interval.n} seed(s), and it must not fall by {guard.margin:g}.",
        )
    if interval.low >= -guard.margin:
        return True, f"{label} is kept: {signed(comparison.interval)}, within the margin of {guard.margin:g}."
    return False, (
        f"But {label} may have got worse by more than the margin of {guard.margin:g}: {signed(comparison.interval)}; so the "
        "claim, which holds at equal quality, is not shown."
    )


def percent(share: float) -> str:
    """`95 %`."""
    return f"{100.0 * share:.4g} %"


def signed(interval: Interval) -> str:
    """`+0.123 [-0.010, +0.256]`."""
    if interval.n == 0:
        return "none"
    if interval.n == 1:
        return f"{interval.mean:+.3f} [one seed]"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def describe(value: Comparison) -> dict[str, Any]:
    """A comparison as plain data for `study.json`."""
    return {
        "measure": value.measure.name,
        "method": value.method,
        "seeds": list(value.seeds),
        "differences": list(value.differences),
        "interval": value.interval.as_dict(),
    }
