"""Alarms: when each fires, that it fires once until it clears, and that it names the likely cause."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.boxes import Boxes, Frame, format_box
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.train.alarms import AlarmBook, box_diagnosis

GEOMETRY = ImageGeometry(original_size=(640, 480), model_size=(308, 224), patch_size=14, merge_size=2)
TRUTH = [100.0, 120.0, 300.0, 280.0]


def rollout(answer: str | None, text: str = "", target: dict[str, object] | None = None) -> Rollout:
    row = Row("r", (), (), {"boxes": [TRUTH], "labels": ["cat"]} if target is None else target)
    return Rollout(row, 0, (1,), text or f"<answer>{answer}</answer>", answer, 1, "stop", (GEOMETRY,), "resized_px")


def written_in(frame: str) -> str:
    decimals = 3 if frame == "relative_1" else 0
    return format_box(Boxes.of([TRUTH], "original_px").to(frame, GEOMETRY).xyxy[0], decimals)


def test_a_reward_at_zero_is_reported_once_after_n_steps_and_again_after_it_cleared() -> None:
    book = AlarmBook(["iou"], "resized_px", zero_steps=3)
    fired = [len(book.observe(step, {"rewards/iou": 0.0})) for step in range(1, 7)]
    assert fired == [0, 0, 1, 0, 0, 0]
    assert book.observe(7, {"rewards/iou": 0.3}) == []
    assert [len(book.observe(step, {"rewards/iou": 0.001})) for step in range(8, 12)] == [0, 0, 1, 0]


def test_a_step_that_does_not_log_the_reward_changes_nothing() -> None:
    book = AlarmBook(["iou"], zero_steps=2)
    assert book.observe(1, {"rewards/iou": 0.0}) == []
    assert book.observe(2, {"loss": 1.0}) == []
    assert len(book.observe(3, {"rewards/iou": 0.0})) == 1


@pytest.mark.parametrize("frame", [frame.value for frame in Frame if frame is not Frame.resized_px])
def test_the_frame_that_the_model_really_writes_is_named(frame: str) -> None:
    book = AlarmBook(["iou"], "resized_px", zero_steps=1, run_dir="runs/cats")
    (message,) = book.observe(5, {"rewards/iou": 0.0}, [rollout(written_in(frame))])
    assert "'iou' has stayed at 0" in message
    assert "read as resized_px" in message
    assert f"Read as {frame}" in message
    assert written_in(frame) in message
    assert "640 × 480" in message
    assert "308 × 224" in message
    assert "mmreason report runs/cats" in message


def test_wrong_places_are_not_blamed_on_the_frame() -> None:
    message = box_diagnosis([rollout("[1, 1, 4, 4]")], "resized_px")
    assert "no other frame fits" in message


def test_answers_without_a_box_are_said_to_hold_none() -> None:
    message = box_diagnosis([rollout("top left"), rollout(None, text="I cannot see it")], "resized_px")
    assert "None of 2 answers" in message
    assert "I cannot see it" in message


def test_without_samples_the_frame_is_still_the_first_suspect() -> None:
    (message,) = AlarmBook(["iou"], "relative_1000", 1).observe(1, {"rewards/iou": 0.0})
    assert "Likely the box frame: boxes are read as relative_1000" in message


def test_other_rewards_get_their_own_advice() -> None:
    book = AlarmBook(["format", "exact"], zero_steps=1)
    form, exact = book.observe(1, {"rewards/format": 0.0, "rewards/exact": 0.0}, [rollout("7", target={"answer": "8"})])
    assert "model.instruction" in form
    assert "<answer>7</answer>" in form
    assert "--reward exact" in exact


def test_a_reward_that_never_applies() -> None:
    book = AlarmBook(["exact"], zero_steps=2)
    messages = [book.observe(step, {"rewards/exact": math.nan}) for step in (1, 2, 3)]
    assert [len(found) for found in messages] == [0, 1, 0]
    assert "applied to no completion" in messages[1][0]


def test_no_spread_truncation_failures_and_non_finite_numbers() -> None:
    book = AlarmBook(["iou"])
    bad = {
        "zero_variance_groups": 1.0,
        "truncated": 0.51,
        "reward_failures": 0.1,
        "loss": math.nan,
        "kl": math.inf,
    }
    first = book.observe(1, bad)
    assert [key in message for key, message in zip(("kl, loss", "fail", "51%"), first, strict=True)] == [True] * 3
    (second,) = book.observe(2, bad)
    assert "the same reward" in second
    assert book.observe(3, bad) == []
    good = dict.fromkeys(bad, 0.0)
    assert book.observe(4, good) == []
    assert len(book.observe(5, bad)) == 3


def test_a_score_that_applies_to_nothing_is_no_numerical_fault() -> None:
    assert AlarmBook([]).observe(1, {"rewards/iou": math.nan, "eval/accuracy": math.nan}) == []
    assert len(AlarmBook([]).observe(1, {"rewards/iou": math.inf})) == 1


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["rewards/iou", "zero_variance_groups", "truncated", "loss", "reward_failures/iou"]),
            st.floats(),
        ),
        max_size=12,
    ),
    st.one_of(st.none(), st.text(max_size=40)),
)
def test_no_metrics_and_no_text_break_it(history: list[dict[str, float]], answer: str | None) -> None:
    book = AlarmBook(["iou"], "resized_px", zero_steps=2)
    samples = [
        rollout(answer),
        rollout(answer, target={"boxes": [["x"]]}),
        rollout(answer, target={"boxes": None}),
    ]
    for step, metrics in enumerate(history):
        previous = book.observe(step, metrics, samples)
        assert len(set(previous)) == len(previous)
        assert book.observe(step, metrics, samples) != previous or not previous, "a standing alarm is not repeated"
