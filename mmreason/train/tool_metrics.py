"""How a model uses its tools: numbers of a batch of episodes, the same on every process, for training and evaluation.

What enters: rollouts with `turns`, and which of them are right. What leaves: `tools/…` metrics (`docs/tool_metrics.md` says what each means). Each
process boils its own rollouts down to `EpisodeFacts`; these travel, the rollouts stay. No torch.

The table of answers with and without tools inside a group is that of Mini-o3 (arXiv 2509.07969); what to watch for otherwise comes from
DeepEyes (arXiv 2505.14362) and Pixel-Reasoner (arXiv 2505.15966).

Legend of shapes: N episodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmreason.agent.calls import CallError
from mmreason.records import Rollout
from mmreason.reward_kit.groups import Exchange

#: A look at this share of a picture or more shows nothing that was not seen before.
FULL_AREA = 0.95
#: Begins the name of each of these metrics.
PREFIX = "tools/"


@dataclass(frozen=True, slots=True)
class EpisodeFacts:
    """What the numbers need of one episode.

    Attributes:
        group: index of its group.
        calls: calls that the model wrote, failed ones included.
        attempts: the same, and turns in which none could be read.
        done: calls that were carried out.
        failures: kind -> failed calls, and turns that could not be read.
        areas: share of the picture that each successful look at a piece of one showed.
        pictures: that tools added.
        over_budget: it was cut off.
        forced: the model was told to answer.
        tokens: of the completion. observed: those of them that the model was shown.
    """

    group: int
    calls: int = 0
    attempts: int = 0
    done: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    areas: tuple[float, ...] = ()
    pictures: int = 0
    over_budget: bool = False
    forced: bool = False
    tokens: int = 0
    observed: int = 0

    @classmethod
    def of(cls, rollout: Rollout) -> EpisodeFacts:
        """Boil one rollout down."""
        called = [turn for turn in rollout.turns if turn.tool is not None]
        pieces = [turn.piece for turn in called if turn.ok and turn.piece is not None]
        failed = [turn.error or CallError.tool_failed.value for turn in rollout.turns if not turn.ok]
        return cls(
            group=rollout.group,
            calls=len(called),
            attempts=sum(turn.tool is not None or not turn.ok for turn in rollout.turns),
            done=sum(turn.ok for turn in called),
            failures=dict(Counter(failed)),
            areas=tuple((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in pieces),
            pictures=sum(turn.num_images for turn in rollout.turns),
            over_budget=rollout.stop_reason in ("length", "budget"),
            forced=rollout.forced,
            tokens=len(rollout.token_ids),
            observed=rollout.owner.count(0),
        )


def gathered_tool_metrics(
    rollouts: Sequence[Rollout], correct: Sequence[float] | None, exchange: Exchange
) -> dict[str, float]:
    """`tool_metrics` of a batch that is spread over processes; all of them must call it, and get the same.

    Args:
        rollouts: of this process.
        correct: for those of all processes, in the order of their ranks: 1, 0, or NaN; None where no reward tells.
        exchange: between the processes.
    """
    facts = [one for part in exchange.gather([EpisodeFacts.of(rollout) for rollout in rollouts]) for one in part]
    return tool_metrics(facts, correct)


def tool_metrics(facts: Sequence[EpisodeFacts], correct: Sequence[float] | None = None) -> dict[str, float]:
    """Numbers of a batch; always the same names, NaN where there is nothing to take a mean of.

    Args:
        facts: of N episodes.
        correct: `[N]`: 1, 0, or NaN where it cannot be told; None where no reward tells, and the numbers that need it are left out.

    Raises:
        ValueError: the two differ in length.
    """
    attempts = sum(one.attempts for one in facts)
    failures = sum((Counter(one.failures) for one in facts), Counter[str]())
    areas = [area for one in facts for area in one.areas]
    found = {
        "call_rate": _mean(one.calls > 0 for one in facts),
        "calls": _mean(one.calls for one in facts),
        "failure_rate": _ratio(failures.total(), attempts),
        **{f"failures/{kind.value}": _ratio(failures[kind.value], attempts) for kind in CallError},
        "look_area": _mean(areas),
        "full_looks": _mean(area >= FULL_AREA for area in areas),
        "pictures": _mean(one.pictures for one in facts),
        "observation_share": _ratio(sum(one.observed for one in facts), sum(one.tokens for one in facts)),
        "over_budget": _mean(one.over_budget for one in facts),
        "forced": _mean(one.forced for one in facts),
    }
    if correct is not None:
        told = [(one, right > 0.5) for one, right in zip(facts, correct, strict=True) if not math.isnan(right)]
        found |= {
            "calls_when_right": _mean(one.calls for one, right in told if right),
            "calls_when_wrong": _mean(one.calls for one, right in told if not right),
            "accuracy_with": _mean(right for one, right in told if one.done),
            "accuracy_without": _mean(right for one, right in told if not one.done),
            **_inside_groups(told),
        }
    return {PREFIX + name: value for name, value in found.items()}


def _inside_groups(told: Sequence[tuple[EpisodeFacts, bool]]) -> dict[str, float]:
    """Answers to one question with tools beside those without: groups that hold both, and in which of them which are right."""
    groups: dict[int, tuple[list[bool], list[bool]]] = {}
    for one, right in told:
        groups.setdefault(one.group, ([], []))[one.done > 0].append(right)
    mixed = [(without, used) for without, used in groups.values() if without and used]
    return {
        "mixed_groups": _ratio(len(mixed), len(groups)),
        "gain_in_groups": _mean(_mean(used) - _mean(without) for without, used in mixed),
        "groups/only_with": _mean(any(used) and not any(without) for without, used in mixed),
        "groups/only_without": _mean(any(without) and not any(used) for without, used in mixed),
        "groups/both": _mean(any(used) and any(without) for without, used in mixed),
        "groups/neither": _mean(not any(used) and not any(without) for without, used in mixed),
    }


def _mean(values: Iterable[float]) -> float:
    kept = [float(value) for value in values]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
