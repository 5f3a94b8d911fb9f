"""Formulas over groups and batches: golden values of the sources, invariance to order, bounds, attempts to fool them."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mmreason.rewards.group_formulas import (
    ANY_LENGTH,
    EASY,
    HARD,
    MEDIUM,
    AutoThinkBatch,
    LaserTargets,
    autothink,
    autothink_balance,
    autothink_base,
    autothink_length,
    closes_at_once,
    difficulty_of_groups,
    expected_correct,
    kimi_length,
    laser,
    laser_base,
    laser_d,
    laser_de,
    laser_targets,
)
from mmreason.rewards.rating_formulas import (
    calibrate,
    flip_per_question,
    is_stock_text,
    judge_bonus,
    thurstone_fidelity,
)
from mmreason.rewards.tool_formulas import (
    conditional_bonus,
    curiosity,
    gated_format,
    retrieval,
    retrieval_ndcg,
    step_penalty,
)

YES, NO = np.array([True]), np.array([False])


def flags(*values: int) -> NDArray[np.bool_]:
    return np.array(values, dtype=np.bool_)


def counts(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def reals(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


# LASER


def test_laser_golden_values() -> None:
    correct, valid = flags(1, 1, 0, 0, 1), flags(1, 1, 1, 0, 0)
    tokens = counts(4096, 4097, 10, 10, 10)
    np.testing.assert_allclose(laser(correct, valid, tokens), [1.5, 1.0, -0.5, -1.0, -1.0])
    np.testing.assert_allclose(laser(correct, valid, tokens, variant="penalty"), [1.0, 0.5, -0.5, -1.0, -1.0])
    np.testing.assert_allclose(laser(correct, valid, tokens, variant="hybrid"), [1.5, 0.5, -0.5, -1.0, -1.0])
    np.testing.assert_allclose(laser_base(correct, valid), [1.0, 1.0, -0.5, -1.0, -1.0])


@pytest.mark.parametrize(
    ("num_right", "difficulty"), [(6, EASY), (5, MEDIUM), (3, MEDIUM), (2, HARD), (0, HARD), (8, EASY)]
)
def test_difficulty_of_a_group_of_eight(num_right: int, difficulty: int) -> None:
    correct = np.arange(8) < num_right
    assert set(difficulty_of_groups(correct, np.full(8, 7))) == {difficulty}


def test_difficulty_at_exact_thirds() -> None:
    correct = flags(1, 1, 0, 1, 0, 0)
    np.testing.assert_array_equal(difficulty_of_groups(correct, counts(0, 0, 0, 1, 1, 1)), [EASY] * 3 + [MEDIUM] * 3)


def test_laser_d_takes_the_target_of_the_groups_difficulty() -> None:
    targets = LaserTargets(easy=100, medium=200, hard=ANY_LENGTH)
    group = counts(0, 1, 0, 1, 0, 1, 2, 2, 2, 2)
    correct = flags(1, 1, 1, 0, 1, 0, 1, 0, 0, 0)
    tokens = counts(100, 200, 101, 5, 50, 5, 9999, 5, 5, 5)
    values = laser_d(correct, np.ones(10, dtype=np.bool_), tokens, group, targets)
    np.testing.assert_allclose(values, [1.5, 1.5, 1.0, -0.5, 1.5, -0.5, 1.5, -0.5, -0.5, -0.5])
    fixed = laser_d(correct, flags(*[1] * 10), tokens, group, LaserTargets.fixed(100))
    np.testing.assert_allclose(fixed, laser(correct, flags(*[1] * 10), tokens, target_tokens=100))


def test_laser_de_forgives_long_honest_attempts_only() -> None:
    targets = LaserTargets.fixed(4096)
    correct, valid, looping = flags(0, 0, 0, 0, 1), flags(1, 1, 1, 0, 1), flags(0, 1, 0, 0, 0)
    tokens = counts(9000, 9000, 4096, 9000, 9000)
    values = laser_de(correct, valid, tokens, counts(0, 0, 0, 0, 0), looping, targets)
    np.testing.assert_allclose(values, [0.0, -0.5, -0.5, -1.0, 1.0])


def test_expected_correct_golden_values() -> None:
    assert expected_correct(8) == (5, 2, 1)
    assert expected_correct(16) == (10, 5, 1)
    assert expected_correct(8, "ceil") == (6, 3, 1)


def monitor(num_right: int, lengths: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """One prompt of n completions."""
    return (np.arange(len(lengths)) < num_right)[None], np.array([lengths])


def test_laser_targets_need_a_fifth_a_half_and_all_of_eight() -> None:
    lengths = [1000 * rank for rank in range(1, 9)]
    easy = laser_targets(*monitor(8, lengths), lower_tokens=1024)
    assert easy == LaserTargets(2048, ANY_LENGTH, ANY_LENGTH)  # 2 of 8 completions are at least 0.2
    medium = laser_targets(*monitor(4, lengths), lower_tokens=1024)
    assert medium == LaserTargets(ANY_LENGTH, 4096, ANY_LENGTH)
    hard = laser_targets(*monitor(1, lengths), lower_tokens=1024)
    assert hard == LaserTargets(ANY_LENGTH, ANY_LENGTH, 8192)
    longer = laser_targets(*monitor(1, [20_000] * 8), lower_tokens=1024)
    assert longer.hard == ANY_LENGTH


def test_laser_targets_keep_the_last_one_of_an_empty_bin() -> None:
    previous = LaserTargets(1.0, 2.0, 3.0)
    assert laser_targets(*monitor(8, [500] * 8), lower_tokens=1024, previous=previous) == LaserTargets(1024, 2.0, 3.0)


def test_laser_targets_of_a_low_bound_and_of_the_bins_borders() -> None:
    assert laser_targets(*monitor(8, [500] * 8), lower_tokens=512).easy == 512
    assert laser_targets(*monitor(8, [600] * 8), lower_tokens=512).easy == 1024
    assert laser_targets(*monitor(2, [600] * 6), lower_tokens=512).hard == 1024  # 1/3 is still hard here
    assert laser_targets(*monitor(4, [600] * 6), lower_tokens=512).medium == 1024  # and 2/3 still medium
    with pytest.raises(ValueError, match="alike"):
        laser_targets(flags(1, 0)[None], counts(1, 2, 3)[None], lower_tokens=512)


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_a_higher_lower_bound_never_shortens_a_target(seed: int, step: int) -> None:
    source = np.random.default_rng(seed)
    correct, tokens = source.random((20, 8)) < 0.5, source.integers(1, 16_000, (20, 8))
    low = laser_targets(correct, tokens, lower_tokens=1024)
    high = laser_targets(correct, tokens, lower_tokens=1024 * step)
    for first, second in zip((low.easy, low.medium, low.hard), (high.easy, high.medium, high.hard), strict=True):
        assert first <= second


# Kimi


def test_kimi_length_golden_values() -> None:
    correct, group = flags(1, 1, 1, 0, 0, 1, 0), counts(0, 0, 0, 0, 0, 1, 1)
    tokens = counts(100, 200, 300, 100, 300, 50, 50)
    np.testing.assert_allclose(kimi_length(correct, tokens, group), [0.2, 0.0, -0.2, 0.0, -0.2, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(kimi_length(correct, tokens, group, coefficient=1.0)[:3], [0.5, 0.0, -0.5], atol=1e-12)


# AutoThink


def batch_of(correct: list[int], thinks: list[int], **others: list[int]) -> AutoThinkBatch:
    answered = flags(*others.get("answered", [1] * len(correct)))
    return AutoThinkBatch(
        flags(*correct), flags(*thinks), answered, flags(*others.get("degenerate", [0] * len(correct)))
    )


def test_autothink_base_golden_values() -> None:
    batch = batch_of(
        [1, 0, 1, 0, 1, 0, 1, 1],
        [1, 1, 0, 0, 1, 0, 1, 0],
        answered=[1, 1, 1, 1, 0, 0, 1, 1],
        degenerate=[0, 0, 0, 0, 0, 0, 1, 1],
    )
    np.testing.assert_array_equal(autothink_base(batch), [1, 0, 2, -1, 0, 0, -2, -2])
    np.testing.assert_array_equal(autothink(batch, counts(*range(8)), counts(*[0] * 8), stage=2), autothink_base(batch))


def test_autothink_balance_golden_values() -> None:
    mostly_thinking = batch_of([1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 0])
    balanced = autothink_balance(autothink_base(mostly_thinking), mostly_thinking)
    np.testing.assert_allclose(balanced, [0.5, -0.5, 0.5, 0.5, -0.5, 0.5, 2.0, -1.0])
    mostly_not = batch_of([1, 0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1])
    balanced = autothink_balance(autothink_base(mostly_not), mostly_not)
    np.testing.assert_allclose(balanced, [1.5, -1.5, 1.5, 1.5, -1.5, 1.5, 1.0, 0.0])


@pytest.mark.parametrize(("thinks", "values"), [(1, [0.0, -1.0]), (0, [1.0, -2.0])])
def test_autothink_at_full_imbalance_costs_one(thinks: int, values: list[float]) -> None:
    batch = batch_of([1, 0], [thinks] * 2)
    np.testing.assert_allclose(autothink(batch, counts(1, 2), counts(0, 0), stage=1), values)


def test_autothink_balance_never_raises_degenerate_text() -> None:
    batch = batch_of([0, 1, 1], [1, 1, 1], degenerate=[1, 0, 0])
    assert autothink(batch, counts(1, 2, 3), counts(0, 0, 0), stage=1)[0] == -2.0


def test_autothink_length_golden_values() -> None:
    # Three lengths at equal distances stand at -1, 0 and 1.
    tokens, group = counts(100, 200, 300, 100, 200, 300), counts(0, 0, 0, 1, 1, 1)
    right = autothink_length(np.zeros(6), batch_of([1] * 6, [1] * 6), tokens, group)
    np.testing.assert_allclose(right, [0.0513, 0.0, -0.0488] * 2, atol=5e-5)
    wrong = autothink_length(np.zeros(6), batch_of([0] * 6, [1] * 6), tokens, group)
    np.testing.assert_allclose(wrong, [-0.0513, 0.0, 0.0488] * 2, atol=5e-5)


def test_autothink_length_at_two_deviations() -> None:
    # One of nine far off: its standing is 8 / 3; scaled rates put it at the source's y of 2 and -2.
    tokens, group = counts(*[100] * 8, 900), counts(*[0] * 9)
    rate = 0.05 * 2 / (8 / 3)
    batch = batch_of([1] * 9, [1] * 9)
    assert autothink_length(np.zeros(9), batch, tokens, group, right_rate=rate)[8] == pytest.approx(-0.0952, abs=5e-5)
    short = autothink_length(np.zeros(9), batch, 1000 - tokens, group, right_rate=rate)[8]
    assert short == pytest.approx(0.1052, abs=5e-5)


def test_autothink_length_leaves_single_and_degenerate_ones_alone() -> None:
    batch = batch_of([1, 0, 0, 0], [1] * 4, degenerate=[0, 0, 0, 1])
    values = autothink(batch, counts(10, 20, 30, 10_000), counts(0, 0, 0, 0), stage=3)
    assert values[0] == 1.0
    assert values[3] == -2.0
    assert values[1] < 0.0 < values[2]


def test_autothink_mode_is_read_from_the_start() -> None:
    assert closes_at_once("</think>\n\nred")
    assert closes_at_once("<think>\n...\n</think>red")
    assert not closes_at_once("Let me look.</think>\n\nred")
    assert not closes_at_once("red")
    assert not closes_at_once("")


# Thurstone


def rated(*ratings: list[float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores = np.array([rating for image in ratings for rating in image])
    return scores, np.repeat(np.arange(len(ratings)), [len(image) for image in ratings])


def test_thurstone_fidelity_golden_values() -> None:
    scores, image = rated([4, 3.5, 4.5], [2, 3, 2.5])
    values = thurstone_fidelity(scores, image, np.repeat([4.2, 2.1], 3), ["a"] * 6)
    np.testing.assert_allclose(values, [0.99249, 0.96087, 0.99983, 0.99983, 0.96087, 0.99249], atol=5e-6)
    scores, image = rated([4, 3.5, 4.5], [2, 3, 2.5], [3, 3, 3])
    values = thurstone_fidelity(scores, image, np.repeat([4.2, 2.1, 2.1], 3), ["a"] * 9)
    wanted = [0.99103, 0.93956, 1.00008, 0.90275, 0.98044, 0.96137, 0.9599, 0.9599, 0.9599]
    np.testing.assert_allclose(values, wanted, atol=5e-6)


def test_thurstone_fidelity_compares_within_a_data_set_only() -> None:
    scores, image = rated([4, 3.5, 4.5], [2, 3, 2.5], [1, 1, 1])
    opinion, dataset = np.repeat([4.2, 2.1, 90.0], 3), ["a"] * 6 + ["b"] * 3
    values = thurstone_fidelity(scores, image, opinion, dataset)
    np.testing.assert_allclose(values[:6], thurstone_fidelity(scores[:6], image[:6], opinion[:6], dataset[:6]))
    assert np.isnan(values[6:]).all()


def test_thurstone_fidelity_gives_unreadable_and_impossible_ratings_nothing() -> None:
    scores, image = rated([4, 3.5, 4.5], [2, 3, 2.5])
    clean = thurstone_fidelity(scores, image, np.repeat([4.2, 2.1], 3), ["a"] * 6)
    more, image = rated([4, 3.5, 4.5, math.nan, 100, -3], [2, 3, 2.5])
    values = thurstone_fidelity(more, image, np.repeat([4.2, 2.1], [6, 3]), ["a"] * 9)
    np.testing.assert_allclose(values[[0, 1, 2, 6, 7, 8]], clean)
    np.testing.assert_array_equal(values[3:6], 0.0)
    silent, image = rated([math.nan] * 2, [2, 3])
    values = thurstone_fidelity(silent, image, np.repeat([1.0, 2.0], 2), ["a"] * 4)
    np.testing.assert_array_equal(values, [0.0, 0.0, math.nan, math.nan])


def test_thurstone_fidelity_of_one_constant_score_for_all_is_flat() -> None:
    scores, image = rated([3, 3], [3, 3], [3, 3])
    values = thurstone_fidelity(scores, image, np.repeat([1.0, 2.0, 3.0], 2), ["a"] * 6)
    np.testing.assert_allclose(values, 0.708, atol=1e-3)


def test_thurstone_fidelity_refuses_images_with_two_opinions() -> None:
    with pytest.raises(ValueError, match="one opinion"):
        thurstone_fidelity(reals(1, 2), counts(0, 0), reals(1, 2), ["a", "a"])


@settings(max_examples=50)
@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(0.5, 5.5)), st.permutations([1.0, 2.0, 3.0, 3.0]), st.randoms()
)
def test_thurstone_fidelity_is_bounded_and_free_of_order(
    ratings: NDArray[np.float64], opinions: list[float], source: Any
) -> None:
    scores, image = ratings.ravel(), np.repeat(np.arange(4), 3)
    opinion, dataset = np.repeat(opinions, 3), np.array(["a"] * 12)
    values = thurstone_fidelity(scores, image, opinion, dataset)
    comparable = values[~np.isnan(values)]
    assert ((comparable >= 0.0) & (comparable <= 1.0011)).all()
    order = list(range(12))
    source.shuffle(order)
    shuffled = thurstone_fidelity(scores[order], image[order], opinion[order], dataset[order])
    np.testing.assert_allclose(shuffled, values[order])
    # Only the order of opinions counts, not their scale.
    np.testing.assert_allclose(thurstone_fidelity(scores, image, opinion**3, dataset), values)


# Judge


def test_judge_bonus_is_open_to_right_and_well_formed_answers_only() -> None:
    correct, well_formed = flags(1, 1, 1, 0, 1, 0), flags(1, 1, 1, 1, 0, 1)
    judged, stock = reals(1.0, 0.8, 0.2, 1.0, 1.0, math.nan), flags(0, 1, 1, 0, 0, 0)
    np.testing.assert_allclose(judge_bonus(correct, well_formed, judged, stock), [0.5, 0.2, 0.1, 0.0, 0.0, 0.0])
    assert math.isnan(judge_bonus(YES, YES, reals(math.nan), NO)[0])
    total = 0.9 + 0.1 + judge_bonus(YES, YES, reals(1.0), NO)[0]
    assert total == pytest.approx(1.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge_bonus(YES, YES, reals(7.0), NO)


def test_stock_text() -> None:
    assert is_stock_text("We should run Further\n tests.")
    assert is_stock_text("Refer to specialist")
    assert not is_stock_text("Take a second lead from the left arm.")


# Noise


def test_calibrate_golden_values() -> None:
    values = calibrate(reals(0.3, 0.6, 0.49, 0.5, math.nan), reals(0.5, 1.0, 1.0, 1.0, 1.0))
    np.testing.assert_allclose(values, [0.35, 0.6, 0.59, 0.5, math.nan])


def test_flips_are_per_question_and_always_the_same() -> None:
    questions = [f"row {index // 4}" for index in range(400)]
    rewards = np.tile(reals(1, 0, 1, 0), 100)
    readable = np.tile(flags(1, 1, 1, 0), 100)
    flipped = flip_per_question(rewards, questions, readable, share=0.4)
    np.testing.assert_array_equal(flipped, flip_per_question(rewards, questions, readable, share=0.4))
    changed = (flipped != rewards).reshape(100, 4)
    assert (changed[:, 0] == changed[:, 1]).all()
    assert (changed[:, 0] == changed[:, 2]).all()
    assert not changed[:, 3].any()
    assert 25 <= changed[:, 0].sum() <= 55  # 3 deviations about 40 of 100
    order = np.random.default_rng(0).permutation(400)
    shuffled = flip_per_question(rewards[order], [questions[index] for index in order], readable[order], share=0.4)
    np.testing.assert_array_equal(shuffled, flipped[order])
    other = flip_per_question(rewards, questions, readable, share=0.4, seed=1)
    assert (other != flipped).any()


def test_flips_at_the_ends() -> None:
    rewards, questions = reals(1, 0, 0.25, math.nan), ["a", "b", "c", "\ud800"]
    np.testing.assert_array_equal(flip_per_question(rewards, questions, flags(1, 1, 1, 1), share=0.0), rewards)
    flipped = flip_per_question(rewards, questions, flags(1, 1, 1, 1), share=1.0)
    np.testing.assert_array_equal(flipped, [0.0, 1.0, 0.75, math.nan])


# Tools


def test_gated_format_golden_values() -> None:
    np.testing.assert_allclose(gated_format(reals(0, 0.1, 1, 1), flags(1, 1, 0, 1)), [0.0, 0.55, 0.5, 1.0])


def test_conditional_bonus_golden_values() -> None:
    values = conditional_bonus(reals(1, 1, 0, 0, 0.5), flags(1, 1, 1, 0, 1), counts(2, 0, 3, 0, 1))
    np.testing.assert_allclose(values, [2.0, 0.8, 0.0, -0.2, 0.4])


def test_curiosity_golden_values() -> None:
    calls, group = counts(1, *[0] * 7), counts(*[0] * 8)
    np.testing.assert_allclose(curiosity(np.ones(8), calls, group), [1.175] + [1.0] * 7)
    np.testing.assert_allclose(curiosity(np.zeros(8), calls, group), np.zeros(8))
    np.testing.assert_allclose(curiosity(np.zeros(8), calls, group, gate=False)[0], 0.175)
    # Where half of the group calls there is no gain, and further calls cost.
    np.testing.assert_allclose(
        curiosity(reals(1, 1, 0, 0), counts(1, 3, 0, 0), counts(5, 5, 5, 5)), [1.0, 0.9, 0.0, 0.0]
    )
    np.testing.assert_allclose(curiosity(reals(0, 0), counts(3, 0), counts(0, 0)), [-0.1, 0.0])


def test_step_penalty_and_retrieval_golden_values() -> None:
    np.testing.assert_allclose(step_penalty(counts(0, 1, 3)), [0.0, -0.05, -0.15])
    values = retrieval(reals(1, 1, 0, 1), flags(1, 0, 1, 1), reals(1, 1, 1, math.nan))
    np.testing.assert_allclose(values, [1.0, 0.0, 0.3, math.nan])


@pytest.mark.parametrize(
    ("shown", "gold", "value"),
    [
        (["a"], ["a"], 1.0),
        (["b", "a"], ["a"], 1 / math.log2(3)),
        (["a", "b", "c"], ["a", "c"], 1.5 / (1 + 1 / math.log2(3))),
        (["a", "a", "a"], ["a", "c"], 1 / (1 + 1 / math.log2(3))),
        (["a"], ["a", "a"], 1.0),
        (["b"], ["a"], 0.0),
        ([], ["a"], 0.0),
        (["a"], [], None),
    ],
)
def test_retrieval_ndcg(shown: list[str], gold: list[str], value: float | None) -> None:
    assert retrieval_ndcg(shown, gold) == (None if value is None else pytest.approx(value))


@given(st.lists(st.sampled_from("abcdef"), max_size=8), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_retrieval_ndcg_is_bounded_and_repeating_pages_changes_nothing(shown: list[str], gold: set[str]) -> None:
    value = retrieval_ndcg(shown, gold)
    assert value is not None
    assert 0.0 <= value <= 1.0 + 1e-12
    assert retrieval_ndcg(shown + shown, gold) == value
    assert (value > 1.0 - 1e-12) == (set(list(dict.fromkeys(shown))[: len(gold)]) == gold)


# All that look at groups


def shuffled_agrees(values: NDArray[np.float64], order: NDArray[np.int64], again: NDArray[np.float64]) -> bool:
    return np.allclose(values[order], again, equal_nan=True)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 24), st.sampled_from([1, 2, 3]))
def test_order_and_numbers_of_groups_do_not_matter_and_nothing_is_changed(
    seed: int, size: int, stage: Literal[1, 2, 3]
) -> None:
    source = np.random.default_rng(seed)
    correct, valid, looping, thinks = (source.random(size) < 0.5 for _ in range(4))
    tokens, group = source.integers(1, 5000, size), source.integers(0, 4, size)
    calls, accuracy = source.integers(0, 3, size), source.random(size)
    targets = LaserTargets(1000, 2000, 3000)

    def all_of(at: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        batch = AutoThinkBatch(correct[at], thinks[at], valid[at], looping[at])
        return [
            laser(correct[at], valid[at], tokens[at]),
            laser_d(correct[at], valid[at], tokens[at], numbers, targets),
            laser_de(correct[at], valid[at], tokens[at], numbers, looping[at], targets),
            kimi_length(correct[at], tokens[at], numbers),
            autothink(batch, tokens[at], numbers, stage=stage),
            curiosity(accuracy[at], calls[at], numbers),
        ]

    before = (correct.copy(), tokens.copy(), group.copy())
    plain, order = np.arange(size), source.permutation(size)
    values, again = all_of(plain, group), all_of(order, 100 - 7 * group[order])
    for first, second in zip(values, again, strict=True):
        assert first.shape == (size,)
        assert np.isfinite(first).all()
        assert shuffled_agrees(first, order, second)
    for low, high, column in [(-1, 1.5, 0), (-1, 1.5, 1), (-1, 1.5, 2), (-0.2, 0.2, 3)]:
        assert ((values[column] >= low - 1e-12) & (values[column] <= high + 1e-12)).all()
    span = 2.0 + (math.exp(0.05 * size) - 1.0 if stage == 3 else 0.0)
    assert (np.abs(values[4]) <= span).all()
    for array, copy in zip((correct, tokens, group), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_of_different_length_are_refused() -> None:
    two, three = flags(1, 0), counts(1, 2, 3)
    for call in (
        lambda: laser(two, two, three),
        lambda: laser_d(two, two, counts(1, 2), three, LaserTargets.fixed(1)),
        lambda: kimi_length(two, three, three),
        lambda: AutoThinkBatch(two, two, two, flags(1)),
        lambda: curiosity(reals(1), three, three),
        lambda: flip_per_question(reals(1, 1), ["a"], two, share=0.5),
    ):
        with pytest.raises(ValueError, match="lengths"):
            call()


def test_no_length_term_lifts_a_wrong_answer_over_a_right_one() -> None:
    """Hacking by length: in every family the worst right completion beats the best wrong one, loops included."""
    source = np.random.default_rng(0)
    correct, tokens = source.random(64) < 0.5, source.integers(1, 16_000, 64)
    valid, group, honest = np.ones(64, dtype=np.bool_), np.repeat(np.arange(8), 8), np.zeros(64, dtype=np.bool_)
    everywhere = AutoThinkBatch(correct, valid, valid, honest)
    for values in (
        laser(correct, valid, tokens),
        laser_d(correct, valid, tokens, group, LaserTargets.fixed(4096)),
        laser_de(correct, valid, tokens, group, honest, LaserTargets.fixed(4096)),
        correct + kimi_length(correct, tokens, group),
        autothink(everywhere, tokens, group, stage=2),
        autothink(everywhere, tokens, group, stage=3),
    ):
        assert values[correct].min() > values[~correct].max()
