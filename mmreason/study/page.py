"""What a study leaves to read: `study.json`, `README.md` with the table and the verdict, `figure.svg`.

What enters: a `Plan` and its `Numbers`. What leaves: the three files, and for `--docs` a copy of page and figure under the study's name.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmreason import __version__
from mmreason.run_records import to_plain, write_atomically
from mmreason.stats import Interval, t_interval
from mmreason.study.figure import draw
from mmreason.study.planning import COMPUTE, Plan
from mmreason.study.reading import Cost, Numbers
from mmreason.study.records import read_sessions
from mmreason.study.settings import BASELINE, Measure
from mmreason.study.verdict import Comparison, Decision, compare, decide, describe, percent, signed

_FIGURE = "figure.svg"


@dataclass(frozen=True)
class Result:
    """A study, evaluated.

    Attributes:
        comparisons: method -> measure -> comparison.
        decisions: one a method.
    """

    comparisons: Mapping[str, Mapping[str, Comparison]]
    decisions: Sequence[Decision]


def evaluate_study(plan: Plan, numbers: Numbers) -> Result:
    """Compare every method with the baseline, and decide."""
    study = plan.study
    comparisons = {
        method: {
            measure.name: compare(
                measure,
                method,
                numbers.values[method][measure.name],
                numbers.values[BASELINE][measure.name],
                study.confidence,
            )
            for measure in study.measures
        }
        for method in study.methods
    }
    return Result(comparisons, [decide(study, len(plan.seeds), found) for found in comparisons.values()])


def write_report(plan: Plan, numbers: Numbers, result: Result, docs: Path | None = None) -> Path:
    """Write the three files, and a copy for the documentation; returns the page."""
    page = plan.out / "README.md"
    draw(plan, numbers, plan.out / _FIGURE)
    write_atomically(page, markdown(plan, numbers, result, _FIGURE).encode())
    record = json.dumps(to_plain(as_dict(plan, numbers, result)), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(plan.out / "study.json", record.encode() + b"\n")
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        write_atomically(docs / f"{plan.name}.svg", (plan.out / _FIGURE).read_bytes())
        write_atomically(docs / f"{plan.name}.md", markdown(plan, numbers, result, f"{plan.name}.svg").encode())
    return page


def as_dict(plan: Plan, numbers: Numbers, result: Result) -> dict[str, Any]:
    """All numbers of a study, for programs."""
    return {
        "study": plan.name,
        "settings": plan.study.model_dump(mode="json"),
        "command": command(plan),
        "date": _today(),
        "machine": _machine(),
        "versions": numbers.versions,
        "mmreason": __version__,
        "seeds": list(plan.seeds),
        "missing": numbers.missing,
        "values": {
            arm: {name: {str(seed): value for seed, value in seeds.items()} for name, seeds in measures.items()}
            for arm, measures in numbers.values.items()
        },
        "costs": {
            arm: {str(seed): asdict(cost) for seed, cost in costs.items()} for arm, costs in numbers.costs.items()
        },
        "unequal_compute": plan.differences,
        "confidence": plan.study.confidence,
        "comparisons": [describe(one) for found in result.comparisons.values() for one in found.values()],
        "verdicts": [decision.as_dict() for decision in result.decisions],
    }


def command(plan: Plan) -> str:
    """The command line that repeats the study."""
    words = ["mmreason", "study", plan.name]
    if plan.seeds != plan.study.seeds:
        words += ["--seeds", ",".join(map(str, plan.seeds))]
    return shlex.join([*words, *plan.typed])


# ---------------------------------------------------------------------- Markdown


def markdown(plan: Plan, numbers: Numbers, result: Result, figure: str) -> str:
    """The page."""
    study = plan.study
    parts = [
        f"# {study.title}",
        f"Claim: {study.claim} ({study.source})",
        *(decision.text for decision in result.decisions),
        f"![{study.curve.label} over the steps, and {study.primary.label} of every seed, by arm]({figure})",
        _heading(plan, numbers),
        "## Measures",
        _measures_table(plan, numbers, result),
        _how(plan),
        "## Compute",
        _compute_table(plan, numbers),
        _compute_notes(plan),
        _clock(plan),
        "## Deviations and limits",
        "\n".join(f"- {line}" for line in _deviations(plan, numbers)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(plan: Plan, numbers: Numbers) -> str:
    versions = "; or ".join(
        ", ".join(f"{name} {number}" for name, number in found.items()) for found in numbers.versions
    )
    seeds = ", ".join(map(str, plan.seeds))
    return f"{_today()}, {_machine()}, {versions or 'no run is finished'}. Seeds {seeds}.\n\n    {command(plan)}"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _measures_table(plan: Plan, numbers: Numbers, result: Result) -> str:
    study = plan.study
    heads = [f"{arm.label}" for arm in study.arms.values()]
    heads += [f"{study.arms[method].label} − {study.arms[BASELINE].label}, paired" for method in study.methods]
    lines = [f"| measure | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for measure in study.measures:
        cells = [
            _arm_cell(list(numbers.values[arm][measure.name].values()), study.verdict.confidence) for arm in study.arms
        ]
        cells += [_difference_cell(result.comparisons[method][measure.name]) for method in study.methods]
        lines.append(f"| {_measure_name(measure)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measure_name(measure: Measure) -> str:
    name = measure.label if measure.better == "neither" else f"{measure.label} ({measure.better} is better)"
    return f"**{name}**, decides" if measure.primary else name


def _arm_cell(values: Sequence[float], confidence: float) -> str:
    interval = t_interval(values, confidence)
    return f"{_plain(interval)}; " + ", ".join(f"{value:.3f}" for value in values) if values else "none"


def _plain(interval: Interval) -> str:
    return str(interval).replace("one score", "one seed").replace("no scores", "undefined")


def _difference_cell(comparison: Comparison) -> str:
    return f"{signed(comparison.interval)}, n = {comparison.interval.n}"


def _how(plan: Plan) -> str:
    confidence = plan.study.confidence
    text = f"Mean over seeds [{percent(plan.study.verdict.confidence)} Student t interval]; then every seed. Differences are paired by seed"
    if len(plan.study.methods) > 1:
        text += f", at {percent(confidence)} each, so that all {len(plan.study.methods)} together keep the stated level (Bonferroni)"
    return text + (
        ". Only the bold measure decides; the intervals of the others are not corrected for being many. With few seeds a t "
        "interval is wide, and honestly so (a bootstrap of three values would promise too much); it is not cut at 0 and 1."
    )


def _compute_table(plan: Plan, numbers: Numbers) -> str:
    arms = list(plan.study.arms)
    lines = [
        "| a run | " + " | ".join(plan.study.arms[arm].label for arm in arms) + " |",
        "| --- |" + " ---: |" * len(arms),
    ]
    configs = {arm: plan.job(arm, plan.seeds[0]).config for arm in arms}
    for key, name in COMPUTE.items():
        section, _, option = key.partition(".")
        values = [getattr(getattr(configs[arm], section), option) for arm in arms]
        mark = " (**differs**)" if key in plan.differences else ""
        lines.append(f"| {name}{mark} | " + " | ".join(map(str, values)) + " |")
    rows: tuple[tuple[str, Any], ...] = (
        ("completions sampled", lambda cost: f"{cost.completions:,}"),
        ("tokens sampled", lambda cost: f"{cost.tokens:,.0f}"),
        ("seconds in steps", lambda cost: f"{cost.seconds:,.0f}"),
    )
    for name, show in rows:
        lines.append(
            f"| {name}, mean of seeds | " + " | ".join(_mean_cost(numbers.costs[arm], show) for arm in arms) + " |"
        )
    return "\n".join(lines)


def _mean_cost(costs: Mapping[int, Cost], show: Any) -> str:
    if not costs:
        return "none"
    count = len(costs)
    return str(
        show(
            Cost(
                sum(one.steps for one in costs.values()) // count,
                sum(one.completions for one in costs.values()) // count,
                sum(one.tokens for one in costs.values()) / count,
                sum(one.seconds for one in costs.values()) / count,
            )
        )
    )


def _clock(plan: Plan) -> str:
    """How long the whole study took, warm-up and evaluations included."""
    sessions = read_sessions(plan)
    if not sessions:
        return ""
    minutes = sum(one["seconds"] for one in sessions) / 60
    at_once = "; ".join(dict.fromkeys(f"{one['jobs_at_once']:.0f}" for one in sessions))
    return f"The whole study, warm-up and evaluations included, took {minutes:.0f} minutes by the clock, {at_once} jobs at once."


def _compute_notes(plan: Plan) -> str:
    if not plan.differences:
        return "Steps, prompts, group size and token limit are the same for all arms; what a method adds to a step shows in the seconds."
    names = ", ".join(COMPUTE[key] for key in plan.differences)
    return f"**Compute is not equal**: the arms differ in {names}. A difference of the measures may come from that."


def _deviations(plan: Plan, numbers: Numbers) -> list[str]:
    study = plan.study
    lines = list(study.deviations)
    for method in study.methods:
        lines += [f"recipe: {text}" for text in plan.job(method, plan.seeds[0]).config.about.deviations]
    if study.warm_up is not None:
        once = (
            "one for each seed"
            if study.warm_up.each_seed
            else "one for all seeds, so that intervals do not cover its chance"
        )
        lines.append(
            f"all arms of a seed start from the same supervised warm-up ({once}): `{shlex.join(study.warm_up.overrides)}`"
        )
    if plan.typed:
        lines.append(f"run with changed options: `{shlex.join(plan.typed)}`")
    if plan.seeds != study.seeds:
        lines.append(f"seeds {list(plan.seeds)} instead of the file's {list(study.seeds)}")
    if numbers.missing:
        lines.append(f"not finished, and left out: {', '.join(numbers.missing)}")
    if len(numbers.versions) > 1:
        lines.append("the runs used different versions of packages; see above")
    lines.append("one small model and one generated task: the verdict is about this size and this task")
    return list(dict.fromkeys(lines))
