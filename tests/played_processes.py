"""Processes of a training, played by threads: the scores of a batch that is spread over several of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from mmreason.config.schema import RewardConfig
from mmreason.errors import RewardFailure
from mmreason.records import Rollout
from mmreason.scoring import RewardRunner, ScoreTable

T = TypeVar("T")


class Together:
    """An exchange between threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: dict[int, Any]) -> None:
        self.rank, self.barrier, self.board = rank, barrier, board

    def gather(self, mine: T) -> list[T]:
        self.board[self.rank] = mine
        self.barrier.wait()
        said = [self.board[rank] for rank in sorted(self.board)]
        self.barrier.wait()
        return said


def score_split(section: RewardConfig, parts: Sequence[Sequence[Rollout]]) -> list[ScoreTable | Exception]:
    """Score a batch that is spread over as many processes as there are parts."""
    barrier, board = threading.Barrier(len(parts), timeout=30), {}
    found: dict[int, ScoreTable | Exception] = {}

    def process(rank: int) -> None:
        try:
            found[rank] = RewardRunner(section).score(parts[rank], 0.5, Together(rank, barrier, board))
        except RewardFailure as error:
            found[rank] = error

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(len(parts))]
