"""Alarms: when each fires, that it fires once until it clears, and that it names the likely cause."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import norm

from mmreason.boxes import Boxes, Frame, format_box
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.stats import MAX_Z, rough_z, trend
from mmreason.train.alarms import AlarmBook, box_diagnosis
from mmreason.train.live import LiveTable
from mmreason.train.run import Watcher

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


SECOND = ImageGeometry(original_size=(1000, 800), model_size=(504, 392), patch_size=14, merge_size=2)


def about_two_images(answer: str, image_index: object) -> Rollout:
    row = Row("r", (), (), {"boxes": [TRUTH], "image_index": image_index})
    return Rollout(row, 0, (1,), f"<answer>{answer}</answer>", answer, 1, "stop", (GEOMETRY, SECOND), "resized_px")


@pytest.mark.parametrize("image_index", [1, [1]])
def test_the_frame_is_looked_for_in_the_image_of_the_box(image_index: object) -> None:
    seen = format_box(Boxes.of([TRUTH], "original_px").to("relative_1000", SECOND).xyxy[0], 0)
    message = box_diagnosis([about_two_images(f"image 2 {seen}", image_index)], "resized_px")
    assert "Read as relative_1000, the same boxes overlap the true ones by 1.00" in message
    assert "1000 × 800 px (the model sees 504 × 392)" in message
    assert f"with image_index {image_index}" in message
    # The very box in the other image is a wrong place in every frame.
    assert "no other frame fits" in box_diagnosis([about_two_images(f"image 1 {seen}", image_index)], "resized_px")


def test_boxes_that_name_no_image_where_they_have_to() -> None:
    message = box_diagnosis([about_two_images("[1, 2, 3, 4]", [1]), about_two_images("none", [1])], "resized_px")
    assert "None of 1 answers with boxes names an image" in message
    assert "image 2 [x1, y1, x2, y2]" in message
    assert "'[1, 2, 3, 4]'" in message
    # Where the question names the image, the answer need not.
    assert "names an image" not in box_diagnosis([about_two_images("[1, 2, 3, 4]", 1)], "resized_px")


def guarded(factor: float, signs: float = 2.0) -> dict[str, float]:
    return {"objective/guard_factor": factor, "objective/guard_signs": signs}


def test_a_cut_by_the_guard_is_told_in_its_own_words_where_they_are_at_hand() -> None:
    live, page = AlarmBook([]), AlarmBook([], run_dir="runs/cats")
    assert live.observe(1, guarded(1.0, 1.0)) == page.observe(1, guarded(1.0, 1.0)) == []
    assert live.observe(2, guarded(0.5), (), "step 2: it is collapsing") == ["step 2: it is collapsing"]
    (message,) = page.observe(2, guarded(0.5))
    assert message.startswith("step 2: ")
    assert "cut the coefficient to 0.5 of what is set" in message
    assert "mmreason report runs/cats" in message
    assert live.observe(3, guarded(0.5)) == page.observe(3, guarded(0.5)) == []
    # A guard that only warns says so, and cuts nothing.
    assert AlarmBook([]).observe(1, guarded(1.0), (), "careful") == ["careful"]


def test_a_further_cut_is_news_and_the_alarm_is_over_with_its_signs() -> None:
    book = AlarmBook([])
    (first,) = book.alarms(1, guarded(0.5))
    assert book.alarms(2, {"loss": 1.0}) == book.alarms(3, guarded(0.5)) == []
    assert first.until is None
    (second,) = book.alarms(4, guarded(0.25))
    assert (first.until, second.until) == (4, None)
    assert book.alarms(5, guarded(0.25, 0.0)) == []
    assert second.until == 5
    assert book.alarms(6, guarded(0.25)) == []


def test_the_spread_of_a_reward_that_applies_to_nothing_is_no_numerical_fault() -> None:
    assert AlarmBook([]).observe(1, {"zero_variance_groups/iou": math.nan}) == []


def test_the_live_table_shows_what_the_guard_says() -> None:
    shown = io.StringIO()
    watcher = Watcher(LiveTable(9, [], console=Console(file=shown, width=200)), AlarmBook([]))
    said = iter(["", "step 4: it is collapsing (clip_high)", ""])
    watcher.guard = lambda: next(said)
    for step, factor in ((3, 1.0), (4, 0.5), (5, 0.5)):
        watcher(step, guarded(factor))
    alarms = [line for line in shown.getvalue().splitlines() if line.startswith("ALARM")]
    assert alarms == ["ALARM step 4: it is collapsing (clip_high)"]


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


# ---------------------------------------------------------------------- failures and spread


def test_a_second_failing_reward_is_told_while_the_first_still_fails() -> None:
    book = AlarmBook(["iou", "judge"])
    judge = {
        "reward_failures/judge": 3.0,
        "reward_failures/judge/deadline": 2.0,
        "reward_failures/judge/exception": 1.0,
    }
    (first,) = book.observe(1, {"reward_failures": 3.0, **judge})
    assert "'judge' fail (deadline 2, exception 1)" in first
    iou = {"reward_failures/iou": 1.0, "reward_failures/iou/crashed": 1.0}
    (second,) = book.observe(2, {"reward_failures": 4.0, **judge, **iou})
    assert "'iou' fail (crashed 1)" in second
    assert book.observe(3, {"reward_failures": 1.0, **iou}) == []
    (again,) = book.observe(4, {"reward_failures": 3.0, **judge})
    assert "'judge'" in again


def test_nearly_no_spread_is_told_once_it_lasts() -> None:
    book = AlarmBook(["iou"], zero_steps=3)
    fired = [book.observe(step, {"zero_variance_groups": share}) for step, share in enumerate((0.95, 0.9, 0.92, 0.91))]
    assert [len(found) for found in fired] == [0, 0, 1, 0]
    assert "in 92% of the groups" in fired[2][0]
    assert book.observe(5, {"zero_variance_groups": 0.5}) == []
    every = [book.observe(step, {"zero_variance_groups": 1.0}) for step in range(6, 12)]
    assert [len(found) for found in every] == [0, 1, 0, 0, 0, 0], "one message says it all"


def test_an_alarm_knows_when_it_was_over() -> None:
    book = AlarmBook([])
    (alarm,) = book.alarms(3, {"loss": math.nan})
    assert (alarm.key, alarm.step, alarm.until) == ("non-finite", 3, None)
    book.alarms(4, {"loss": 1.0})
    assert alarm.until == 4


# ---------------------------------------------------------------------- score up, accuracy down

REWARDS = ("length", "exact", "format")


def first_alarm(columns: dict[str, NDArray[np.float64]], names: tuple[str, ...] = REWARDS) -> tuple[int, str] | None:
    """Step and text of the first "score up" in `[n]` columns of metrics, NaN = not logged at that step."""
    book = AlarmBook(names)
    for step in range(1, 1 + len(next(iter(columns.values())))):
        metrics = {name: float(values[step - 1]) for name, values in columns.items() if np.isfinite(values[step - 1])}
        for alarm in book.alarms(step, metrics):
            if alarm.key.startswith("score up"):
                return step, alarm.text
    return None


def noise(rng: np.random.Generator, count: int, alike: float = 0.0) -> NDArray[np.float64]:
    """`[count]` standard normal noise; each value keeps `alike` of the one before."""
    values = rng.normal(size=count + 50)
    for index in range(1, len(values)):
        values[index] += alike * values[index - 1]
    return np.asarray(values[50:])


@pytest.mark.parametrize("correct", ["correct", "eval/accuracy"])
@pytest.mark.parametrize("opposed", [False, True])
def test_pure_noise_raises_no_alarm_in_200_steps(correct: str, opposed: bool) -> None:
    """Below 2 % of the runs, also where every score is the very opposite of correctness."""
    rng = np.random.default_rng(0)
    runs, fired = 250, 0
    for _ in range(runs):
        right = 0.5 + 0.05 * noise(rng, 200)
        scores = {name: 1.0 - right if opposed else noise(rng, 200) for name in ("reward", "rewards/length")}
        seen = right if correct == "correct" else np.where(np.arange(200) % 5 == 4, right, np.nan)
        fired += first_alarm({**scores, correct: seen}, ("length",)) is not None
    assert fired / runs < 0.02


def test_steps_that_are_like_their_neighbours_raise_no_alarm_either() -> None:
    rng = np.random.default_rng(1)
    runs = 150
    columns = [{"reward": noise(rng, 200, 0.4), "correct": 0.5 + 0.05 * noise(rng, 200, 0.4)} for _ in range(runs)]
    assert sum(first_alarm(one, ()) is not None for one in columns) / runs < 0.02


def hacked(rng: np.random.Generator, steps: int, start: int, over: int, drop: float) -> dict[str, NDArray[np.float64]]:
    """From `start` on, within `over` steps, correctness falls by `drop` and a reward for length is found."""
    found = np.clip((np.arange(steps) - start) / over, 0.0, 1.0)
    right = 0.55 - drop * found + 0.045 * rng.normal(size=steps)  # 128 completions a step
    length = 0.2 + 0.6 * found + 0.05 * rng.normal(size=steps)
    return {"correct": right, "rewards/exact": right, "rewards/length": length, "reward": right + length}


def test_a_planted_hack_is_caught_within_40_steps() -> None:
    rng = np.random.default_rng(2)
    found = [first_alarm(hacked(rng, 160, start=60, over=60, drop=0.3)) for _ in range(40)]
    assert all(one is not None and 60 < one[0] <= 100 for one in found)
    text = next(one[1] for one in found if one)
    for said in (
        "score up, accuracy down",
        "over the last 48 steps",
        "length 0.",
        "correct 0.",
        "reward check",
        "gate",
    ):
        assert said in text
    assert "exact" not in text.split("but")[0]


def test_a_slow_hack_shows_in_the_longer_windows() -> None:
    rng = np.random.default_rng(3)
    found = [first_alarm(hacked(rng, 900, start=50, over=800, drop=0.2)) for _ in range(5)]
    assert all(one is not None for one in found)
    assert any(one and ("last 192 steps" in one[1] or "last 768 steps" in one[1]) for one in found)


def test_held_out_accuracy_is_watched_beside_the_scores_since_the_last_evaluation() -> None:
    rng = np.random.default_rng(4)
    columns = hacked(rng, 200, start=20, over=180, drop=0.4)
    columns["eval/accuracy"] = np.where(np.arange(200) % 10 == 9, columns.pop("correct"), np.nan)
    found = first_alarm(columns)
    assert found is not None
    assert "evaluations" in found[1]
    assert "eval/accuracy 0." in found[1]


@pytest.mark.parametrize(
    ("correct", "reward"),
    [
        (np.linspace(0.3, 0.7, 120), np.linspace(0.5, 1.5, 120)),
        (np.linspace(0.7, 0.3, 120), np.linspace(1.5, 0.5, 120)),
    ],
    ids=["learning", "collapse"],
)
def test_both_up_or_both_down_is_another_matter(correct: NDArray[np.float64], reward: NDArray[np.float64]) -> None:
    assert first_alarm({"correct": correct, "reward": reward}) is None


def test_a_fall_too_small_to_matter_is_not_told() -> None:
    down, up = np.linspace(0.5, 0.49, 120), np.linspace(0.1, 0.9, 120)
    assert first_alarm({"correct": down, "reward": up}) is None
    assert first_alarm({"correct": 20 * (down - 0.5) + 0.5, "reward": up}) is not None


def test_the_alarm_is_told_once_and_ends_when_correctness_recovers() -> None:
    book = AlarmBook([])
    down = np.concatenate([np.linspace(0.7, 0.4, 60), np.linspace(0.4, 0.8, 100)])
    up = np.linspace(0.1, 0.9, 160)
    found = [one for step in range(160) for one in book.alarms(step, {"correct": down[step], "reward": up[step]})]
    (alarm,) = found
    assert alarm.step < 60 < (alarm.until or 0)


def test_steps_on_one_batch_of_rollouts_count_once() -> None:
    """With several optimizer steps a batch, equal numbers are no further evidence."""
    columns = {"correct": np.linspace(0.7, 0.4, 15), "reward": np.linspace(0.1, 0.9, 15)}
    assert first_alarm({name: np.repeat(values, 4) for name, values in columns.items()}) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40))
def test_a_trend_is_the_same_in_other_units_and_mirrored(values: list[float]) -> None:
    series = np.array(values)
    z = trend(series).z
    assert -MAX_Z <= z <= MAX_Z
    assert trend(-series).z == pytest.approx(-z, abs=1e-6)
    assert trend(series * 4.0).z == pytest.approx(z, abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0.0, 1.0), min_size=7, max_size=60))
def test_the_rough_score_spares_no_look_that_would_have_found_something(values: list[float]) -> None:
    series = np.array(values)
    if trend(series).z <= -3.0:
        assert rough_z(series) <= -0.75 * 3.0


def test_trend_golden_values() -> None:
    """Seven values in order: one of 7! orders, twice for both directions."""
    rising = trend(np.arange(7.0))
    assert rising.z == pytest.approx(norm.isf(1 / math.factorial(7)))
    assert (rising.start, rising.end) == (0.0, 6.0)
    assert trend(np.full(20, 0.5)).z == 0.0
    odd = trend(np.array([0.0, 1.0, 2.0, 99.0, 4.0, 5.0, 6.0]))  # one odd step moves neither the line nor the sign
    assert odd.end - odd.start == pytest.approx(6.0)
    assert odd.z > 2.0
