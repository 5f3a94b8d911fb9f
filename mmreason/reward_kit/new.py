"""`mmreason reward new NAME`: a working reward and its test, to be changed into one's own.

What enters: a name and a folder. What leaves: `NAME.py` and `test_NAME.py`. No torch.
"""

from __future__ import annotations

from pathlib import Path

from mmreason.config.schema import RewardConfig
from mmreason.new_plugin import check_new_name, in_a_list, write_new_plugin
from mmreason.reward_kit.spec import REWARDS

_REWARD = '''\
"""Reward `NAME`: how well the words of the answer agree with those of the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmreason.scoring import reward


@reward(range=(0.0, 1.0), source="F1 of words, as in SQuAD (arXiv 1606.05250)")
def NAME(answer: str | None, target: Mapping[str, Any], *, match_case: bool = False) -> float | None:
    """F1 of the words of the answer against those of the right one.

    Formula: with `c` the number of words that both have, P words given and T wanted, the reward is `2 c / (P + T)`; a
    word that is repeated counts each time. Range 0..1.

    Args:
        answer: the answer; `None` (no answer block) is worth 0.
        target: `{"answer": text or number}`.
        match_case: whether `Red` and `red` are different words; set with reward.NAME.match_case=true.

    Returns:
        The reward; `None` if the target has no answer.
    """
    if target.get("answer") is None:
        return None
    given, wanted = (words(text, match_case) for text in (answer or "", str(target["answer"])))
    size = given.total() + wanted.total()
    return 2.0 * (given & wanted).total() / size if size else 1.0


def words(text: str, match_case: bool) -> Counter[str]:
    """The words of a text, counted."""
    return Counter((text if match_case else text.casefold()).split())
'''

_TEST = '''\
"""Tests of the reward `NAME`: values worked out by hand, and everything that `mmreason reward check` tries."""

from __future__ import annotations

from pathlib import Path

import pytest
from NAME import NAME

from mmreason.reward_kit.check import check_reward
from mmreason.scoring import load_reward_files


@pytest.mark.parametrize(
    ("answer", "value"),
    [("red mug", 1.0), ("Red  MUG", 1.0), ("red", 2 / 3), ("red mug or blue plate", 4 / 7), ("", 0.0), (None, 0.0)],
)
def test_values(answer: str | None, value: float) -> None:
    assert NAME(answer, {"answer": "red mug"}) == pytest.approx(value)


def test_case_counts_if_asked_for() -> None:
    assert NAME("Red mug", {"answer": "red mug"}, match_case=True) == pytest.approx(0.5)


def test_it_does_not_apply_to_other_rows() -> None:
    assert NAME("red mug", {"boxes": [[0, 0, 9, 9]]}) is None


def test_it_cannot_be_fooled() -> None:
    load_reward_files([Path(__file__).with_name("NAME.py")])
    assert not check_reward("NAME").failures
'''


def write_new_reward(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a reward file and its test.

    Args:
        name: of the reward, the function and the file.
        folder: made if it does not exist.

    Returns:
        The two files.

    Raises:
        ConfigError: the name cannot be used, or one of the files exists.
    """
    check_new_name(name, REWARDS, RewardConfig.model_fields, "a setting of the section `reward`")
    return write_new_plugin(name, folder, _REWARD, _TEST)


def next_commands(name: str, reward_file: Path, test_file: Path) -> str:
    """What to type next, one command a line."""
    path = reward_file.as_posix()
    listed = in_a_list(path)
    return (
        f"  python -m pytest {test_file.as_posix()}\n"
        f"  mmreason reward check {name} --file {path}\n"
        f"  mmreason train task=scene_qa 'reward.files=[{listed}]' reward.{name}.weight=1\n"
    )
