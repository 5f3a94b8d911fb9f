"""Numbers out of run folders: one a seed for every arm and measure, curves, and what the runs cost.

What enters: a `Plan` whose jobs have run, all or some. What leaves: `Numbers`. Runs that are not finished have none. No torch.

Legend of shapes: T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmreason.run_records import RunFolder, read_metrics
from mmreason.study.planning import Job, Plan
from mmreason.study.records import is_finished
from mmreason.study.settings import Measure


@dataclass
class Cost:
    """What one run took.

    Attributes:
        steps: optimizer steps done.
        completions: sampled for training.
        tokens: sampled for training.
        seconds: in the steps, all processes of the run together.
    """

    steps: int
    completions: int
    tokens: float
    seconds: float


@dataclass
class Numbers:
    """Everything that was measured.

    Attributes:
        values: arm -> measure -> seed -> number; NaN where it is undefined.
        curves: arm -> seed -> `[T]` pairs of step and metric.
        costs: arm -> seed -> cost.
        versions: packages of the runs, each set once.
        missing: jobs that are not finished.
    """

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    curves: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)
    costs: dict[str, dict[int, Cost]] = field(default_factory=dict)
    versions: list[dict[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_numbers(plan: Plan) -> Numbers:
    """Read what is finished; raises `DataError` for a damaged file."""
    numbers = Numbers(missing=[job.name for job in plan.jobs if not is_finished(plan, job)])
    for arm in plan.study.arms:
        numbers.values[arm] = {measure.name: {} for measure in plan.study.measures}
        numbers.curves[arm], numbers.costs[arm] = {}, {}
        for seed in plan.seeds:
            job = plan.job(arm, seed)
            if job.name in numbers.missing:
                continue
            folder = RunFolder(job.folder)
            summary, steps = folder.read_summary() or {}, list(read_metrics(folder.metrics))
            numbers.curves[arm][seed] = _series(steps, plan.study.curve.metric)
            numbers.costs[arm][seed] = _cost(job, steps)
            versions = dict(summary.get("versions", {}))
            if versions not in numbers.versions:
                numbers.versions.append(versions)
            for measure in plan.study.measures:
                value = _measured(plan, measure, arm, seed, summary, steps, numbers.missing)
                if value is not None:
                    numbers.values[arm][measure.name][seed] = value
    return numbers


def _measured(
    plan: Plan,
    measure: Measure,
    arm: str,
    seed: int,
    summary: Mapping[str, Any],
    steps: list[dict[str, Any]],
    missing: list[str],
) -> float | None:
    """One number; NaN if it is undefined, `None` if the evaluation is not finished."""
    evaluated: Mapping[str, Any] = {}
    if measure.eval is not None:
        job = plan.job(arm, seed, measure.eval)
        if job.name in missing:
            return None
        evaluated = RunFolder(job.folder).read_summary() or {}
    if measure.kind == "metric":
        assert measure.metric is not None
        assert measure.last is not None
        values = [value for _, value in _series(steps, measure.metric)[-measure.last :]]
        found = math.fsum(values) / len(values) if values else math.nan
    else:
        assert measure.score is not None
        own = _score(summary, "after", measure.score)
        other = _score(evaluated, "after", measure.score)
        found = {
            "score": own,
            "gain": own - _score(summary, "before", measure.score),
            "eval": other,
            "drop": own - other,
        }[measure.kind]
    if math.isnan(found) and measure.undefined_as is not None:
        return measure.undefined_as
    return found


def _score(summary: Mapping[str, Any], when: str, name: str) -> float:
    """A score of an evaluation, or one of the numbers that only a whole evaluation has; NaN if there is none."""
    scored = summary.get(when, {}).get(name)
    value = scored.get("mean") if scored is not None else summary.get("measures", {}).get(when, {}).get(name)
    return math.nan if value is None else float(value)


def _series(steps: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[metric])) for line in steps if line.get(metric) is not None]


def _cost(job: Job, steps: list[dict[str, Any]]) -> Cost:
    rollout, passes = job.config.rollout, job.config.objective.num_iterations
    # Refilled batches sample more groups than they train on; a batch feeds several steps where there are several passes.
    groups = [float(line.get("refill/sampled_groups") or rollout.prompts_per_step) for line in steps]
    completions = [number * rollout.group_size / passes for number in groups]
    lengths = [float(line.get("completion_length") or 0.0) for line in steps]
    return Cost(
        steps=len(steps),
        completions=int(sum(completions)),
        tokens=sum(a * b for a, b in zip(completions, lengths, strict=True)),
        seconds=sum(float(line.get("step_seconds") or 0.0) for line in steps),
    )
