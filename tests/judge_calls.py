"""Rewards that ask a judge, called through `RewardRunner` as in training, for the tests of judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from mmreason.config.schema import RewardConfig
from mmreason.judge.questions import Question
from mmreason.judge.service import JudgeService
from mmreason.records import Rollout, Row
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.text import extract_answer

QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many plates?"}]}


def made_rollout(
    text: str, target: Mapping[str, Any] | None = None, *, images: tuple[Image.Image, ...] = (), num_tokens: int = 5
) -> Rollout:
    row = Row("row", (QUESTION,), images, target or {})
    return Rollout(row, 0, (), text, extract_answer(text), num_tokens, "stop", (), "relative_1000")


def table_of(
    name: str, rollouts: list[Rollout], judge: JudgeService, settings: Mapping[str, Any] | None = None, **options: Any
) -> ScoreTable:
    """The scores of one reward; failures are kept."""
    section = {name: options, "max_failure_share": 1.0, **(settings or {})}
    return RewardRunner(RewardConfig.model_validate(section), judge).score(rollouts)


class Script:
    """A judge that replies with what it is given, and remembers what it was asked.

    Args:
        replies: a text, a function of the question, or an exception to raise.
    """

    def __init__(self, replies: str | Callable[[Question], str] | Exception) -> None:
        self.replies = replies
        self.asked: list[Question] = []
        self.judge = JudgeService.scripted(self._reply)

    def _reply(self, question: Question) -> str:
        self.asked.append(question)
        if isinstance(self.replies, Exception):
            raise self.replies
        return self.replies if isinstance(self.replies, str) else self.replies(question)

    def score(
        self, name: str, text: str, target: Mapping[str, Any], *, images: tuple[Image.Image, ...] = (), **options: Any
    ) -> float | None:
        """The value of one completion; no call may fail."""
        table = table_of(name, [made_rollout(text, target, images=images)], self.judge, **options)
        assert not table.failures, table.first_traceback
        return None if math.isnan(table.total[0]) else float(table.total[0])
