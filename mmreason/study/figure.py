"""The picture of a study: how the arms learn, and where they end.

What enters: a `Plan` and its `Numbers`. What leaves: an SVG. Left: the metric over the steps, every seed faint, their mean strong. Right: the
primary measure, one dot a seed, dots of equal seeds joined, mean and t interval beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mmreason.stats import t_interval
from mmreason.study.planning import Plan
from mmreason.study.reading import Numbers
from mmreason.study.verdict import percent

#: Of the arms in order: told apart by all kinds of colour vision, and in print.
COLORS = ("#4a5568", "#c05621", "#2b6cb0", "#6b46c1", "#2f855a")
#: Steps over which a curve is averaged.
_WINDOW = 5


def draw(plan: Plan, numbers: Numbers, path: Path) -> None:
    """Write the figure; text stays text, and equal numbers give an equal file."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": plan.name, "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _curves(left, plan, numbers)
        _dots(right, plan, numbers)
        figure.savefig(path, format="svg", metadata={"Date": None, "Title": plan.study.title})


def smooth(values: Sequence[float], window: int = _WINDOW) -> list[float]:
    """Mean of each value and those before it, `window` at most."""
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def _curves(panel: Any, plan: Plan, numbers: Numbers) -> None:
    for (arm, config), color in zip(plan.study.arms.items(), COLORS * len(plan.study.arms), strict=False):
        every = {seed: dict(curve) for seed, curve in numbers.curves.get(arm, {}).items() if curve}
        for curve in every.values():
            panel.plot(list(curve), smooth(list(curve.values())), color=color, alpha=0.25, linewidth=0.8)
        shared = sorted(set.intersection(*(set(curve) for curve in every.values()))) if every else []
        if shared:
            means = [float(np.mean([curve[step] for curve in every.values()])) for step in shared]
            panel.plot(shared, smooth(means), color=color, linewidth=2.0, label=config.label)
            panel.legend(frameon=False)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel(plan.study.curve.label)
    panel.set_title(f"mean of {_WINDOW} steps; faint: each seed", fontsize=9)
    panel.grid(alpha=0.3)


def _dots(panel: Any, plan: Plan, numbers: Numbers) -> None:
    study = plan.study
    arms = list(study.arms)
    found = {arm: numbers.values.get(arm, {}).get(study.primary.name, {}) for arm in arms}
    for seed in plan.seeds:
        places = [(number, found[arm][seed]) for number, arm in enumerate(arms) if seed in found[arm]]
        panel.plot([x for x, _ in places], [y for _, y in places], color="#a0aec0", linewidth=0.8, zorder=1)
    for number, arm in enumerate(arms):
        values, color = list(found[arm].values()), COLORS[number % len(COLORS)]
        panel.plot([number] * len(values), values, "o", color=color, markersize=5, alpha=0.7, zorder=2)
        interval = t_interval(values, study.verdict.confidence)
        if interval.n >= 2:
            bars = [[interval.mean - interval.low], [interval.high - interval.mean]]
            panel.errorbar([number + 0.16], [interval.mean], yerr=bars, fmt="_", capsize=3, color=color, zorder=3)
    panel.set_xticks(range(len(arms)), [study.arms[arm].label for arm in arms])
    panel.set_xlim(-0.5, len(arms) - 0.5)
    panel.set_ylabel(study.primary.label)
    panel.set_title(f"each seed; bar: mean, {percent(study.verdict.confidence)} t interval", fontsize=9)
    panel.grid(alpha=0.3, axis="y")
