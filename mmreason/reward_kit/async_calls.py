"""Async rewards: their calls run side by side on one event loop, in a thread of their own.

What enters: calls of `async def` rewards. What leaves: their outcomes, in order, after a bounded time: a call that
overruns its deadline is cancelled and has failed (`deadline`). A call that blocks the loop, or ignores being cancelled,
cannot be ended: then the loop is abandoned with its thread, and what was under way on it has failed. Works from any
thread. No torch.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmreason.reward_kit.outcome import Call, FailureKind, Outcome, failed, judged, raised

#: Seconds that a call has to obey being cancelled.
_GRACE_S = 2.0
#: How often overdue calls are looked for, in seconds; a finished batch is told at once.
_LOOK_EVERY_S = 0.1


class Duty(Protocol):
    """Work that calls on the loop leave to the thread that waits for them (`mmreason.judge.desk`)."""

    def wait(self, timeout_s: float) -> None:
        """Wait until there is work, or somebody rings, or the time is over."""
        ...

    def ring(self) -> None:
        """Wake the thread that waits; from any thread."""
        ...

    def serve(self, until: float) -> None:
        """Do the work that is there; begin no more of it after `until`, a `time.monotonic()`."""
        ...


@dataclass
class AsyncBatch:
    """Calls under way; `collect` waits for them.

    Attributes:
        calls: of async rewards.
        until: `time.monotonic()` at which the batch is over.
        duty: what the waiting thread does meanwhile.
    """

    calls: Sequence[Call]
    until: float
    loop: _LoopThread
    duty: Duty | None = None
    found: dict[int, list[Outcome]] = field(default_factory=dict)
    #: Call -> when it was begun.
    begun: dict[int, float] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None

    async def run(self, concurrency: int) -> None:
        """Make all calls, on the loop."""
        self.task = asyncio.current_task()
        limit = asyncio.Semaphore(concurrency)
        try:
            await asyncio.gather(*(self._make(index, call, limit) for index, call in enumerate(self.calls)))
        finally:
            self.done.set()
            if self.duty is not None:
                self.duty.ring()

    async def _make(self, index: int, call: Call, limit: asyncio.Semaphore) -> None:
        async with limit:
            self.begun[index] = time.monotonic()
            outcomes = await _outcomes(call)
        self.found.setdefault(index, outcomes)

    def collect(self) -> list[list[Outcome]]:
        """Wait for the outcomes, `[calls][members]`; those that are not there in time have failed."""
        while not self._wait():
            now = time.monotonic()
            if now >= self.until + _GRACE_S or any(now >= limit + _GRACE_S for limit in self._limits()):
                self.loop.abandon()
                break
            if now >= self.until and self.task is not None:
                self.loop.call(self.task.cancel)
        found = dict(self.found)  # a loop that was abandoned may still run
        return [found[index] if index in found else self._missing(index) for index in range(len(self.calls))]

    def _wait(self) -> bool:
        """Wait for a while, doing what there is to do; whether all calls are done."""
        if self.duty is None:
            return self.done.wait(_LOOK_EVERY_S)
        if not self.done.is_set():
            self.duty.wait(_LOOK_EVERY_S)
            self.duty.serve(self.until)
        return self.done.is_set()

    def _limits(self) -> list[float]:
        """When each call that is under way should be over."""
        begun = dict(self.begun)
        return [at + self.calls[index].deadline_s for index, at in begun.items() if index not in self.found]

    def _missing(self, index: int) -> list[Outcome]:
        call = self.calls[index]
        kind: FailureKind = "deadline"
        if index not in self.begun:
            return failed(call.spec, kind, "was not begun within the time of its batch", call.members)
        if time.monotonic() >= self.begun[index] + call.deadline_s:
            problem = f"did not end at its deadline of {call.deadline_s:g} s: it blocks the event loop or is blocked by"
            return failed(call.spec, kind, f"{problem} another call", call.members)
        return failed(call.spec, kind, "was stopped at the deadline of its batch", call.members)


async def _outcomes(call: Call) -> list[Outcome]:
    """Make one call within its deadline; whatever goes wrong in it comes back as an outcome."""
    limit = asyncio.timeout(call.deadline_s)
    try:
        async with limit:
            returned = await call.spec.function(**call.arguments)
        return judged(call.spec, returned, call.members)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the batch is over
        return [raised()] * call.members
    except GeneratorExit:
        raise  # the loop is closed
    except BaseException:  # noqa: BLE001 - the reward boundary; a real Ctrl-C comes to the main thread
        if limit.expired():
            return failed(call.spec, "deadline", f"was stopped at its deadline of {call.deadline_s:g} s", call.members)
        return [raised()] * call.members


class _LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.is_abandoned = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mmreason-async-rewards", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def start(self, calls: Sequence[Call], concurrency: int, batch_deadline_s: float, duty: Duty | None) -> AsyncBatch:
        """Begin to make calls."""
        batch = AsyncBatch(calls, time.monotonic() + batch_deadline_s, self, duty)
        asyncio.run_coroutine_threadsafe(batch.run(concurrency), self._loop)
        return batch

    def call(self, function: object) -> None:
        """Have the loop call a function soon."""
        self._loop.call_soon_threadsafe(function)  # type: ignore[arg-type]

    def abandon(self) -> None:
        """Use it no more; it stops by itself should it ever come to."""
        self.is_abandoned = True
        self._loop.call_soon_threadsafe(self._loop.stop)

    def close(self) -> None:
        self.abandon()
        self._thread.join(timeout=1.0)


_lock = threading.Lock()
_current: _LoopThread | None = None


def start_async(
    calls: Sequence[Call], concurrency: int, batch_deadline_s: float, duty: Duty | None = None
) -> AsyncBatch:
    """Begin to make calls of async rewards on the event loop of this process.

    Args:
        calls: of async rewards.
        concurrency: how many may be under way at once.
        batch_deadline_s: seconds for all of them, from now.
        duty: what the thread that collects them does while it waits.
    """
    global _current
    with _lock:
        # A fork of the process has the object but not the thread.
        if _current is None or _current.is_abandoned or _current.owner != os.getpid():
            _current = _LoopThread()
        return _current.start(calls, concurrency, batch_deadline_s, duty)


def close_loop() -> None:
    """Stop the event loop of this process; the next batch would start a new one."""
    global _current
    with _lock:
        loop, _current = _current, None
    if loop is not None and loop.owner == os.getpid() and not loop.is_abandoned:
        loop.close()


atexit.register(close_loop)
