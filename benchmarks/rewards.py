"""Rewards per second, beside TRL's reward functions and math-verify's own calls: `python -m benchmarks.rewards`.

What enters: how many completions and repeats. What leaves: Markdown tables, and on request JSON: rewards per second of each
side on the same completions in one process, how much faster ours is, how often both agree, and what a hostile answer costs.

Every repeat has fresh completions, and the sides take turns in another order; a ratio is taken of the two sides of one repeat,
and its median and range over the repeats are shown. The first repeat is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sympy.core.cache import clear_cache

from benchmarks import reward_hostile
from benchmarks.results import Range
from benchmarks.reward_hostile import Cost
from benchmarks.reward_sides import MATH_VERIFY, OURS, POOL, TRL, Contest, agreement, contests

COLUMNS = (OURS, POOL, TRL, MATH_VERIFY)
#: Quick rewards score a batch again and again for this long.
MIN_S = 0.05
#: Whose speed is compared with whose, ours first.
PAIRS = ((OURS, TRL), (POOL, TRL), (OURS, MATH_VERIFY))


@dataclass
class Measured:
    """One contest: rewards per second by side, one a repeat, and the share of values that are as TRL's."""

    name: str
    speed: dict[str, list[float]] = field(default_factory=dict)
    agree: float | None = None

    def ratio(self, ours: str, theirs: str) -> Range | None:
        """How many times as fast ours is; `None` if either side does not exist."""
        if ours not in self.speed or theirs not in self.speed:
            return None
        return Range.of([a / b for a, b in zip(self.speed[ours], self.speed[theirs], strict=True)])


def measure(contest: Contest, count: int, repeats: int, seed: int = 0) -> Measured:
    """Score `repeats + 1` batches of `count` completions on every side."""
    source = random.Random(seed)
    found = Measured(contest.name, {side: [] for side in contest.sides})
    shares = []
    for repeat in range(repeats + 1):
        batch = contest.make(count, source)
        order = list(contest.sides)
        order = order[repeat % len(order) :] + order[: repeat % len(order)]
        values = {}
        for side in order:
            calls, seconds = 0, 0.0
            while seconds < MIN_S:
                clear_cache()  # what was worked out before must not help
                began = time.perf_counter()
                values[side] = contest.sides[side](batch)
                seconds += time.perf_counter() - began
                calls += 1
            if repeat:
                found.speed[side].append(calls * len(batch) / seconds)
        if TRL in values:
            shares.append(agreement(values[OURS], values[TRL]))
    found.agree = sum(shares) / len(shares) if shares else None
    return found


def markdown(found: Sequence[Measured]) -> str:
    """Rewards per second and ratios, one line a contest."""
    names = [f"{side}, 1/s" for side in COLUMNS] + [f"{ours} / {theirs}" for ours, theirs in PAIRS]
    lines = ["| reward | " + " | ".join([*names, "same value as TRL"]) + " |", "| --- |" + " ---: |" * (len(names) + 1)]
    for one in found:
        cells = [_speed(one.speed.get(side)) for side in COLUMNS]
        cells += [str(one.ratio(*pair) or "") for pair in PAIRS]
        cells.append("" if one.agree is None else f"{one.agree:.0%}")
        lines.append(f"| {one.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _speed(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    found = Range.of(values)
    return f"{found.median:,.0f} ({found.low:,.0f} – {found.high:,.0f})"


def markdown_hostile(costs: dict[str, dict[str, Cost]]) -> str:
    """One line a text: seconds for one answer on each side, and its worth."""
    lines = [
        "| one answer | " + " | ".join(reward_hostile.SIDES) + " |",
        "| --- |" + " ---: |" * len(reward_hostile.SIDES),
    ]
    for name, by_side in costs.items():
        lines.append(f"| {name} | " + " | ".join(str(by_side[side]) for side in reward_hostile.SIDES) + " |")
    return "\n".join(lines)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what is left out filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=_positive, default=64, help="completions of a batch")
    parser.add_argument("--repeats", type=_positive, default=5, help="counted batches a reward and side")
    parser.add_argument("--workers", type=_positive, default=2, help="child processes of our isolated rewards")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds after which a hostile answer is given up")
    parser.add_argument(
        "--hostile",
        nargs="*",
        choices=reward_hostile.TEXTS,
        default=list(reward_hostile.TEXTS),
        metavar="TEXT",
        help="hostile answers to try; none after the option = none",
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args(words)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = arguments(words)
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)
    report = _header(given)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(f"{report['date']}, {report['machine']}, {versions}\n\n    {report['command']}\n", flush=True)
    found = [measure(contest, given.count, given.repeats) for contest in contests(given.workers)]
    print(markdown(found), flush=True)
    costs = {
        text: {side: reward_hostile.cost(side, text, given.limit) for side in reward_hostile.SIDES}
        for text in given.hostile
    }
    if costs:
        print(f"\n{markdown_hostile(costs)}")
    if given.json:
        report["rewards"] = [
            asdict(one) | {"ratio": {" / ".join(pair): asdict(r) for pair in PAIRS if (r := one.ratio(*pair))}}
            for one in found
        ]
        report["hostile"] = {
            text: {side: asdict(one) for side, one in by_side.items()} for text, by_side in costs.items()
        }
        given.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def _header(given: argparse.Namespace) -> dict[str, Any]:
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.rewards", *sys.argv[1:]]),
        "machine": f"{given.workers} worker processes, {platform.machine()}",
        "versions": {name: version(name) for name in ("trl", "math-verify", "sympy")},
        "settings": settings,
    }


if __name__ == "__main__":
    main()
