"""The shapers `flip` and `calibrate`: golden values through `RewardRunner`, and what they refuse before a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_processes import score_split

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError
from mmreason.records import Rollout, Row
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.text import extract_answer

RIGHT, WRONG, NONE = "<answer>red</answer>", "<answer>blue</answer>", "no answer"


def rollout(text: str, question: int = 0, target: dict[str, Any] | None = None, step: int = 0) -> Rollout:
    row = Row(f"scene_qa/{question}", (), (), {"answer": "red"} if target is None else target)
    group = 1000 * step + question
    return Rollout(row, group, (), text, extract_answer(text), 1, "stop", (), "relative_1000", step)


def flipped(rollouts: list[Rollout], **options: Any) -> ScoreTable:
    return RewardRunner(RewardConfig.model_validate({"exact": {}, "shapers": {"flip": options}})).score(rollouts)


def test_flips_are_the_same_for_a_question_whatever_else_is_in_the_batch() -> None:
    batch = [rollout(text, question) for question in range(400) for text in (RIGHT, WRONG, NONE)]
    table = flipped(batch, share=0.25)
    total = table.total.reshape(400, 3)
    turned = total[:, 0] == 0.0
    np.testing.assert_array_equal(total[turned], [[0.0, 1.0, 0.0]] * turned.sum())
    np.testing.assert_array_equal(total[~turned], [[1.0, 0.0, 0.0]] * (~turned).sum())
    assert 70 <= turned.sum() <= 130
    # What is saved is the true verdict.
    np.testing.assert_array_equal(table.column("exact").reshape(400, 3), [[1.0, 0.0, 0.0]] * 400)
    # Another step, other neighbours: the same questions. Another seed: others.
    later = [rollout(RIGHT, question, step=7) for question in reversed(range(100))]
    np.testing.assert_array_equal(flipped(later, share=0.25).total == 0.0, turned[99::-1])
    other = flipped(batch, share=0.25, seed=1).total.reshape(400, 3)[:, 0] == 0.0
    assert (other != turned).any()


def test_flips_at_the_ends() -> None:
    batch = [rollout(RIGHT), rollout(WRONG, 1), rollout(NONE, 2), rollout(RIGHT, 3, target={})]
    np.testing.assert_array_equal(flipped(batch, share=0.0).total, [1.0, 0.0, 0.0, math.nan])
    np.testing.assert_array_equal(flipped(batch, share=1.0).total, [0.0, 1.0, 0.0, math.nan])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([RIGHT, WRONG, NONE]), st.integers(0, 9)), min_size=2, max_size=12),
    st.floats(0, 1),
    st.integers(0, 2**40),
    st.data(),
)
def test_flips_do_not_depend_on_order_or_processes(
    made: list[tuple[str, int]], share: float, seed: int, data: st.DataObject
) -> None:
    batch = [rollout(text, question) for text, question in made]
    options = {"share": share, "seed": seed}
    total = flipped(batch, **options).total
    assert set(total.tolist()) <= {0.0, 1.0}
    assert all(total[place] == 0.0 for place, (text, _) in enumerate(made) if text == NONE)
    order = data.draw(st.permutations(range(len(batch))))
    np.testing.assert_array_equal(flipped([batch[place] for place in order], **options).total, total[list(order)])


def test_flips_reach_all_processes() -> None:
    section = RewardConfig.model_validate({"exact": {}, "shapers": {"flip": {"share": 0.5}}})
    batch = [rollout(RIGHT, question) for question in range(20)]
    alone = RewardRunner(section).score(batch).total
    split = [table for table in score_split(section, [batch[:7], batch[7:]]) if isinstance(table, ScoreTable)]
    np.testing.assert_array_equal(np.concatenate([table.total for table in split]), alone)
    assert set(alone.tolist()) == {0.0, 1.0}


def calibrated(numbers: list[str], thinking: str, **options: Any) -> list[float]:
    """Totals where `numeric`, by closeness to 1, plays the reward model, and the thinking holds these phrases."""
    texts = [f"<think>{thinking}</think><answer>{number}</answer>" for number in numbers]
    section = {
        "numeric": {"measure": "closeness"},
        "reasoning_pattern": {"weight": 0.0, "value_per_phrase": 0.5},
        "shapers": {"calibrate": {"reward": "numeric", **options}},
    }
    table = RewardRunner(RewardConfig.model_validate(section)).score(
        [rollout(text, target={"answer": 1}) for text in texts]
    )
    assert not table.failures
    return table.total.tolist()


def test_calibrate_golden_values() -> None:
    # Closeness to 1 is 1 - d; s = 0.3 and 0.6 with RPR 0.5, and s = 0.49 with RPR 1.
    assert calibrated(["1.7", "1.4"], "wait") == pytest.approx([0.35, 0.6], abs=1e-6)
    assert calibrated(["1.51", "1.5"], "wait, therefore") == pytest.approx([0.59, 0.5], abs=1e-4)
    assert calibrated(["1.3"], "wait, therefore", threshold=0.8, coefficient=1.0) == pytest.approx([1.0])
    assert calibrated(["1.7"], "nothing of the kind") == pytest.approx([0.3], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 3))
def test_calibration_only_raises_and_only_below_the_threshold(
    threshold: float, coefficient: float, number: float
) -> None:
    (plain,) = calibrated([f"{number:.6f}"], "wait", coefficient=0.0)
    (value,) = calibrated([f"{number:.6f}"], "wait", threshold=threshold, coefficient=coefficient)
    assert plain <= value <= 1.0
    if plain >= threshold:
        assert value == plain


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"iou": {}, "shapers": {"flip": {}}},
            r"reward\.shapers\.flip\.reward: 'exact' is no reward in this run.*In the run: iou",
        ),
        ({"exact": {}, "shapers": {"flip": {"reward": "exakt"}}}, "Did you mean 'exact'"),
        ({"giou": {}, "shapers": {"flip": {"reward": "giou"}}}, r"'giou' lies in -1\.\.1; a reward within 0\.\.1"),
        ({"exact": {}, "shapers": {"flip": {"share": 1.5}}}, r"reward\.shapers\.flip\.share"),
        ({"exact": {}, "shapers": {"calibrate": {}}}, r"reward\.shapers\.calibrate\.reward: name a reward of this run"),
        (
            {"numeric": {}, "shapers": {"calibrate": {"reward": "numeric"}}},
            r"calibrate\.patterns: 'reasoning_pattern' is no reward.*reward\.reasoning_pattern\.weight=0",
        ),
    ],
)
def test_options_are_held_against_the_rewards_of_the_run(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RewardRunner(RewardConfig.model_validate(section))
