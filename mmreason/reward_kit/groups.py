"""What rewards may ask about, and how groups and batches become whole across processes.

What enters: rollouts of this process, and an `Exchange` with the other processes. What leaves: what a reward names
(`mmreason.reward_kit.needs`), and complete groups and batches with the completions that other processes sampled. No torch:
the trainer brings the exchange.

Shapes: n rollouts of this process, N of all processes, G of a group, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmreason.boxes import Boxes, Frame, parse_boxes
from mmreason.records import Rollout, Turn
from mmreason.reward_kit.outcome import Outcome
from mmreason.reward_kit.spec import Per

if TYPE_CHECKING:
    from mmreason.judge.service import JudgeService

T = TypeVar("T")
#: A group: its number and the id of its row, so that batches that count groups anew are not mixed up.
GroupKey = tuple[int, str]


class Exchange(Protocol):
    """How the processes of a run tell each other things; all of them must call it in the same order.

    Attributes:
        rank: number of this process, from 0.
    """

    rank: int

    def gather(self, mine: T) -> list[T]:
        """What every process has to say, by rank."""
        ...


class Alone:
    """The exchange of a single process."""

    rank = 0

    def gather(self, mine: T) -> list[T]:
        return [mine]


class RolloutFacts:
    """What rewards may ask about one rollout; each thing is worked out once and shared by all rewards."""

    def __init__(self, rollout: Rollout, progress: float) -> None:
        self.rollout = rollout
        self.progress = progress

    @property
    def completion(self) -> str:
        return self.rollout.text

    @property
    def answer(self) -> str | None:
        return self.rollout.answer

    @property
    def target(self) -> Mapping[str, Any]:
        return self.rollout.row.target

    @property
    def columns(self) -> Mapping[str, Any]:
        return self.rollout.row.columns

    @property
    def geometry(self) -> tuple[Any, ...]:
        return self.rollout.geometry

    @property
    def num_tokens(self) -> int:
        return self.rollout.num_tokens

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.rollout.turns

    @property
    def row_id(self) -> str:
        return self.rollout.row.id

    @property
    def dataset(self) -> str:
        return self.rollout.row.dataset

    @cached_property
    def box_frame(self) -> Frame:
        return Frame(self.rollout.box_frame)

    @cached_property
    def boxes(self) -> Boxes:
        return parse_boxes(self.rollout.answer or "", self.box_frame)

    def ask(self, need: str) -> Any:
        """What a reward that names `need` receives."""
        return getattr(self, need)

    def judged_by(self, judge: JudgeService) -> Any:
        """What a reward that names `judge` receives."""
        return judge.of(self.rollout)


@dataclass(frozen=True)
class Member:
    """One rollout of a group, sampled here or by another process.

    Attributes:
        rank: process that sampled it.
        row: its place among that process's rollouts.
        facts: what rewards may ask about it.
        values: value of each reward of single rollouts, by name; NaN = does not apply.
        correct: 1, 0, or NaN where it cannot be told.
    """

    rank: int
    row: int
    facts: RolloutFacts
    values: Mapping[str, float]
    correct: float

    @property
    def key(self) -> GroupKey:
        """Its group."""
        return key_of(self.facts.rollout)

    @property
    def order(self) -> tuple[Any, ...]:
        """What groups are sorted by: nothing that depends on who sampled it, or when."""
        rollout = self.facts.rollout
        return rollout.text, rollout.token_ids, rollout.num_tokens, rollout.stop_reason

    def __reduce__(self) -> tuple[Any, ...]:
        # What is worked out from the rollout need not travel.
        facts = (self.facts.rollout, self.facts.progress)
        return _member, (self.rank, self.row, facts, dict(self.values), self.correct)


def _member(rank: int, row: int, facts: tuple[Rollout, float], values: Mapping[str, float], correct: float) -> Member:
    return Member(rank, row, RolloutFacts(*facts), values, correct)


class GroupFacts:
    """What group rewards may ask about the G members of a group: lists, but `progress`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = sorted(members, key=lambda member: member.order)

    @cached_property
    def _rewards(self) -> Mapping[str, list[float | None]]:
        names = self.members[0].values
        return {name: [_or_none(member.values[name]) for member in self.members] for name in names}

    def ask(self, need: str) -> Any:
        """What a group reward that names `need` receives."""
        if need == "progress":
            return self.members[0].facts.progress
        if need == "rewards":
            return {name: list(values) for name, values in self._rewards.items()}
        if need == "correct":
            return [None if np.isnan(member.correct) else bool(member.correct) for member in self.members]
        return [member.facts.ask(need) for member in self.members]

    def judged_by(self, judge: JudgeService) -> Any:
        """The judge of the row that all of them answer; the pictures of members from elsewhere may have stayed there."""
        rollouts = [member.facts.rollout for member in self.members]
        return judge.of(max(rollouts, key=lambda rollout: len(rollout.row.images)))


class BatchFacts(GroupFacts):
    """What batch rewards may ask about the N members of a batch: lists, but `progress`."""

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(members)
        # Stable: within a group the order stays that of the texts.
        self.members.sort(key=lambda member: member.key[::-1])

    def ask(self, need: str) -> Any:
        """What a batch reward that names `need` receives; its state is not known here."""
        if need == "group":
            numbers: dict[GroupKey, int] = {}
            return [numbers.setdefault(member.key, len(numbers)) for member in self.members]
        return super().ask(need)

    def judged_by(self, judge: JudgeService) -> Any:
        return [member.facts.judged_by(judge) for member in self.members]


def key_of(rollout: Rollout) -> GroupKey:
    """The group of a rollout."""
    return rollout.group, rollout.row.id


class Groups:
    """The groups of a batch over all processes, and who scores each; the batch as a whole is for the first process.

    Args:
        rollouts: `[n]` of this process.
        exchange: with the other processes.
    """

    def __init__(self, rollouts: Sequence[Rollout], exchange: Exchange) -> None:
        self.exchange = exchange
        self.keys = [key_of(rollout) for rollout in rollouts]
        everyone = exchange.gather(self.keys)
        self.num_processes = len(everyone)
        #: Group -> process that has its first member, which scores it.
        self.owner: dict[GroupKey, int] = {}
        self.is_split = False
        for rank, keys in enumerate(everyone):
            for key in keys:
                self.is_split |= self.owner.setdefault(key, rank) != rank
        #: Group -> its number among all groups of the batch.
        self.number = {key: number for number, key in enumerate(self.owner)}

    @property
    def numbers(self) -> NDArray[np.int64]:
        """`[n]` number of each rollout's group."""
        return np.array([self.number[key] for key in self.keys], dtype=np.int64)

    def whole(self, members: Sequence[Member], with_images: bool, per: Per = "group") -> list[GroupFacts]:
        """The complete groups that this process scores, or the complete batch if this is the process that scores it.

        Args:
            members: `[n]`, in the order of the rollouts.
            with_images: send the rows' pictures along, for rewards that look at them.
            per: `group` or `batch`.
        """
        mine: list[Member] = []
        away: list[Member] = []
        for member in members:
            if self._is_mine(member, per):
                mine.append(member)
            else:
                away.append(member if with_images else _without_images(member))
        if self._travels(per):
            told = self.exchange.gather(away)
            mine += [member for others in told for member in others if self._is_mine(member, per)]
        if per == "batch":
            return [BatchFacts(mine)] if mine else []
        groups: dict[GroupKey, list[Member]] = {}
        for member in mine:
            groups.setdefault(member.key, []).append(member)
        return [GroupFacts(found) for found in groups.values()]

    def _is_mine(self, member: Member, per: Per) -> bool:
        return self.exchange.rank == (0 if per == "batch" else self.owner[member.key])

    def _travels(self, per: Per) -> bool:
        """Whether what belongs together lies on several processes."""
        return self.num_processes > 1 if per == "batch" else self.is_split

    def home(
        self, outcomes: Mapping[tuple[int, int, int], Outcome], per: Per = "group"
    ) -> dict[tuple[int, int], Outcome]:
        """Send outcomes to where their rollouts were sampled.

        Args:
            outcomes: `(rank, row, column)` -> outcome, worked out here.
            per: `group` or `batch`, as given to `whole`.

        Returns:
            `(row, column)` -> outcome, of this process's rollouts.
        """
        rank = self.exchange.rank
        mine = {(row, column): outcome for (home, row, column), outcome in outcomes.items() if home == rank}
        if self._travels(per):
            away = {place: outcome for place, outcome in outcomes.items() if place[0] != rank}
            for others in self.exchange.gather(away):
                mine |= {(row, column): outcome for (home, row, column), outcome in others.items() if home == rank}
        return mine


def _without_images(member: Member) -> Member:
    rollout = member.facts.rollout
    bare = replace(rollout, row=replace(rollout.row, images=()), pictures=())
    return replace(member, facts=RolloutFacts(bare, member.facts.progress))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
