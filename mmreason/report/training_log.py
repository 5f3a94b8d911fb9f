"""What `metrics.jsonl` tells of a run's troubles: the alarms, step by step, and the failed reward calls by kind.

What enters: metric lines, which may come from anywhere, and the run's configuration and summary. What leaves: plain dicts
ready for JSON, bounded in size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmreason.report.collect import Record
from mmreason.report.texts import number, shorten
from mmreason.train.alarms import AlarmBook

#: Alarms on a page, and characters of one.
MAX_ALARMS, MAX_ALARM_CHARS = 40, 1_500
#: Pairs of reward and kind that are told apart, and points of one curve.
MAX_KINDS, MAX_BLOCKS = 200, 60
#: Characters shown of the first traceback of a reward.
MAX_ERROR_CHARS = 4_000
#: Kind of a failed call where a run of an older version logged none.
UNKNOWN_KIND = "failed"


def collect_alarms(
    metrics: Iterable[Record], reward_names: Sequence[str], box_frame: str = "", zero_steps: int = 5
) -> list[dict[str, Any]]:
    """The alarms of a run, found again by the book-keeper that watched it.

    The run itself may have said more: here are no rollouts to quote.

    Args:
        metrics: the run's metric lines, in order.
        reward_names: rewards that were trained on.
        box_frame: frame that boxes were read in.
        zero_steps: `reward.zero_alarm_steps` of the run.

    Returns:
        By first step: `key`, `step`, `text`, `until` (step at which it was over, or `None`) and `times`, since a cause
        that comes and goes is one entry: with the first step and text, and the last end.
    """
    book = AlarmBook([name for name in reward_names if len(name) <= 80], box_frame, zero_steps)
    found: dict[str, list[Any]] = {}
    for line in metrics:
        step = number(line.get("step"))
        if step is None:
            continue
        for alarm in book.alarms(int(step), _numbers(line)):
            if alarm.key in found or len(found) < MAX_ALARMS:
                first_and_count = found.setdefault(alarm.key, [alarm, alarm, 0])
                first_and_count[1] = alarm
                first_and_count[2] += 1
    return [
        {
            "key": shorten(key, 120),
            "step": first.step,
            "text": shorten(first.text.removeprefix(f"step {first.step}: "), MAX_ALARM_CHARS),
            "until": last.until,
            "times": times,
        }
        for key, (first, last, times) in found.items()
    ]


class FailureLog:
    """Counts failed reward calls by reward and kind, over the steps of the run."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        #: (reward, kind) -> step -> failed calls.
        self._counts: dict[tuple[str, str], dict[float, float]] = {}

    def read(self, metrics: Iterable[Record]) -> FailureLog:
        """Take in all lines; returns self."""
        for line in metrics:
            step = number(line.get("step"))
            if step is None:
                continue
            self._steps.append(step)
            counts = {name: number(value) or 0.0 for name, value in line.items() if name.startswith("reward_failures/")}
            for name, count in counts.items():
                reward, _, kind = name.removeprefix("reward_failures/").partition("/")
                if not kind and any(other.startswith(f"{name}/") for other in counts):
                    continue  # the sum of the kinds
                key = (shorten(reward, 60), shorten(kind or UNKNOWN_KIND, 60))
                if count > 0 and (key in self._counts or len(self._counts) < MAX_KINDS):
                    self._counts.setdefault(key, {})[step] = count
        return self

    def of(self, reward: str, calls_a_step: float | None) -> dict[str, Any]:
        """What failed of one reward.

        Args:
            reward: its name.
            calls_a_step: completions of a step; `None` if unknown.

        Returns:
            `kinds` (kind -> share of all calls or, if their number is unknown, failed calls), `is_share`, and `curves`
            (kind -> share of the calls of some neighbouring steps), empty without `calls_a_step`.
        """
        mine = {kind: steps for (name, kind), steps in self._counts.items() if name == reward}
        calls = calls_a_step * len(self._steps) if calls_a_step else None
        return {
            "kinds": {kind: sum(steps.values()) / (calls or 1.0) for kind, steps in mine.items()},
            "is_share": calls is not None,
            "curves": {kind: self._curve(steps, calls_a_step) for kind, steps in mine.items()} if calls_a_step else {},
        }

    def rewards(self) -> list[str]:
        """Rewards with a failed call."""
        return list(dict.fromkeys(name for name, _ in self._counts))

    def _curve(self, failed: Mapping[float, float], calls_a_step: float) -> dict[str, list[float]]:
        """Means over up to `MAX_BLOCKS` blocks of steps, each at its last step; a step without failures counts as 0."""
        steps = sorted(set(self._steps))
        size = math.ceil(len(steps) / MAX_BLOCKS)
        blocks = [steps[start : start + size] for start in range(0, len(steps), size)]
        return {
            "x": [block[-1] for block in blocks],
            "y": [sum(failed.get(step, 0.0) for step in block) / len(block) / calls_a_step for block in blocks],
        }


def first_errors(summary: Mapping[str, Any]) -> dict[str, str]:
    """Reward -> its first traceback, from the summary."""
    found = summary.get("first_reward_errors")
    errors = found.items() if isinstance(found, Mapping) else ()
    return {shorten(str(name), 60): shorten(str(text), MAX_ERROR_CHARS) for name, text in list(errors)[:MAX_KINDS]}


def _numbers(line: Record) -> dict[str, float]:
    """The metrics of a line as the trainer saw them: null was no number."""
    numbers = {name: math.nan if value is None else number(value) for name, value in line.items() if name != "step"}
    return {name: value for name, value in numbers.items() if value is not None}
