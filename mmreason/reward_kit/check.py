"""`mmreason reward check`: can this reward be trusted, and can it be fooled?

What enters: the name of a reward and its options. What leaves: a `Report` with one `Finding` a check: ok, FAIL, or not
applicable. What a check needs is found out from the reward's behaviour: one judges a question if its values change when
the target no longer says what is right; the attempts to be paid for nothing are made on those questions. No torch.

    for finding in check_reward("iou").failures:
        print(finding.check, finding.seen, finding.problem)
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmreason.reward_kit.bench import Bench, Case, Score, Timing
from mmreason.reward_kit.check_texts import CHECKS, MEANINGS, duration, last_line, quoted, spread
from mmreason.reward_kit.examples import Example, built_in_examples, given_examples
from mmreason.reward_kit.probes import (
    ATTACKS,
    CONTENTS,
    EMPTY,
    GARBAGE,
    LONGEST_TEXT,
    MALFORMED,
    SHAPES,
    UNICODE,
    WELL_FORMED,
    Probe,
    attacks,
    completion,
    padding,
)
from mmreason.reward_kit.sheets import Failed, Notebook, Sheet

Verdict = Literal["ok", "FAIL", "not applicable"]

#: A completion that is not the right answer may be worth this share of the way from the lowest value to the right one.
_MAX_SHARE = 0.75
#: Differences below this share of that way are none: lengths differ a little from probe to probe.
_TOLERANCE = 0.05
_EXACTLY = 1e-9
#: Seconds that a reward which runs in the training process may take for an ordinary completion.
_MAX_ITEM_S = 0.05
#: Where a reward is slow on hostile text, only completions of this length are sure to be tried.
_ORDINARY_CHARS = 2000
#: So many slow texts are proof enough.
_ENOUGH = 3


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        check: its name, a key of `CHECKS`.
        verdict: of this check.
        seen: the numbers behind it, or why it does not apply.
        problem: the worst case, if it failed.
    """

    check: str
    verdict: Verdict
    seen: str
    problem: str = ""

    @property
    def title(self) -> str:
        """What reports call the check."""
        return CHECKS[self.check]

    @property
    def meaning(self) -> str:
        """What a failure means for training, and what to do."""
        return MEANINGS[self.check]


@dataclass(frozen=True)
class Report:
    """All findings about one reward, in the order of `CHECKS`.

    Attributes:
        name: the reward.
        findings: one a check.
        num_scored: how many completions were scored.
    """

    name: str
    findings: tuple[Finding, ...]
    num_scored: int

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(finding for finding in self.findings if finding.verdict == "FAIL")


def check_reward(name: str, options: Mapping[str, Any] | None = None, correct: str | None = None) -> Report:
    """Try everything on a reward.

    Args:
        name: registered name; load reward files first (`mmreason.scoring.load_reward_files`).
        options: of the reward.
        correct: what counts as correct, for group rewards that ask; default `exact > 0.5`.

    Raises:
        ConfigError: the options are wrong, or the name is a shaper's.
        PluginError: there is no such reward.
    """
    return _Examination(Bench(name, options, correct)).report()


class _Examination:
    """One reward under examination; most methods make the finding of one check."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.notes = Notebook(bench)
        #: What went wrong, though not for too long, on hostile text.
        self.failed_hostile: list[str] = []
        #: Longer completions are left out.
        self.max_chars = LONGEST_TEXT

    def report(self) -> Report:
        """Run all checks."""
        findings = {finding.check: finding for finding in self._findings()}
        return Report(self.bench.spec.name, tuple(findings[check] for check in CHECKS), self.notes.num_scored)

    def _findings(self) -> Iterable[Finding]:
        yield self._fits()
        yield self._right()
        yield self._empty()
        yield self._frames()
        # Before the long texts: what takes too long on one kind may take for ever on another.
        yield self._hostile()
        yield from self._attacks()
        yield self._unicode()
        yield self._varies()
        again = self.notes.sample()
        yield self._deterministic(again)
        yield from self._order_and_time(again)
        yield self._inputs(again)
        yield self._over_training(again)
        yield self._pickles()
        # After everything that was scored.
        yield self._applies()
        yield self._range()
        yield self._failures()
        yield self._other_rows()

    def _not_judging(self, check: str) -> Finding | None:
        """Why a check of right and wrong does not apply, if it does not."""
        if self.notes.sheets and not self.bench.borrows:
            return None
        why = "it judges none of the questions"
        if self.bench.borrows:
            why = "another reward says what is right: check that"
        elif "target" not in self.bench.spec.needs:
            why = "it does not look at what is right"
        return Finding(check, "not applicable", why)

    # ------------------------------------------------------------------ right and wrong

    def _fits(self) -> Finding:
        tried = len(built_in_examples()) + len(given_examples(self.bench.spec.function))
        judged = len(self.notes.sheets)
        if judged:
            return Finding("fits", "ok", f"judges {judged} of {tried}")
        if {"target", "correct", "rewards"}.isdisjoint(self.bench.spec.needs):
            return self._not_judging("fits") or _nothing("fits")
        problem = "it asks what is right, and its values change with none of the targets"
        return Finding("fits", "FAIL", f"judges none of {tried}", problem)

    def _right(self) -> Finding:
        sheets = self.notes.sheets
        if not sheets:
            return self._not_judging("right") or _nothing("right")
        problems = []
        # What is told what is right may pay for something else, and nothing where that is missing.
        margin = -_EXACTLY if not self.bench.borrows else _EXACTLY
        for sheet in sheets:
            if not sheet.right:
                problems.append(f"{_row(sheet)}: no value for the right answer {quoted(sheet.example.right[0])}")
            for text, value in sheet.wrong:
                if value >= sheet.best + margin:
                    problems.append(f"{_row(sheet)}: {value:.3g} for the wrong {quoted(text)}, right: {sheet.best:.3g}")
            for text, value in sheet.fair:
                if value > sheet.best + _EXACTLY:
                    problems.append(f"{_row(sheet)}: {value:.3g} for {quoted(text)}, right: {sheet.best:.3g}")
        wrong = [value for sheet in sheets for _, value in sheet.wrong]
        best = [sheet.best for sheet in sheets if sheet.right]
        alike = " of one length" if self.bench.borrows else ""
        return _judged("right", problems, f"right {spread(best)}, wrong {spread(wrong)}{alike}")

    def _empty(self) -> Finding:
        if reason := self._not_judging("empty"):
            return reason
        problems = []
        for sheet in self.notes.usable:
            limit = max((value for _, value in sheet.wrong), default=sheet.lowest) + _TOLERANCE * sheet.span
            for text, value in sheet.nothing:
                if value > limit:
                    problems.append(f"{_row(sheet)}: {value:.3g} for {quoted(text)}, wrong answers: {limit:.3g}")
        nothing = [value for sheet in self.notes.sheets for _, value in sheet.nothing]
        return _judged("empty", problems, f"empty and garbage {spread(nothing)}")

    def _applies(self) -> Finding:
        if reason := self._not_judging("applies"):
            return reason
        valued = {id(sheet.example) for sheet in self.notes.sheets if sheet.right}
        cases = [case for case in self.notes.without if id(case.example) in valued]
        problems = [f"row '{case.example.name}': no value for {quoted(case.text)}" for case in cases]
        return _judged("applies", problems, "bad completions have one too")

    def _frames(self) -> Finding:
        """The same boxes, written in several frames, must be worth the same."""
        values: dict[str, dict[str, float]] = {}
        for sheet in self.notes.sheets:
            if sheet.example.target.get("boxes") and not self.bench.borrows:
                key = json.dumps([sheet.example.target["boxes"], str(sheet.example.geometry)])
                values.setdefault(key, {})[sheet.example.box_frame] = sheet.best
        written = [frames for frames in values.values() if len(frames) > 1]
        if not written:
            return Finding("frames", "not applicable", "it judges no boxes")
        low, high = self.bench.spec.range
        limit = _TOLERANCE * (high - low) if math.isfinite(high - low) else _EXACTLY
        told = [", ".join(f"{value:.3g} in {frame}" for frame, value in frames.items()) for frames in written]
        far = [not max(frames.values()) - min(frames.values()) <= limit for frames in written]
        return _judged("frames", [text for text, is_far in zip(told, far, strict=True) if is_far], told[0])

    # ------------------------------------------------------------------ attempts to be paid for nothing

    def _attacks(self) -> Iterable[Finding]:
        if self._not_judging("tags"):
            reasons = {check: self._not_judging(check) or _nothing(check) for check in ATTACKS}
            reasons["tags"] = self._structure() or reasons["tags"]
            reasons["lengths"] = self._padding() or reasons["lengths"]
            return reasons.values()
        tried: dict[str, list[tuple[float, str]]] = {check: [] for check in ATTACKS}
        problems: dict[str, list[str]] = {check: [] for check in ATTACKS}
        for sheet in self.notes.usable:
            probes = [probe for probe in attacks(sheet.example) if len(probe.text) <= self.max_chars]
            texts = [text for probe in probes for text in (probe.text, probe.control) if text is not None]
            values = dict(zip(texts, self.notes.score([Case(sheet.example, text) for text in texts]), strict=True))
            for probe in probes:
                value = values[probe.text]
                control = None if probe.control is None else values[probe.control]
                if value is None:
                    continue
                tried[probe.check].append((_paid(sheet, probe, value, control), f"{sheet.example.name}: {probe.what}"))
                if _pays_too_much(sheet, probe, value, control):
                    worth = f"{_row(sheet)}, {probe.what}: {value:.3g}, right: {sheet.best:.3g}"
                    problems[probe.check].append(f"{worth}. It was {quoted(probe.text)}")
        return [_attempt(check, tried[check], problems[check]) for check in ATTACKS]

    def _structure(self) -> Finding | None:
        """For a reward of mere form: malformed completions must pay less than a well-formed one; `None` for others."""
        if self.notes.sheets or {"completion", "rollout"}.isdisjoint(self.bench.spec.needs):
            return None
        forms = {"well formed": WELL_FORMED, **MALFORMED}
        texts = {what: [form.replace("{}", said) for said in CONTENTS] for what, form in forms.items()}
        values = {what: self._values_of_form(said) for what, said in texts.items()}
        well, bare = values.pop("well formed"), values["no tags"]
        if min(well) != max(well) or max(bare) >= well[0] - _EXACTLY:
            return None
        problems = [
            f"{what}: {max(given):.3g}, well formed: {well[0]:.3g}. It was {quoted(texts[what][0])}"
            for what, given in values.items()
            if max(given) >= well[0] - _EXACTLY
        ]
        worst = max(max(given) for given in values.values())
        return _judged("tags", problems, f"well formed {well[0]:.3g}, malformed at most {worst:.3g}")

    def _padding(self) -> Finding | None:
        """For a reward that is not told what is right: text that says nothing must pay no more; `None` for others."""
        if self.bench.borrows or self.notes.sheets:
            return None
        plain, padded = padding(self.notes.ground)
        tried = {what: text for what, text in padded.items() if len(text) <= self.max_chars}
        short = max(self._values_of_form(plain))
        if not tried or short == -math.inf:
            return None
        values = dict(zip(tried, self._values_of_form(list(tried.values())), strict=True))
        problems = [
            f"{what}: {value:.3g}, short ones: {short:.3g}. It was {quoted(tried[what])}"
            for what, value in values.items()
            if value > short + _EXACTLY
        ]
        return _judged("lengths", problems, f"short {short:.3g}, padded at most {max(values.values()):.3g}")

    def _values_of_form(self, texts: Sequence[str]) -> list[float]:
        values = self.notes.score([Case(self.notes.ground, text) for text in texts])
        return [-math.inf if value is None else value for value in values]

    # ------------------------------------------------------------------ conduct

    def _unicode(self) -> Finding:
        examples = [sheet.example for sheet in self.notes.sheets] or [self.notes.ground]
        before = len(self.notes.failed)
        self.notes.score([Case(example, text) for example in examples for text in UNICODE])
        strange = self.notes.failed[before:]
        del self.notes.failed[before:]
        return _judged("unicode", [_failure(one) for one in strange], f"{len(examples) * len(UNICODE)} completions")

    def _varies(self) -> Finding:
        ground = self.notes.ground
        if self._not_judging("varies"):
            texts = [*EMPTY, *GARBAGE, *SHAPES, *(probe.text for probe in attacks(ground))]
            self.notes.score([Case(ground, text) for text in texts if len(text) <= self.max_chars])
        values = self.notes.values
        problems = []
        if len(set(values)) < 2:
            problems = [f"{spread(values)} for all {self.notes.num_texts} completions"]
        seen = "one value" if len(set(values)) == 1 else f"{len(set(values))} different values"
        return _judged("varies", problems, f"{seen}, {spread(values)}")

    def _deterministic(self, again: list[Case]) -> Finding:
        problems = [_change(one.case, one.before, one.after) for one in self.notes.changed]
        problems += self._changes(again, self.bench.fresh().score(again))
        return _judged("deterministic", problems, f"{len(again)} completions scored again")

    def _order_and_time(self, again: list[Case]) -> list[Finding]:
        """One by one, backwards, and as one batch in another order; the first also gives the time of an item."""
        bench = self.bench.fresh()
        timed = [bench.time(case, with_waiting=True) for case in reversed(again)]
        problems = self._changes(again, [score for score, _ in reversed(timed)])
        backwards = bench.score(list(reversed(again)))
        problems += self._changes(again, list(reversed(backwards)))
        problems += self._twins(again) if self.bench.spec.per != "rollout" else []
        order = _judged("order", problems, f"{len(again)} completions alone, and backwards")
        seconds = [taken for _, taken in timed]
        if not seconds:
            return [order, Finding("time", "not applicable", "no completion has a value")]
        median = statistics.median(seconds)
        slow = median > _MAX_ITEM_S and not self.bench.spec.has_deadline
        seen = f"median {duration(median)}, longest {duration(max(seconds))}"
        return [order, _judged("time", [f"{duration(median)} for one completion"] if slow else [], seen)]

    def _twins(self, cases: Sequence[Case]) -> list[str]:
        """Of a group or batch reward: cases that are worth something else as first than as second."""
        self.notes.num_scored += 2 * len(cases)
        pairs = [(case, self.bench.twins(case)) for case in cases]
        return [
            f"row '{case.example.name}': {first:.6g} and {second:.6g} for the same completion twice: {quoted(case.text)}"
            for case, (first, second) in pairs
            if first != second and not (math.isnan(first) and math.isnan(second))
        ]

    def _inputs(self, again: list[Case]) -> Finding:
        self.notes.num_scored += len(again)
        problems = [f"row '{case.example.name}', {quoted(case.text)}" for case in again if self.bench.alters(case)]
        return _judged("inputs", problems, f"{len(again)} completions: target, columns and turns as before")

    def _changes(self, cases: Sequence[Case], scores: Sequence[Score]) -> list[str]:
        """Cases that are not worth what they were before."""
        self.notes.num_scored += len(cases)
        pairs = [(case, self.notes.value(case), score.value) for case, score in zip(cases, scores, strict=True)]
        return [_change(case, before, after) for case, before, after in pairs if before != after]

    def _over_training(self, again: list[Case]) -> Finding:
        if "progress" not in self.bench.spec.needs:
            return Finding("training", "not applicable", "it does not ask for the progress")
        problems = []
        for self.bench.progress in (0.0, 0.5, 1.0):
            scores = self.bench.score(again)
            pairs = zip(again, scores, strict=True)
            problems += [_failure(Failed(case, *score.failure)) for case, score in pairs if score.failure is not None]
        self.notes.num_scored += 3 * len(again)
        return _judged("training", problems, "begin, middle and end")

    def _pickles(self) -> Finding:
        function = self.bench.spec.function
        problems = []
        try:
            if pickle.loads(pickle.dumps(function)) is not function:  # noqa: S301 - what was just pickled
                problems.append("its name leads to another function")
            pickle.dumps(self.bench.score([Case(self.notes.ground, completion("red"))]))
        except (pickle.PicklingError, AttributeError, TypeError, ImportError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        return _judged("pickles", problems, "the function, by its name, and its results")

    def _hostile(self) -> Finding:
        timings: list[Timing] = []
        problems: list[str] = []
        for timing in itertools.chain.from_iterable(map(self.bench.hostile, self._hostile_ground())):
            timings.append(timing)
            if timing.took_too_long:
                problems.append(_hostile_problem(timing))
                self.max_chars = max(_ORDINARY_CHARS, min(self.max_chars, timing.num_chars // 2))
            elif timing.failure is not None:
                self.failed_hostile.append(_hostile_problem(timing))
            if len(problems) == _ENOUGH:
                break
        slowest = max(timings, key=lambda timing: timing.seconds)
        return _judged("hostile", problems, f"slowest {duration(slowest.seconds)} ({slowest.what})")

    def _hostile_ground(self) -> list[Example]:
        """The first question, and one with another kind of target."""
        first = self.notes.ground
        others = [sheet.example for sheet in self.notes.sheets if sheet.example.target.keys() != first.target.keys()]
        return [first, *others[:1]]

    def _range(self) -> Finding:
        failed = self.notes.failed + self.notes.failed_elsewhere
        low, high = self.bench.spec.range
        seen = f"{spread(self.notes.values)} in {low:g}..{high:g}"
        return _judged("range", [_failure(one) for one in failed if one.kind == "out_of_range"], seen)

    def _failures(self) -> Finding:
        problems = [_failure(one) for one in self.notes.failed if one.kind != "out_of_range"] + self.failed_hostile
        return _judged("failures", problems, f"{len(problems)} of {self.notes.num_scored:,} completions")

    def _other_rows(self) -> Finding:
        problems = [_failure(one) for one in self.notes.failed_elsewhere if one.kind != "out_of_range"]
        judged = {id(sheet.example) for sheet in self.notes.sheets}
        others = sum(id(example) not in judged for example in built_in_examples())
        return _judged("other_rows", problems, f"{others} questions")


def _paid(sheet: Sheet, probe: Probe, value: float, control: float | None) -> float:
    """The share of a right answer's pay that a probe gets; beyond its control, if it has one that is like it."""
    if probe.rule == "control" and control is not None:
        return (value - control) / sheet.span
    return sheet.share(value)


def _pays_too_much(sheet: Sheet, probe: Probe, value: float, control: float | None) -> bool:
    """Whether a probe is worth more than its rule allows."""
    slack = _TOLERANCE * sheet.span
    if probe.rule == "no_gain":
        return value > sheet.best + slack
    if probe.rule == "cost":
        return value > sheet.best - slack
    if probe.rule == "control":
        return control is not None and value > control + slack
    limit = sheet.lowest + _MAX_SHARE * sheet.span
    return value > max(limit, limit if control is None else control + slack)


_NO_PROBES = {
    "whole_image": "it judges no boxes",
    "every_box": "it judges no boxes",
    "all_choices": "no question with a list of candidates",
    "caption": "it judges no phrase of a caption",
}


def _judged(check: str, problems: Sequence[str], seen: str) -> Finding:
    if not problems:
        return Finding(check, "ok", seen)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Finding(check, "FAIL", seen, problems[0] + more)


def _attempt(check: str, tried: list[tuple[float, str]], problems: list[str]) -> Finding:
    if not tried:
        return _nothing(check)
    paid, what = max(tried, key=lambda one: one[0])
    if check in ("repeated", "lengths"):
        return _judged(check, problems, f"at most {paid:.0%} of a right answer, {len(tried)} completions")
    return _judged(check, problems, f"at most {paid:.0%} of a right answer" + f" ({what})" * (paid > 0.0))


def _nothing(check: str) -> Finding:
    return Finding(check, "not applicable", _NO_PROBES.get(check, "no question for it"))


def _change(case: Case, before: float | None, after: float | None) -> str:
    return f"row '{case.example.name}': {before} became {after} for {quoted(case.text)}"


def _hostile_problem(timing: Timing) -> str:
    what = f"{timing.num_chars:,} characters, {timing.what}"
    if timing.failure is None:
        return f"{duration(timing.seconds)} for {what}"
    return f"{timing.failure[0]} for {what}: {last_line(timing.failure[1])}"


def _failure(one: Failed) -> str:
    return f"row '{one.case.example.name}', {quoted(one.case.text)}: {one.kind}: {last_line(one.explanation)}"


def _row(sheet: Sheet) -> str:
    return f"row '{sheet.example.name}'"
