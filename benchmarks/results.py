"""What a benchmark run found, for people and for programs: Markdown, JSON, a plot.

What enters: pairs of steps of both sides. What leaves: medians, ranges and ratios. A ratio is stock / ours of one pair: above 1,
ours is faster, or needs less.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.sides import STAGES, Case, Name, Side, Step
from mmreason.prompt_once.layout import GroupShape, token_ratio

SIDES: tuple[Name, Name] = ("ours", "stock")
MEBI = 2**20


@dataclass(frozen=True)
class Range:
    """Median and extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} – {self.high:.2f})"


@dataclass
class Measured:
    """One case.

    Attributes:
        warm: False if there was no time for a step before the counted one.
        tier: attention of packed rows. micro: rows in one forward and backward, by side.
        pairs: what both sides' steps cost, in the order taken.
        held: bytes allocated between steps, by side (CUDA).
        memory: bytes that an update needs, by side (CPU, in processes of their own).
        flops: by side and stage.
        tiers: seconds of an update by attention tier, or why it does not run.
    """

    case: Case
    warm: bool
    tier: str
    micro: dict[Name, int]
    pairs: list[dict[Name, Step]]
    held: dict[Name, int]
    memory: dict[Name, int] = field(default_factory=dict)
    flops: dict[Name, dict[str, float]] = field(default_factory=dict)
    tiers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, ours: Side, stock: Side, pairs: list[dict[Name, Step]], warm: bool) -> Measured:
        micro: dict[Name, int] = {side.name: side.micro for side in (ours, stock)}
        held: dict[Name, int] = {side.name: side.held for side in (ours, stock)}
        return cls(case, warm, ours.trainer.sharing.tier.name, micro, pairs, held)

    # ------------------------------------------------------------------ figures

    @property
    def predicted_ratio(self) -> float:
        """Tokens of a log-prob pass, stock / ours, from the layout alone."""
        shape = GroupShape(self.case.prompt, tuple(range(self.case.group)), (self.case.completion,) * self.case.group)
        return token_ratio([shape] * self.case.prompts)

    def counted_ratio(self, what: str) -> float:
        """Tokens or patches of the update, stock / ours, counted inside the model."""
        amounts = {side: getattr(self.pairs[-1][side], what)["update"] for side in SIDES}
        return float(amounts["stock"] / amounts["ours"])

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the update, stock / ours, by the formulas of `models.Flops`."""
        return self.flops["stock"]["update"] / self.flops["ours"]["update"]

    def seconds(self, side: Name, stage: str, cpu: bool = False) -> Range:
        return Range.of([pair[side].of(stage, cpu) for pair in self.pairs])

    def ratio(self, stage: str, cpu: bool = False) -> Range | None:
        """Stock / ours, of seconds or of CPU seconds; None for a stage that does not happen."""
        if not self.pairs[0]["ours"].of(stage, cpu):
            return None
        return Range.of([pair["stock"].of(stage, cpu) / pair["ours"].of(stage, cpu) for pair in self.pairs])

    @property
    def on_cpu(self) -> bool:
        """No memory of a GPU was counted, because there was none."""
        return not self.pairs[-1]["ours"].peaks

    def peak(self, side: Name, stage: str) -> int | None:
        """Bytes of a stage: on CUDA all that was allocated, on a CPU what the update needed."""
        if not self.on_cpu:
            return self.pairs[-1][side].peaks.get(stage)
        return self.memory.get(side) if stage == "update" else None

    @property
    def update_memory(self) -> dict[Name, int]:
        """Bytes that an update needs beyond those held anyway, by side; empty if not measured."""
        if self.memory:
            return self.memory
        if self.on_cpu:
            return {}
        return {side: self.pairs[-1][side].peaks["update"] - self.held[side] for side in SIDES}

    @property
    def gradient_difference(self) -> float:
        """Largest relative difference of the two sides' gradient norms."""
        norms = [(pair["ours"].gradient_norm, pair["stock"].gradient_norm) for pair in self.pairs]
        return max(abs(ours - stock) / stock for ours, stock in norms)


# ------------------------------------------------------------------------------------------------ people


def header(given: argparse.Namespace) -> dict[str, Any]:
    """When, where, and by which command."""
    on_gpu = given.device == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.prompt_once", *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name() if on_gpu else f"{given.threads} CPU thread(s), {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "settings": {
            key: str(value)
            if isinstance(value, Path)
            else [asdict(case) for case in value]
            if key == "case" and value
            else value
            for key, value in vars(given).items()
        },
        "cases": [],
    }


def markdown_header(report: dict[str, Any]) -> str:
    """One paragraph."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    given = report["settings"]
    checkpointing = "on" if given["gradient_checkpointing"] else "off"
    return (
        f"{report['date']}, {report['machine']}, {versions}, model {given['model']}, β = {given['beta']}, "
        f"gradient checkpointing {checkpointing}\n\n    {report['command']}"
    )


def markdown_case(found: Measured, peak_flops: float | None = None) -> str:
    """The table of one case by stage, and what belongs to it."""
    memory = any(found.peak("ours", stage) for stage in STAGES)
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("ours, s", lambda stage: f"{found.seconds('ours', stage).median:.3f}"),
        ("stock, s", lambda stage: f"{found.seconds('stock', stage).median:.3f}"),
        ("stock / ours (range)", lambda stage: str(found.ratio(stage) or "")),
        *([("of CPU time", lambda stage: str(found.ratio(stage, cpu=True) or ""))] if found.on_cpu else []),
        *[(f"tokens {side}", _count(found, side, "tokens")) for side in SIDES],
        *[(f"patches {side}", _count(found, side, "patches")) for side in SIDES],
    ]
    if memory:
        columns += [(f"peak {side}, MiB", _peak(found, side)) for side in SIDES]
    if peak_flops:
        columns += [(f"{side}: tokens/s, MFU", _speed(found, side, peak_flops)) for side in SIDES]
    lines = [
        "| stage | " + " | ".join(name for name, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for stage in (*STAGES, "step"):
        lines.append(f"| {stage} | " + " | ".join(value(stage) for _, value in columns) + " |")
    return f"**{found.case}**\n\n" + "\n".join(lines) + "\n\n" + _notes(found)


def _count(found: Measured, side: Name, what: str) -> Callable[[str], str]:
    amounts = getattr(found.pairs[-1][side], what)
    return lambda stage: f"{sum(amounts.values()) if stage == 'step' else amounts.get(stage, 0):,}"


def _peak(found: Measured, side: Name) -> Callable[[str], str]:
    def show(stage: str) -> str:
        peak = found.peak(side, stage)
        return "" if peak is None else f"{peak / MEBI:,.0f}"

    return show


def _speed(found: Measured, side: Name, peak_flops: float) -> Callable[[str], str]:
    def show(stage: str) -> str:
        speed = _speeds(found, side, peak_flops).get(stage)
        return "" if speed is None else f"{speed['tokens_per_second']:,.0f}, {speed['mfu']:.1%}"

    return show


def _speeds(found: Measured, side: Name, peak_flops: float) -> dict[str, dict[str, float]]:
    """Completion tokens a second, and the share of the device's peak that the FLOPs this side needs amount to."""
    tokens = found.case.rows * found.case.completion
    flops = dict(found.flops[side])
    if not found.pairs[-1][side].of("reference"):
        del flops["reference"]
    flops["step"] = sum(flops.values())
    medians = {stage: found.seconds(side, stage).median for stage in flops}
    return {
        stage: {"tokens_per_second": tokens / medians[stage], "mfu": flops[stage] / medians[stage] / peak_flops}
        for stage in flops
    }


def _notes(found: Measured) -> str:
    steps = f"{len(found.pairs)} pair(s) of steps" + ("" if found.warm else ", the very first ones")
    notes = [
        f"{steps}; attention tier {found.tier}; rows in one forward and backward: "
        + ", ".join(f"{found.micro[side]} {side}" for side in SIDES),
        f"token ratio of the update: predicted {found.predicted_ratio:.2f}, counted {found.counted_ratio('tokens'):.2f}; "
        f"patches: counted {found.counted_ratio('patches'):.2f}; FLOPs: predicted {found.flops_ratio:.2f}",
        f"gradient norms differ by {found.gradient_difference:.1e} of their size",
    ]
    memory = found.update_memory
    if memory:
        needs = ", ".join(f"{memory[side] / MEBI:,.0f} MiB {side}" for side in SIDES)
        notes.append(f"an update needs beyond what is held: {needs} ({memory['ours'] / memory['stock']:.2f} of it)")
    for name, seconds in found.tiers.items():
        notes.append(f"update with tier {name}: " + (seconds if isinstance(seconds, str) else f"{seconds:.3f} s"))
    return "\n".join(f"- {note}" for note in notes)


def markdown_summary(all_found: Sequence[Measured]) -> str:
    """One line a case: how many times faster ours is; on a CPU, by CPU time in brackets."""
    stages = ("preprocess", "generate", "reference", "update", "step")
    names = ("P", "C", "G", "B", "tokens predicted ×", "counted ×", "FLOPs predicted ×", *(f"{s} ×" for s in stages))
    lines = [
        "| " + " | ".join([*names, "update memory, ours / stock"]) + " |",
        "|" + " ---: |" * (len(names) + 1),
    ]
    for found in all_found:
        case, memory = found.case, found.update_memory
        cells = [
            *map(str, (case.prompt, case.completion, case.group, case.prompts)),
            *(f"{r:.2f}" for r in (found.predicted_ratio, found.counted_ratio("tokens"), found.flops_ratio)),
            *(_both(found, stage) for stage in stages),
            f"{memory['ours'] / memory['stock']:.2f}" if memory else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _both(found: Measured, stage: str) -> str:
    wall, cpu = found.ratio(stage), found.ratio(stage, cpu=True)
    if wall is None or cpu is None:
        return ""
    return f"{wall.median:.2f}" + (f" ({cpu.median:.2f})" if found.on_cpu else "")


# ------------------------------------------------------------------------------------------------ programs


def as_dict(found: Measured, peak_flops: float | None = None) -> dict[str, Any]:
    """All numbers of a case; seconds and ratios by stage, bytes, and every single step."""
    stages = [stage for stage in (*STAGES, "step") if found.ratio(stage)]
    values: dict[str, Any] = {
        "case": asdict(found.case),
        "warm": found.warm,
        "tier": found.tier,
        "micro": found.micro,
        "token_ratio": {"predicted": found.predicted_ratio, "counted": found.counted_ratio("tokens")},
        "patch_ratio": {"counted": found.counted_ratio("patches")},
        "flops_ratio": {"predicted": found.flops_ratio},
        "gradient_norm_difference": found.gradient_difference,
        "seconds": {stage: {side: asdict(found.seconds(side, stage)) for side in SIDES} for stage in stages},
        "ratio": {stage: asdict(ratio) for stage in stages if (ratio := found.ratio(stage))},
        "cpu_ratio": {stage: asdict(ratio) for stage in stages if (ratio := found.ratio(stage, cpu=True))},
        "update_bytes": found.update_memory,
        "held_bytes": found.held,
        "tiers": found.tiers,
        "flops": found.flops,
        "steps": [{side: asdict(pair[side]) for side in SIDES} for pair in found.pairs],
    }
    if peak_flops:
        values["speed"] = {side: _speeds(found, side, peak_flops) for side in SIDES}
    return values


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report; numbers only, no NaN."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def plot(measured: Sequence[tuple[str, Measured]], path: Path) -> None:
    """Step time along G and along P, ours and stock, with the range of the steps as bars; on a CPU, its CPU time."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for panel, along, size in zip(panels, ("G", "P"), ("group", "prompt"), strict=True):
        found = [one for label, one in measured if label == along]
        if not found:
            continue
        where = [getattr(one.case, size) for one in found]
        for side, color in zip(SIDES, ("#2b6cb0", "#c05621"), strict=True):
            ranges = [one.seconds(side, "step", one.on_cpu) for one in found]
            bars = [[r.median - r.low for r in ranges], [r.high - r.median for r in ranges]]
            name = "mmreason" if side == "ours" else "stock TRL"
            panel.errorbar(where, [r.median for r in ranges], yerr=bars, marker="o", capsize=2, color=color, label=name)
        case = found[0].case
        rest = f"P = {case.prompt}" if along == "G" else f"G = {case.group}"
        panel.set_title(f"{rest}, C = {case.completion}, B = {case.prompts}", fontsize=10)
        panel.set_xlabel("completions of a prompt, G" if along == "G" else "tokens of a prompt, P")
        panel.set_ylabel("CPU seconds of a step" if found[0].on_cpu else "seconds of a step")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(path)
