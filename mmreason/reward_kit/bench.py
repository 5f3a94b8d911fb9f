"""One reward on the bench: its value for any completion of an example, what failed, and how long it takes.

What enters: a reward's name and options, and `Case`s. What leaves: `Score`s, through `RewardRunner` as in training, and
timings. A group reward scores each case in a group of other answers to the same question, a batch reward in a batch of that
group and of the questions beside it. No torch.

Shapes: N cases.
"""

from __future__ import annotations

import copy
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError
from mmreason.judge.service import JudgeService
from mmreason.records import Rollout, Row
from mmreason.reward_kit.examples import Example, judge_script
from mmreason.reward_kit.play import played
from mmreason.reward_kit.probes import HOSTILE, LONGEST_TEXT, as_completion, hostile_text, told
from mmreason.reward_kit.spec import REWARDS, SHAPERS
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.text import extract_answer

#: What counts as correct for group rewards that ask, and the rewards of single rollouts beside them.
_CORRECT = "exact > 0.5"
_COMPANIONS = ("exact", "format")
#: Whoever hangs must not hang the bench for long.
_BATCH_DEADLINE_S = 60.0
#: Rough: rewards of length need some length.
_CHARS_PER_TOKEN = 4

#: Seconds that a plain reward may take for one completion of a megabyte.
MAX_HOSTILE_S = 1.0
_SHORTEST_HOSTILE = 8
#: Below this many characters texts grow by a few; below that many they double at most.
_FEW_CHARS, _MANY_CHARS = 40, 1280
#: Shorter times say nothing about growth.
_NOISE_S = 0.0005


@dataclass(frozen=True)
class Case:
    """A completion to be scored.

    Attributes:
        example: the question.
        text: the completion.
        blind: without what the target says is right.
    """

    example: Example
    text: str
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """What a case is worth.

    Attributes:
        value: `None` if the reward does not apply, or failed.
        failure: its kind and explanation.
    """

    value: float | None
    failure: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one hostile completion took.

    Attributes:
        what: which text.
        num_chars: its length.
        seconds: processor time, or time on the clock where that is less.
        failure: as `Score.failure`.
    """

    what: str
    num_chars: int
    seconds: float
    failure: tuple[str, str] | None

    @property
    def took_too_long(self) -> bool:
        """It was slow, or had to be ended."""
        ended = self.failure is not None and self.failure[0] in ("deadline", "crashed")
        return ended or self.seconds > MAX_HOSTILE_S


class Bench:
    """Scores cases with one reward.

    Args:
        name: registered name.
        options: of the reward.
        correct: what counts as correct, for group rewards; default: `exact > 0.5`.

    Raises:
        ConfigError: the options are wrong, or the name is a shaper's.
        PluginError: there is no such reward.
    """

    def __init__(self, name: str, options: Mapping[str, Any] | None = None, correct: str | None = None) -> None:
        if name in SHAPERS and name not in REWARDS:
            raise ConfigError(
                f"'{name}' is a shaper: it changes a whole batch, so there is nothing to check on a reward"
            )
        self._asked = (name, options, correct)
        self.spec = REWARDS.get(name)
        values: dict[str, Any] = {name: dict(options or {})}
        if self.borrows:
            checked = self.spec.options(options or {})
            named = [str(getattr(checked, option)) for option in self.spec.references]
            for companion in (*_COMPANIONS, *named, *([correct.split()[0]] if correct else [])):
                values.setdefault(companion, {"weight": 0.0})
            values["correct"] = correct or _CORRECT
        values |= {"max_failure_share": 1.0, "batch_deadline_s": _BATCH_DEADLINE_S}
        asks = "judge" in self.spec.needs
        judge = JudgeService.scripted(judge_script(self.spec.function)) if asks else None
        self._runner = RewardRunner(RewardConfig.model_validate(values), judge)
        self._unseen = self._runner.state_dict()
        self.progress = 1.0

    @property
    def borrows(self) -> bool:
        """It is told by other rewards what is right."""
        return not {"correct", "rewards"}.isdisjoint(self.spec.needs)

    def fresh(self) -> Bench:
        """The same reward with a runner that has seen nothing."""
        other = Bench(*self._asked)
        other.progress = self.progress
        return other

    def score(self, cases: Sequence[Case]) -> list[Score]:
        """Scores of all cases, `[N]`: as one batch, or for a batch reward each in a batch of its own."""
        if self.spec.per == "batch":
            return [self._alone(case) for case in cases]
        blocks = [self._rollouts(case, number) for number, case in enumerate(cases)]
        table = self._table([rollout for block in blocks for rollout in block])
        failed = self._failures(table)
        scores = []
        end = 0
        for case, block in zip(cases, blocks, strict=True):
            end += len(block)
            value = float(table.column(self.spec.name)[end - 1])
            if not math.isnan(value):
                scores.append(Score(value))
            else:  # does not apply, or failed: the table of the batch does not tell which row failed
                scores.append(self._alone(case) if failed else Score(None))
        return scores

    def twins(self, case: Case) -> list[float]:
        """Values of a completion that stands twice in its group, and of no other one there; NaN = does not apply."""
        self_and_beside = self._rollouts(case, 0)
        group = self_and_beside[-1].group
        rollouts = [rollout for rollout in self_and_beside if rollout.group != group] + self_and_beside[-1:] * 2
        return [float(value) for value in self._table(rollouts).column(self.spec.name)[-2:]]

    def alters(self, case: Case) -> bool:
        """Whether scoring a case changes its target, its columns or its turns."""
        rollouts = self._rollouts(case, 0)
        before = copy.deepcopy(rollouts)
        self._table(rollouts)
        return rollouts != before

    def rollout(self, case: Case) -> Rollout:
        """The rollout of a case."""
        return self._rollouts(case, 0)[-1]

    def _alone(self, case: Case) -> Score:
        return self._last(self._table(self._rollouts(case, 0)))

    def _last(self, table: ScoreTable) -> Score:
        """The score of the last rollout, where the table is that of one case."""
        value = float(table.column(self.spec.name)[-1])
        if not math.isnan(value):
            return Score(value)
        failed = self._failures(table)
        return Score(None, (failed[0], table.first_traceback[self.spec.name]) if failed else None)

    def _table(self, rollouts: Sequence[Rollout]) -> ScoreTable:
        # What the reward noted of earlier cases must not change this one.
        self._runner.load_state_dict(self._unseen)
        return self._runner.score(rollouts, progress=self.progress)

    def _failures(self, table: ScoreTable) -> list[str]:
        return [kind for name, kind in table.failures if name == self.spec.name]

    def _rollouts(self, case: Case, number: int) -> list[Rollout]:
        """The rollout of a case; for a group reward with its group before it, for a batch reward with its batch."""
        example = case.example
        if self.spec.per == "rollout":
            return _group(example, [case.text], number, case.blind)
        others = (example.right[0], *example.wrong, *example.fair[:1])
        texts = [*(as_completion(example, text) for text in others), "", case.text]
        beside = example.beside if self.spec.per == "batch" else ()
        rollouts = [
            rollout
            for place, other in enumerate(beside, start=1)
            for rollout in _group(other, [as_completion(other, other.right[0])], number + place)
        ]
        return rollouts + _group(example, texts, number, case.blind)

    # ------------------------------------------------------------------ time

    def time(self, case: Case, *, with_waiting: bool = False) -> tuple[Score, float]:
        """Score a case by itself; also the seconds that it took.

        Args:
            case: what to score.
            with_waiting: for a plain reward, count the time in which it sleeps or waits for others too.
        """
        rollouts = self._rollouts(case, 0)
        wall, processor, waits = time.perf_counter(), time.process_time(), _times_waited()
        table = self._table(rollouts)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        # Processor time leaves out what else the machine does; what waits for others is seen on the clock only.
        on_clock = self.spec.has_deadline or (with_waiting and _times_waited() > waits)
        return self._last(table), wall if on_clock else min(wall, processor)

    def hostile(self, example: Example) -> Iterator[Timing]:
        """The slowest that each kind of hostile text was, up to a megabyte.

        Nothing can end a plain reward, so its texts grow step by step, and no longer once one takes too long. One that
        runs elsewhere is ended at its deadline, and gets the longest texts at once.
        """
        for piece, form in HOSTILE:
            yield self._climb(example, piece, form)

    def _climb(self, example: Example, piece: str, form: str) -> Timing:
        size, before = (LONGEST_TEXT if self.spec.has_deadline else _SHORTEST_HOSTILE), None
        while True:
            text = hostile_text(piece, form, size)
            score, seconds = self.time(Case(example, text))
            timing = Timing(told(piece, form), len(text), seconds, score.failure)
            if size >= LONGEST_TEXT or timing.took_too_long:
                return timing
            size, before = _next_size(size, seconds, before), (size, seconds)


def _group(example: Example, texts: Sequence[str], number: int, blind: bool = False) -> list[Rollout]:
    """Completions of an example as the group of that number."""
    # A copy each: what a reward changes in one must be found there, and nowhere else.
    targets = [copy.deepcopy(dict(example.blind_target if blind else example.target)) for _ in texts]
    message = {"role": "user", "content": [{"type": "text", "text": example.question}]}
    rows = [
        Row(f"{example.name}/{number}", (message,), (), target, "reward check", copy.deepcopy(dict(example.columns)))
        for target in targets
    ]
    return [
        Rollout(
            row=row,
            group=number,
            token_ids=(),
            text=text,
            answer=extract_answer(text),
            num_tokens=1 + len(text) // _CHARS_PER_TOKEN,
            stop_reason="stop",
            geometry=example.geometry,
            box_frame=example.box_frame,
            turns=played(text),
        )
        for row, text in zip(rows, texts, strict=True)
    ]


def _times_waited() -> int:
    """How often this process has given the processor back by itself: to sleep, or to wait for something."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _next_size(size: int, seconds: float, before: tuple[int, float] | None) -> int:
    """How long the next text may be: time that grows exponentially must be seen before it takes for ever.

    Args:
        size: of the last text, in characters.
        seconds: that it took.
        before: the same two of the text before it.
    """
    power = 1.0
    if before is not None and seconds > _NOISE_S:
        power = max(1.0, math.log(seconds / max(before[1], _NOISE_S)) / math.log(size / before[0]))
    factors: tuple[float, ...] = (8.0, 4.0, 2.0, 1.25, 1.1)
    if size < _MANY_CHARS:
        factors = (1.0 + 4 / size, 1.0 + 2 / size) if size < _FEW_CHARS else factors[2:]
    safe = (factor for factor in factors if max(seconds, _NOISE_S) * factor ** (power + 1.0) <= MAX_HOSTILE_S)
    return min(LONGEST_TEXT, max(size + 2, int(size * next(safe, factors[-1]))))
