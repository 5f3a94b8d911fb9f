"""What a reward under examination gave for what: every score is noted, and sorted by the question that it answers.

What enters: a `Bench`. What leaves: `Sheet`s, the questions that the reward judges with the values of their answers, and
notes of what failed or changed. Nothing is judged here. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmreason.reward_kit.bench import Bench, Case, Score
from mmreason.reward_kit.examples import Example, built_in_examples, given_examples
from mmreason.reward_kit.probes import EMPTY, GARBAGE, as_completion, of_one_length

#: Completions that are scored again: in another batch, in another order, and one by one.
_MAX_AGAIN = 48
_MAX_AGAIN_CHARS = 20_000

Valued = list[tuple[str, float]]


@dataclass(frozen=True)
class Failed:
    """A call that failed.

    Attributes:
        case: what was scored.
        kind: of failure.
        explanation: a traceback, or a sentence.
    """

    case: Case
    kind: str
    explanation: str


@dataclass(frozen=True)
class Changed:
    """A completion that was worth something else the second time."""

    case: Case
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Sheet:
    """A question that the reward judges, with the values of its answers.

    Attributes:
        example: the question.
        right, wrong, fair: `(text, value)` of each answer that the reward applies to.
        nothing: the same of empty completions and of garbage.
    """

    example: Example
    right: Valued
    wrong: Valued
    fair: Valued
    nothing: Valued

    @cached_property
    def best(self) -> float:
        """Value of the right answer, written in the way that pays best; NaN if it has none."""
        return max((value for _, value in self.right), default=math.nan)

    @cached_property
    def lowest(self) -> float:
        """Lowest value of a wrong answer, of nothing and of garbage; NaN if none has one."""
        return min((value for _, value in [*self.wrong, *self.nothing]), default=math.nan)

    @property
    def span(self) -> float:
        """From the lowest value to that of the right answer; NaN if there is no way up."""
        return self.best - self.lowest if self.best > self.lowest else math.nan

    def share(self, value: float) -> float:
        """How far up a value is: 0 = lowest, 1 = right."""
        return (value - self.lowest) / self.span


class Notebook:
    """Scores completions with one reward, and notes everything.

    Args:
        bench: with the reward.

    Attributes:
        num_scored: completions scored.
        failed: calls that failed on questions that the reward judges.
        failed_elsewhere: calls that failed on other questions.
        changed: what was scored more than once and came out differently.
        without: completions of questions that it judges to which it does not apply.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.num_scored = 0
        self.failed: list[Failed] = []
        self.failed_elsewhere: list[Failed] = []
        self.changed: list[Changed] = []
        self.without: list[Case] = []
        self._scored: dict[tuple[int, str], tuple[Case, float | None]] = {}

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        """Values of cases of questions that the reward judges."""
        scores = self.bench.score(cases)
        self.num_scored += len(cases)
        for case, score in zip(cases, scores, strict=True):
            self._note(case, score, self.failed)
        return [score.value for score in scores]

    def _note(self, case: Case, score: Score, failures: list[Failed]) -> None:
        key = (id(case.example), case.text)
        if key in self._scored and self._scored[key][1] != score.value:
            self.changed.append(Changed(case, self._scored[key][1], score.value))
        self._scored[key] = (case, score.value)
        if score.failure is not None:
            failures.append(Failed(case, *score.failure))
        elif score.value is None and failures is self.failed:
            self.without.append(case)

    @property
    def values(self) -> list[float]:
        """All values, one a completion."""
        return [value for _, value in self._scored.values() if value is not None]

    @property
    def num_texts(self) -> int:
        """Different completions."""
        return len(self._scored)

    def value(self, case: Case) -> float | None:
        """What a case was worth."""
        return self._scored[id(case.example), case.text][1]

    def sample(self) -> list[Case]:
        """Completions of all kinds, spread over everything that has a value, without the very long ones."""
        cases = [case for case, value in self._scored.values() if value is not None]
        cases = [case for case in cases if len(case.text) <= _MAX_AGAIN_CHARS]
        return cases[:: max(1, len(cases) // _MAX_AGAIN)][:_MAX_AGAIN]

    @cached_property
    def sheets(self) -> list[Sheet]:
        """The questions that the reward judges: the author's own, and those whose values change with the target."""
        given = given_examples(self.bench.spec.function)
        sheets = [self._sheet(example) for example in given]
        # One that asks for another form of completion judges a built-in question only if it tells these answers apart.
        own_form = any(example.whole_text for example in given)
        for example in built_in_examples():
            said = [as_completion(example, text) for text in (*example.right, *example.wrong, *example.fair)] + [""]
            blind = self.bench.score([Case(example, text, blind=True) for text in said])
            sighted = self.bench.score([Case(example, text) for text in said])
            self.num_scored += 2 * len(said)
            judges = [score.value for score in blind] != [score.value for score in sighted]
            judges = judges and not (own_form and len({score.value for score in sighted}) == 1)
            for text, score in zip(said, sighted, strict=True):
                self._note(Case(example, text), score, self.failed if judges else self.failed_elsewhere)
            if judges:
                sheets.append(self._sheet(example))
        return sheets

    def _sheet(self, example: Example) -> Sheet:
        groups = (example.right, example.wrong, example.fair)
        if self.bench.borrows and not example.whole_text:
            right, wrong, fair = of_one_length(groups)
        else:
            right, wrong, fair = ([as_completion(example, text) for text in texts] for texts in groups)
        nothing = [*EMPTY, *GARBAGE]
        return Sheet(example, *(self._valued(example, texts) for texts in (right, wrong, fair, nothing)))

    def _valued(self, example: Example, texts: Iterable[str]) -> Valued:
        """`(text, value)` of the completions that have a value."""
        texts = list(texts)
        values = self.score([Case(example, text) for text in texts])
        return [(text, value) for text, value in zip(texts, values, strict=True) if value is not None]

    @property
    def usable(self) -> list[Sheet]:
        """Sheets on which the right answer is worth more than something."""
        return [sheet for sheet in self.sheets if not math.isnan(sheet.span)]

    @cached_property
    def ground(self) -> Example:
        """A question on which form, texts and time can be tried."""
        return self.sheets[0].example if self.sheets else built_in_examples()[0]
