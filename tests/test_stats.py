"""Bootstrap intervals: golden values, coverage, and properties over random scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmreason.stats import Interval, mean_interval, paired_difference

scores = hnp.arrays(np.float64, st.integers(2, 25), elements=st.floats(-100, 100, width=32))


def test_binary_scores_match_the_textbook_interval() -> None:
    interval = mean_interval([1.0] * 60 + [0.0] * 140)
    normal = 1.96 * math.sqrt(0.3 * 0.7 / 200)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - normal, abs=0.006)
    assert interval.high == pytest.approx(0.3 + normal, abs=0.006)
    assert interval.n == 200


def test_wider_confidence_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_coverage_is_close_to_the_promise() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        interval = mean_interval(rng.uniform(size=40))
        inside += interval.low <= 0.5 <= interval.high
    assert inside >= 51  # 57 expected of 60; 50 or fewer has a chance below 0.5 %


def test_same_seed_same_bounds_and_another_seed_differs() -> None:
    values = np.random.default_rng(1).uniform(size=30)
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_constant_scores_have_zero_width() -> None:
    assert mean_interval([0.1] * 12) == Interval(0.1, 0.1, 0.1, 12)


def test_no_score_and_one_score() -> None:
    empty, one = mean_interval([]), mean_interval([0.25])
    assert empty.as_dict() == {"mean": None, "low": None, "high": None, "n": 0}
    assert one.as_dict() == {"mean": 0.25, "low": None, "high": None, "n": 1}
    assert (str(empty), str(one)) == ("no scores", "0.250 [one score]")


def test_text_form() -> None:
    assert str(Interval(0.4123, 0.3531, 0.4699, 256)) == "0.412 [0.353, 0.470]"


def test_nan_scores_are_left_out() -> None:
    assert mean_interval([1.0, math.nan, 0.0, 1.0]) == mean_interval([1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([1.0, math.inf], 0.95, "infinite"),
        (np.zeros((2, 2)), 0.95, "shape"),
        ([1.0, 2.0], 1.0, "confidence"),
        ([1.0, 2.0], 0.0, "confidence"),
    ],
)
def test_impossible_input_is_refused(values: list[float], confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, confidence)


def test_paired_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="before has 2, after has 3"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0])


def test_pairing_removes_the_spread_between_questions() -> None:
    rng = np.random.default_rng(5)
    before = rng.uniform(size=200)
    after = before + 0.02 + rng.normal(scale=0.01, size=200)
    paired = paired_difference(before, after)
    assert paired.low > 0.015
    assert mean_interval(after).low < mean_interval(before).high  # unpaired, the change is lost


def test_pairs_with_a_missing_side_are_left_out() -> None:
    result = paired_difference([0.0, math.nan, 0.0, 0.5], [1.0, 1.0, math.nan, 0.5])
    assert (result.mean, result.n) == (0.5, 2)


@settings(max_examples=25, deadline=None)
@given(scores)
def test_bounds_hold_the_mean_and_stay_within_the_scores(values: np.ndarray) -> None:
    interval = mean_interval(values)
    span = max(1.0, float(np.ptp(values)))
    assert interval.low <= interval.mean <= interval.high
    assert interval.low >= values.min() - 1e-9 * span
    assert interval.high <= values.max() + 1e-9 * span
    assert interval.n == values.size
    json.dumps(interval.as_dict(), allow_nan=False)


@settings(max_examples=15, deadline=None)
@given(scores, st.floats(-10, 10))
def test_a_shift_of_every_score_is_the_paired_difference(values: np.ndarray, shift: float) -> None:
    result = paired_difference(values, values + shift)
    assert result.mean == pytest.approx(shift, abs=1e-9)
    assert result.high - result.low <= 1e-9
