"""Questions to a model in this process: they gather on the event loop and are answered by the thread that waits.

What enters: questions of coroutines on the event loop. What leaves: replies, computed in batches by `serve`, which the
training thread calls while it waits for the rewards. Nothing else runs the model then, so no lock is needed, and no second
thread ever touches it.

    event loop   reward ─ask─▶ gathered ──nobody asks for a few turns──▶ handed over ─ring─┐
    waiting thread                    deliver ◀── replies of batches ◀── serve ◀───────────┘

All replies of a round go back together, so which questions meet in a batch does not depend on how fast anything was: a
run that is repeated or resumed forms the same batches. (Rewards that wait for something else than the judge undo that.)
No torch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mmreason.judge.questions import Question

#: Turns of the event loop without a new question after which those gathered are handed over. A reply passes through a
#: few turns (future, task, semaphore) before its reward, or the next one in line, asks again.
_QUIET_TURNS = 16


class Model(Protocol):
    """A model in this process that answers questions in batches.

    Attributes:
        identity: who it is, for the cache; `None` = its replies change, keep none.
        reads_pictures: it can be shown some.
    """

    identity: str | None
    reads_pictures: bool

    def replies(self, questions: Sequence[Question]) -> list[str]:
        """One reply a question; called by one thread at a time. Random states are left as they were."""
        ...


@dataclass(frozen=True, eq=False)
class _Ask:
    question: Question
    future: asyncio.Future[str]
    loop: asyncio.AbstractEventLoop

    @property
    def is_wanted(self) -> bool:
        """Somebody still waits for it."""
        return not self.future.done() and self.loop.is_running()


class Desk:
    """Where questions to a model wait for the thread that may run it.

    Args:
        model: answers.
        batch_size: questions in one call of the model.

    Attributes:
        identity, reads_pictures: the model's.
        num_batches: calls of the model so far.
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.identity = model.identity
        self.reads_pictures = model.reads_pictures
        self.num_batches = 0
        self._gathered: list[_Ask] = []  # touched on the event loop only
        self._handed_over: list[_Ask] = []
        self._lock = threading.Lock()
        self._bell = threading.Event()

    # ------------------------------------------------------------------ on the event loop

    async def reply(self, question: Question) -> str:
        """Wait for the reply; raises what the model raised."""
        loop = asyncio.get_running_loop()
        ask = _Ask(question, loop.create_future(), loop)
        if not any(other.loop is loop for other in self._gathered):
            self._gathered = []  # what an abandoned loop has left
            loop.call_soon(self._settle, loop, 0, 0)
        self._gathered.append(ask)
        return await ask.future

    def _settle(self, loop: asyncio.AbstractEventLoop, known: int, quiet: int) -> None:
        """Hand over once nobody has asked for some turns of the loop."""
        count = len(self._gathered)
        quiet = quiet + 1 if count == known else 0
        if quiet < _QUIET_TURNS:
            loop.call_soon(self._settle, loop, count, quiet)
            return
        with self._lock:
            self._handed_over += self._gathered
        self._gathered = []
        self.ring()

    # ------------------------------------------------------------------ in the waiting thread

    def ring(self) -> None:
        """Wake the thread that waits; from any thread."""
        self._bell.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to do, or somebody rings, or the time is over."""
        self._bell.wait(timeout_s)
        self._bell.clear()

    def serve(self, until: float) -> None:
        """Answer everything that was handed over.

        Args:
            until: `time.monotonic()` after which no further batch is begun, and nothing is given out.
        """
        with self._lock:
            asks, self._handed_over = self._handed_over, []
        by_key: dict[str, list[_Ask]] = {}
        for ask in asks:
            if ask.is_wanted:
                by_key.setdefault(ask.question.key(""), []).append(ask)
        # Alike in length: little padding. By key: in whatever order they were asked.
        order = sorted(by_key, key=lambda key: (_kind(by_key[key][0].question), len(by_key[key][0].question.text), key))
        done: list[tuple[_Ask, str | Exception]] = []
        for batch in _batches(order, [_kind(by_key[key][0].question) for key in order], self.batch_size):
            if time.monotonic() >= until:
                break
            wanted = [key for key in batch if any(ask.is_wanted for ask in by_key[key])]
            if wanted:
                found = self._replies([by_key[key][0].question for key in wanted])
                done += [(ask, made) for key, made in zip(wanted, found, strict=True) for ask in by_key[key]]
        if time.monotonic() >= until:
            return  # Too late for all: whether some still came through would be a matter of luck.
        for loop in dict.fromkeys(ask.loop for ask, _ in done):
            mine = [(ask, made) for ask, made in done if ask.loop is loop]
            if loop.is_running():
                loop.call_soon_threadsafe(_deliver, mine)

    def _replies(self, questions: Sequence[Question]) -> Sequence[str | Exception]:
        self.num_batches += 1
        try:
            return self.model.replies(questions)
        except Exception as error:  # noqa: BLE001 - part of the reward boundary: raised again in the rewards that asked
            return [error] * len(questions)


def _kind(question: Question) -> tuple[float, int, int, int]:
    """What questions of one batch share."""
    return question.temperature, question.max_new_tokens, question.seed, len(question.pictures)


def _batches(keys: Sequence[str], kinds: Sequence[object], size: int) -> list[list[str]]:
    """Neighbours of the same kind, at most `size` together."""
    batches: list[list[str]] = []
    last: object = None
    for key, kind in zip(keys, kinds, strict=True):
        if not batches or kind != last or len(batches[-1]) == size:
            batches.append([])
        batches[-1].append(key)
        last = kind
    return batches


def _deliver(made: Sequence[tuple[_Ask, str | Exception]]) -> None:
    """Give out replies, on the loop."""
    for ask, reply in made:
        if ask.future.done():  # its reward has met its deadline
            continue
        if isinstance(reply, Exception):
            ask.future.set_exception(reply)
        else:
            ask.future.set_result(reply)
