"""The exchange between training processes that rewards use: groups and batches become whole through it.

What enters: any object that pickles, on every process. What leaves: what all of them said, by rank. accelerate carries
it; with a single process nothing travels.
"""

from __future__ import annotations

from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


class AllProcesses:
    """The processes that train together (`mmreason.reward_kit.groups.Exchange`).

    Attributes:
        rank: number of this process, from 0.
    """

    def __init__(self) -> None:
        self.rank: int = PartialState().process_index

    def gather(self, mine: T) -> list[T]:
        """What every process has to say, by rank; all of them must call it."""
        said: list[T] = gather_object([mine])
        return said
