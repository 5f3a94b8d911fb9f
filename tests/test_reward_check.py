"""`mmreason reward check`: built-ins pass, rewards that can be fooled are caught, and each check by what it is for."""

from __future__ import annotations

import functools
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from mmreason.boxes import Boxes, Frame
from mmreason.errors import ConfigError, PluginError
from mmreason.records import ImageGeometry, Rollout
from mmreason.reward_kit.bench import Bench, Case, _next_size
from mmreason.reward_kit.check import Report, check_reward
from mmreason.reward_kit.check_texts import CHECKS, MEANINGS
from mmreason.reward_kit.examples import Example, add_examples, built_in_examples
from mmreason.reward_kit.probes import ATTACKS, HOSTILE, as_completion, attacks, hostile_text
from mmreason.scoring import REWARDS, FloatArray, batch_reward, group_reward, reward, shaper
from mmreason.text import extract_answer

Target = Mapping[str, Any]
Geometry = tuple[ImageGeometry, ...]

BUILT_INS = sorted(
    name
    for name, spec in REWARDS
    # What must be told where its model is, is checked with one in the tests of the reward.
    if spec.function.__module__.startswith("mmreason.") and not spec.must_be_set
)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Registers a function as a reward for the length of one test, and checks it."""
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))
    # A megabyte takes its time, and is for the built-in rewards.
    monkeypatch.setattr("mmreason.reward_kit.bench.LONGEST_TEXT", 20_000)

    def run(function: Callable[..., Any], decorator: Callable[..., Any] = reward, **settings: Any) -> Report:
        options = settings.pop("options", {})
        decorator(**settings)(function)
        return check_reward(f"{__name__.split('.')[0]}/{function.__name__}", options)

    return run


def failed(report: Report) -> set[str]:
    return {finding.check for finding in report.failures}


def verdicts(report: Report) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in report.findings}


# Built-in rewards


@functools.cache
def built_in(name: str) -> Report:
    return check_reward(name)


@pytest.mark.parametrize("name", BUILT_INS)
def test_built_in_rewards_pass(name: str) -> None:
    report = built_in(name)
    assert not report.failures
    assert [finding.check for finding in report.findings] == list(CHECKS)
    assert sum(finding.verdict == "ok" for finding in report.findings) >= 9


def test_what_applies_is_told_from_behaviour() -> None:
    form, overlap, answer = (verdicts(built_in(name)) for name in ("format", "iou", "exact"))
    assert {name for name in ATTACKS if form[name] != "not applicable"} == {"tags", "lengths"}
    assert form["tags"] == form["varies"] == "ok"
    assert overlap["whole_image"] == overlap["every_box"] == overlap["frames"] == "ok"
    assert overlap["all_choices"] == "not applicable"
    assert answer["all_choices"] == answer["prompt"] == "ok"
    assert answer["whole_image"] == answer["frames"] == "not applicable"


def test_every_check_says_what_its_failure_means() -> None:
    assert set(MEANINGS) == set(CHECKS)
    assert all(text.endswith(".") or text.endswith(")") for text in MEANINGS.values())


# Rewards that can be fooled


def in_pixels(boxes: Boxes, geometry: Geometry) -> Boxes:
    return boxes.to(Frame.original_px, geometry[0]).clipped(geometry[0])


def ordered_map(boxes: Boxes, target: Target, geometry: Geometry) -> float | None:
    """Mean average precision where all boxes have confidence 1, as in VLM-R1: what comes first counts first."""
    if not target.get("boxes"):
        return None
    hits: list[bool] = []
    free = set(range(len(target["boxes"])))
    for row in in_pixels(boxes, geometry).iou(Boxes.of(target["boxes"], Frame.original_px)):
        best = max(free, key=lambda index: row[index], default=None)
        hits.append(best is not None and row[best] >= 0.5)
        free -= {best} if hits[-1] else set()
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best_later = [max(precision[found >= count], default=0.0) for count in range(1, len(target["boxes"]) + 1)]
    return float(np.mean(best_later))


def covered_share(boxes: Boxes, target: Target, geometry: Geometry) -> float | None:
    """Share of the wanted boxes that is covered: recall without precision."""
    if not target.get("boxes"):
        return None
    wanted, given = Boxes.of(target["boxes"], Frame.original_px), in_pixels(boxes, geometry).xyxy[:, np.newaxis]
    low, high = np.maximum(given[..., :2], wanted.xyxy[:, :2]), np.minimum(given[..., 2:], wanted.xyxy[:, 2:])
    shares = np.clip(high - low, 0.0, None).prod(axis=-1) / wanted.areas
    return float(min(1.0, shares.max(axis=0).mean())) if len(boxes) else 0.0


def first_box(boxes: Boxes, target: Target, geometry: Geometry) -> float | None:
    """IoU of the first box only."""
    if not target.get("boxes"):
        return None
    overlaps = in_pixels(boxes, geometry).iou(Boxes.of(target["boxes"], Frame.original_px))
    return float(overlaps[0, 0]) if len(boxes) else 0.0


def wrong_frame(boxes: Boxes, target: Target) -> float | None:
    """Compares the numbers that the model writes with pixels."""
    if not target.get("boxes"):
        return None
    if len(boxes) != len(target["boxes"]):
        return 0.0
    wanted = Boxes.of(target["boxes"], boxes.frame)
    return float(np.diag(boxes.iou(wanted)).mean())


def substring(answer: str | None, target: Target) -> float | None:
    """The right answer occurs in the answer."""
    if target.get("answer") is None:
        return None
    return float(str(target["answer"]).casefold() in (answer or "").casefold())


def anywhere(completion: str, target: Target) -> float | None:
    """The right answer occurs in the completion as a word, be it in the thinking."""
    if target.get("answer") is None:
        return None
    return float(bool(re.search(rf"(?<!\w){re.escape(str(target['answer']))}(?!\w)", completion[:5000])))


def first_block(rollout: Rollout) -> float | None:
    """Takes the first answer block of the text, as many do, and not the last one outside the thinking."""
    wanted = rollout.row.target.get("answer")
    if wanted is None:
        return None
    block = re.search(r"<answer>([^<]*)</answer>", rollout.text)
    return float(block is not None and block[1].strip() == str(wanted))


def part_of_caption(answer: str | None, target: Target) -> float | None:
    """The falsified phrase occurs in the answer."""
    return float(target["span"] in (answer or "")) if "span" in target else None


def searched_format(completion: str) -> float:
    """Finds the blocks somewhere in the text."""
    return float(bool(re.search(r"<think>[^<]*</think>\s{0,9}<answer>[^<]*</answer>", completion)))


def longer_is_better(answer: str | None, completion: str, target: Target) -> float | None:
    if target.get("answer") is None:
        return None
    return 0.5 * float(answer == str(target["answer"])) + 0.5 * min(1.0, len(completion) / 20_000)


def long_thinking(completion: str) -> float:
    """Pays for length, whatever is right."""
    return min(1.0, len(completion) / 20_000)


def says_therefore(completion: str) -> float:
    """Counts a word of reasoning, as often as it is said."""
    return min(1.0, completion.casefold().count("therefore") / 20)


def lowered_substring(completion: str, target: Target) -> float | None:
    """The right answer occurs in the lowercased completion."""
    if target.get("answer") is None:
        return None
    return float(str(target["answer"]).lower() in completion.lower())


def recalled_words(answer: str | None, target: Target) -> float | None:
    """Share of the right answer's words that are said."""
    if target.get("answer") is None:
        return None
    wanted = set(str(target["answer"]).lower().split())
    return len(wanted & set((answer or "").lower().split())) / max(1, len(wanted))


@pytest.mark.parametrize(
    ("function", "caught"),
    [
        (ordered_map, {"every_box", "repeated"}),
        (covered_share, {"whole_image", "every_box", "repeated"}),
        (first_box, {"every_box", "repeated"}),
        (wrong_frame, {"right", "frames", "whole_image"}),
        (substring, {"right", "empty", "all_choices", "prompt", "lengths"}),
        (anywhere, {"all_choices", "tags", "thinking", "prompt"}),
        (first_block, {"all_choices", "tags"}),
        (part_of_caption, {"all_choices", "caption", "prompt"}),
        (searched_format, {"tags"}),
        (longer_is_better, {"lengths"}),
        (long_thinking, {"lengths"}),
        (says_therefore, {"lengths"}),
        (lowered_substring, {"right", "empty", "all_choices", "tags", "thinking", "prompt", "lengths"}),
        (recalled_words, {"all_choices", "prompt"}),
    ],
)
def test_rewards_that_can_be_fooled_are_caught(
    check: Callable[..., Report], function: Callable[..., Any], caught: set[str]
) -> None:
    assert caught <= failed(check(function))


def test_rewards_without_a_target_may_pay_for_brevity_form_and_what_is_rare(check: Callable[..., Report]) -> None:
    def brevity(completion: str) -> float:
        """1 for an empty completion."""
        return max(0.0, 1.0 - len(completion) / 400)

    def rarer(answer: list[str | None]) -> list[float]:
        """Share of the batch with another answer."""
        return [1.0 - answer.count(own) / len(answer) for own in answer]

    for report in (check(brevity), check(rarer, batch_reward)):
        assert verdicts(report)["lengths"] == "ok"
        assert failed(report) <= {"pickles"}  # they stand within a function


def test_a_failure_tells_the_completion_and_what_it_was_worth(check: Callable[..., Report]) -> None:
    finding = next(one for one in check(substring).failures if one.check == "all_choices")
    assert "at most 100% of a right answer" in finding.seen
    assert "a choice by letter" in finding.problem
    assert "<answer>A, B, C, D</answer>" in finding.problem
    assert finding.meaning == MEANINGS["all_choices"]


def test_options_are_checked_as_they_will_be_used() -> None:
    assert not built_in("detection_weighted").failures
    without = check_reward("detection_weighted", {"count_control": False})
    assert failed(without) == {"every_box"}


# Faults of conduct


def exactly(answer: str | None, target: Target) -> float | None:
    if target.get("answer") is None:
        return None
    return float(answer == str(target["answer"]))


def noisy(answer: str | None, target: Target) -> float | None:
    value = exactly(answer, target)
    return None if value is None else 0.99 * value + 0.01 * random.random()


_seen: set[str | None] = set()


def stateful(answer: str | None, target: Target) -> float | None:
    value = exactly(answer, target)
    if value is None:
        return None
    value *= 0.5 if answer in _seen else 1.0
    _seen.add(answer)
    return value


def too_much(answer: str | None, target: Target) -> float | None:
    value = exactly(answer, target)
    return None if value is None else 3.0 * value - 1.0


def brittle(answer: str | None, target: Target) -> float | None:
    (answer or "").encode()
    return exactly(answer, target)


def careless(answer: str | None, target: Target) -> float:
    return float(answer == str(target["answer"]))


def dodging(answer: str | None, target: Target) -> float | None:
    return exactly(answer, target) if answer else None


def silence_pays(answer: str | None, target: Target) -> float | None:
    value = exactly(answer, target)
    return 0.0 if value is not None and not answer else None if value is None else 2.0 * value - 1.0


def constant(completion: str) -> float:
    return 1.0


def blind(answer: str | None, target: Target) -> float:
    return float(answer is not None)


def by_progress(answer: str | None, target: Target, progress: float) -> float | None:
    value = exactly(answer, target)
    return None if value is None else value / progress if progress < 1.0 else value


def meddling(answer: str | None, target: dict[str, Any]) -> float | None:
    target.pop("choices", None)
    return exactly(answer, target)


@pytest.mark.parametrize(
    ("function", "settings", "caught"),
    [
        (exactly, {}, set()),
        (meddling, {}, {"inputs"}),
        (noisy, {}, {"deterministic", "order"}),
        (stateful, {}, {"deterministic"}),
        (too_much, {}, {"range"}),
        (too_much, {"range": (-1.0, 2.0)}, set()),
        (brittle, {}, {"unicode"}),
        (careless, {}, {"other_rows"}),
        (dodging, {}, {"applies"}),
        (silence_pays, {"range": (-1.0, 1.0)}, {"empty"}),
        (constant, {}, {"varies"}),
        (blind, {}, {"fits"}),
        (by_progress, {}, {"training"}),
    ],
)
def test_faults_are_caught(
    check: Callable[..., Report], function: Callable[..., Any], settings: dict[str, Any], caught: set[str]
) -> None:
    _seen.clear()
    found = failed(check(function, **settings))
    assert caught <= found
    assert bool(caught) == bool(found)


def test_what_cannot_be_pickled_is_caught(check: Callable[..., Report]) -> None:
    def local(completion: str) -> float:
        return min(1.0, len(completion) / 100)

    @functools.wraps(exactly)
    def wrapped(answer: str | None, target: Target) -> float | None:
        return exactly(answer, target)

    assert failed(check(local)) == {"pickles"}
    assert failed(check(wrapped)) == {"pickles"}


def test_a_slow_reward_is_caught(check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.reward_kit.check._MAX_ITEM_S", 0.0)
    assert failed(check(exactly)) == {"time"}


def test_waiting_is_time_too(check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(answer: str | None, target: Target) -> float | None:
        time.sleep(0.002)
        return exactly(answer, target)

    monkeypatch.setattr("mmreason.reward_kit.check._MAX_ITEM_S", 0.002)
    assert "time" in failed(check(waiting))


# Hostile text


def quadratic(completion: str) -> float:
    return min(1.0, len(re.findall(r"a+!", completion)) / 9)


def exponential(answer: str | None) -> float:
    return float(bool(re.fullmatch(r"(a|a)*b", answer or "")))


def searching(answer: str | None) -> float:
    seen: list[str] = []
    for word in (answer or "").split():
        seen += [] if word in seen else [word]
    return min(1.0, len(seen) / 9)


def copying_lines(answer: str | None) -> float:
    lines: tuple[str, ...] = ()
    for line in (answer or "").split("\n"):
        lines = (*lines, line)
    return min(1.0, len(lines) / 9)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (quadratic, "'a' repeated"),
        (exponential, "'a' repeated"),
        (searching, "different words"),
        (copying_lines, r"'\n' repeated as the answer"),
    ],
)
def test_time_that_grows_faster_than_the_text_is_caught_in_time(
    check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], what: str
) -> None:
    monkeypatch.setattr("mmreason.reward_kit.bench.LONGEST_TEXT", 100_000)
    monkeypatch.setattr("mmreason.reward_kit.bench.MAX_HOSTILE_S", 0.05)
    report = check(function)
    finding = next(finding for finding in report.failures if finding.check == "hostile")
    assert what in finding.problem


def test_texts_grow_slowly_where_time_does_not() -> None:
    assert _next_size(8, 0.0001, None) == 12
    assert _next_size(64, 0.0001, (40, 0.0001)) == 128
    assert _next_size(20_000, 0.0001, (10_000, 0.0001)) == 160_000
    assert _next_size(20_000, 0.4, (10_000, 0.1)) <= 25_000
    assert _next_size(30, 0.4, (28, 0.1)) == 32
    assert _next_size(900_000, 0.0001, (450_000, 0.0001)) == 1_000_000


def test_hostile_texts_have_their_length_and_are_read_as_answers() -> None:
    for piece, form in HOSTILE:
        for size in (8, 1000):
            text = hostile_text(piece, form, size)
            assert abs(len(text) - len(form) - size) <= 2
            assert (extract_answer(text) is not None) == ("<answer>" in form) or "<" in piece


# Groups


def lower_if_right(correct: list[bool | None]) -> list[float | None]:
    return [None if flag is None else float(not flag) for flag in correct]


def brevity(num_tokens: list[int], correct: list[bool | None]) -> list[float | None]:
    shortest, longest = min(num_tokens), max(num_tokens)
    return [
        None if flag is None else (longest - own) / (longest - shortest + 1)
        for own, flag in zip(num_tokens, correct, strict=True)
    ]


def first_wins(answer: list[str | None], target: list[Target]) -> list[float | None]:
    values = [exactly(*pair) for pair in zip(answer, target, strict=True)]
    return [None if value is None else value / (1 + place) for place, value in enumerate(values)]


@pytest.mark.parametrize("decorator", [group_reward, batch_reward])
def test_equal_completions_must_be_worth_the_same(check: Callable[..., Report], decorator: Callable[..., Any]) -> None:
    report = check(first_wins, decorator)
    finding = next(finding for finding in report.failures if finding.check == "order")
    assert "for the same completion twice" in finding.problem


def test_group_rewards_are_told_what_is_right_by_another(check: Callable[..., Report]) -> None:
    assert failed(check(lower_if_right, group_reward)) == {"right"}
    report = check(brevity, group_reward)
    assert not report.failures
    assert verdicts(report)["thinking"] == "not applicable"


# Examples of one's own


def colour_named(answer: str | None, target: Target) -> float | None:
    return float(answer == target["colour"]) if "colour" in target else None


def colour_in_it(answer: str | None, target: Target) -> float | None:
    return float(target["colour"] in (answer or "")) if "colour" in target else None


def says_units(completion: str) -> float:
    return float(completion[:1000].endswith(" cm"))


RED = Example("a colour", {"colour": "red"}, right=("red",), wrong=("blue", "car"), candidates=("red", "blue", "grey"))


def test_a_target_of_its_own_needs_examples(check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.reward_kit.examples._given", {})
    assert "fits" in failed(check(colour_named))
    add_examples(colour_in_it, RED)
    report = check(colour_in_it)
    assert {"all_choices", "prompt"} <= failed(report)
    assert "fits" not in failed(report)


def test_with_examples_a_good_reward_passes(check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.reward_kit.examples._given", {})
    add_examples(colour_named, RED)
    report = check(colour_named)
    assert not report.failures
    assert verdicts(report)["all_choices"] == "ok"


def test_examples_may_be_whole_completions(check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.reward_kit.examples._given", {})
    assert failed(check(says_units)) == {"varies"}
    add_examples(says_units, Example("a length", {}, right=("It is 3 cm",), wrong=("It is 3",), whole_text=True))
    REWARDS._items.pop(f"{__name__.split('.')[0]}/says_units")
    assert not failed(check(says_units))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Example("x", {}, right="red", wrong=("blue",)), "right must be a tuple of texts"),  # type: ignore[arg-type]
        (lambda: Example("x", {}, right=(), wrong=("blue",)), "at least one right and one wrong"),
        (lambda: add_examples(colour_named), "one or more Example"),
        (lambda: add_examples("colour_named", RED), "one or more Example"),  # type: ignore[arg-type]
    ],
)
def test_wrong_examples_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        make()


# The probes themselves


def test_controls_hold_nothing_of_the_right_answer_and_are_as_long() -> None:
    checked = 0
    for example in built_in_examples():
        for probe in attacks(example):
            if probe.rule != "control":
                continue
            assert probe.control is not None
            if probe.check in ("tags", "thinking"):
                assert len(probe.control) == len(probe.text)
                assert probe.control != probe.text
                assert not any(
                    f">{right}<" in probe.control or f"is {right}." in probe.control for right in example.right
                )
            checked += 1
    assert checked > 500


def test_every_kind_of_attack_is_made_and_named() -> None:
    made = {probe.check for example in built_in_examples() for probe in attacks(example)}
    assert made == set(ATTACKS)


def test_right_answers_of_the_examples_are_worth_everything_somewhere() -> None:
    """Each example is judged by a built-in reward that pays its right answer the top of its range."""
    judges = ("iou", "abstention", "exact", "edit_similarity", "set_match", "iou_1d", "caption_critic", "json_schema")
    benches = [Bench(name) for name in judges if name in REWARDS]
    for example in built_in_examples():
        if "score" in example.target:  # quality scores are judged in comparison
            continue
        best = max(
            (score.value or 0.0)
            for bench in benches
            for score in bench.score([Case(example, as_completion(example, text)) for text in example.right])
        )
        assert best > 0.95, example.name
        assert math.isfinite(best)


# What cannot be checked


@shaper()
def doubled(values: FloatArray) -> FloatArray:
    return 2.0 * values


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("iuo", PluginError, "Did you mean 'iou'"),
        (f"{__name__.split('.')[0]}/doubled", ConfigError, "is a shaper"),
    ],
)
def test_what_is_no_reward_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_reward(name)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward\.iou\.treshold: no such option"):
        check_reward("iou", {"treshold": 1})
