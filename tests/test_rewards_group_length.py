"""The length rewards of whole groups, called through `RewardRunner` as in training: golden values and order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.config.schema import RewardConfig
from mmreason.records import Rollout, Row
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer

ROW = Row("row", (), (), {"answer": "red"})
RIGHT, WRONG, NONE = "<answer>red</answer>", "<answer>blue</answer>", "no answer"


def scored(name: str, made: list[tuple[str, int]], **options: object) -> list[float | None]:
    """Rewards of one group of `(completion, tokens)`."""
    config = RewardConfig.model_validate({"exact": {"weight": 0.0}, name: options, "correct": "exact > 0.5"})
    group = [
        Rollout(ROW, 0, (), text, extract_answer(text), tokens, "stop", (), "relative_1000") for text, tokens in made
    ]
    table = RewardRunner(config).score(group)
    assert not table.failures
    return table.as_lists()[name]


def test_laser_pays_right_completions_up_to_its_length() -> None:
    group = [(RIGHT, 100), (RIGHT, 101), (WRONG, 10), (NONE, 10)]
    assert scored("laser", group, target_tokens=100) == pytest.approx([1.5, 1.0, -0.5, -1.0])
    assert scored("laser", group, target_tokens=100, variant="penalty") == pytest.approx([1.0, 0.5, -0.5, -1.0])
    assert scored("laser", group, target_tokens=100, variant="hybrid") == pytest.approx([1.5, 0.5, -0.5, -1.0])


def test_laser_d_allows_more_where_the_group_mostly_fails() -> None:
    lengths = {"easy_tokens": 10, "medium_tokens": 20, "hard_tokens": 30}
    easy = [(RIGHT, 25), (RIGHT, 10), (WRONG, 5)]
    hard = [(RIGHT, 25), (WRONG, 5), (WRONG, 5), (WRONG, 5)]
    assert scored("laser_d", easy, **lengths) == pytest.approx([1.0, 1.5, -0.5])
    assert scored("laser_d", hard, **lengths) == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_laser_de_forgives_long_attempts_but_not_circles() -> None:
    lengths = {"easy_tokens": 10, "medium_tokens": 20, "hard_tokens": 30}
    circles = "so it is red and so " * 200 + WRONG
    group = [(WRONG, 31), (WRONG, 30), (circles, 31), (NONE, 31)]
    assert scored("laser_de", group, **lengths) == pytest.approx([0.0, -0.5, -0.5, -1.0])


def test_kimi_length_golden_values() -> None:
    assert scored("kimi_length", [(RIGHT, 10), (RIGHT, 20), (WRONG, 10), (WRONG, 30)]) == pytest.approx(
        [0.2, 0.0, 0.0, -0.2]
    )
    assert scored("kimi_length", [(RIGHT, 10), (WRONG, 10)]) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("name", ["laser", "laser_d", "laser_de", "kimi_length"])
@given(st.lists(st.tuples(st.sampled_from([RIGHT, WRONG, NONE]), st.integers(0, 5000)), min_size=1, max_size=8))
def test_a_value_does_not_depend_on_the_order_of_the_group(name: str, group: list[tuple[str, int]]) -> None:
    assert scored(name, group) == pytest.approx(scored(name, group[::-1])[::-1])
