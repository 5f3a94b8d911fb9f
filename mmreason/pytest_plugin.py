"""`pytest --mmreason-plugin NAME`: what `mmreason reward check` tries, as tests of a plug-in package's rewards.

What enters: the name of an installed package, of a reward, or a reward file; the option may be given more than once. What
leaves: one test for each reward and check. Nothing of mmreason is imported unless the option is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mmreason.reward_kit.check import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("mmreason").addoption(
        "--mmreason-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="check the rewards of a plug-in package, a reward, or a reward FILE.py, as `mmreason reward check` does",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for every check of every reward that is named."""
    asked: list[str] = config.getoption("--mmreason-plugin")
    for name in asked:
        items.extend(_tests(session, name))


def _tests(session: pytest.Session, asked: str) -> Iterator[pytest.Item]:
    from mmreason.errors import MMReasonError
    from mmreason.reward_kit.check_texts import CHECKS

    try:
        rewards = _rewards(asked)
    except MMReasonError as error:
        raise pytest.UsageError(f"--mmreason-plugin {asked}: {error}") from None
    for reward in rewards:
        for check in CHECKS:
            yield RewardCheckItem.from_parent(session, name=f"{reward}::{check}", reward=reward, check=check)


def _rewards(asked: str) -> list[str]:
    """The rewards that are meant."""
    from mmreason.errors import PluginError
    from mmreason.scoring import REWARDS, load_reward_files

    if asked.endswith(".py"):
        load_reward_files([asked])
        path = Path(asked).resolve()
        return [name for name, spec in REWARDS if Path(spec.function.__code__.co_filename) == path]
    found = [name for name in REWARDS.names() if name == asked or name.startswith(f"{asked}/")]
    if not found:
        REWARDS.get(asked)  # says why there is none, and what there is
        raise PluginError("no rewards")
    return found


@cache
def _report(reward: str) -> Report:
    from mmreason.reward_kit.check import check_reward

    return check_reward(reward)


class CheckFailed(Exception):
    """A check failed; the message is for the author of the reward."""


class RewardCheckItem(pytest.Item):
    """One check of one reward."""

    def __init__(self, *, reward: str, check: str, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.reward = reward
        self.check = check

    def runtest(self) -> None:
        """Look the finding up; the reward is examined once, by the first of its tests."""
        finding = next(finding for finding in _report(self.reward).findings if finding.check == self.check)
        if finding.verdict == "not applicable":
            pytest.skip(finding.seen)
        if finding.verdict == "FAIL":
            raise CheckFailed(
                f"{self.reward}: {finding.title}: {finding.seen}\n  {finding.problem}\n  {finding.meaning}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """The message alone: a traceback would only show this file."""
        if isinstance(excinfo.value, CheckFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test stands, for reports."""
        return self.path, None, f"mmreason-plugin::{self.name}"
