"""Isolated plug-ins: a pool of child processes with a deadline for every call and one for the batch.

What enters: calls. What leaves: what they came to, as their `Work` has it, in order, after a bounded time whatever the calls do: a call that
overruns is killed with its process and counts as failed (`deadline`), one whose process dies as `crashed`. The pool
works from any thread and touches no signal. How the children come and go: `mmreason.reward_kit.worker`. No torch.

The children see the deadline from the moment a call is sent; starting up is not counted. A batch of N calls takes at most
about N × deadline ÷ workers, and never more than the batch's deadline.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from mmreason.reward_kit.worker import (
    ANSWER,
    COMMAND,
    END,
    FORK,
    KILL,
    MAX_CALL_BYTES,
    MAX_WORD_BYTES,
    FrameReader,
    NurserySettings,
    Sources,
    receive_exactly,
    receive_frame,
    send_frame,
)

#: The child's first words; the import path is the parent's, so that it finds the same modules.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import mmreason.reward_kit.worker as w; w.main()"
#: Seconds for importing the plug-ins' modules, and for the nursery to answer a command.
_START_LIMIT_S = 180.0
_ANSWER_LIMIT_S = 30.0
#: Workers where the configuration leaves it open.
_MOST_WORKERS = 8
#: A worker that died while idle is not the next call's fault: that is sent again, this often at most.
_SENDS = 2


class PoolLost(RuntimeError):
    """The nursery could not start or is gone; the message says why."""


class HasDeadline(Protocol):
    """A call."""

    @property
    def deadline_s(self) -> float:
        """Seconds that it may take."""
        ...


CallT = TypeVar("CallT", bound=HasDeadline)
CallT_contra = TypeVar("CallT_contra", bound=HasDeadline, contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Work(Protocol[CallT_contra, ResultT_co]):
    """How calls of one kind are sent, and what comes of them; the other side is `mmreason.reward_kit.worker.ChildWork`.

    Attributes:
        max_answer_bytes: a child that sends more has crashed.
        how_to_send_less: advice for a call that is too large.
    """

    max_answer_bytes: int
    how_to_send_less: str

    def encode(self, call: CallT_contra) -> bytes:
        """A call as it goes to a worker; may raise whatever its arguments raise."""
        ...

    def decode(self, call: CallT_contra, content: bytes) -> ResultT_co:
        """What a worker answered; never raises."""
        ...

    def failed(
        self, call: CallT_contra, kind: Literal["exception", "deadline", "crashed"], explanation: str
    ) -> ResultT_co:
        """A call that was not made, or not to its end."""
        ...

    def raised(self, call: CallT_contra) -> ResultT_co:
        """A call that cannot be sent because of the exception that is being handled."""
        ...


class _Worker:
    """One child process that makes one call at a time."""

    def __init__(self, process: int, connection: socket.socket, max_answer_bytes: int) -> None:
        self.process = process
        self.connection = connection
        self.reader = FrameReader(max_answer_bytes)


class _Nursery:
    """The process that forks workers, seen from the training process."""

    def __init__(self, sources: Sources, memory_mb: int, max_answer_bytes: int) -> None:
        self.max_answer_bytes = max_answer_bytes
        self.control, theirs = socket.socketpair()
        settings = NurserySettings(theirs.fileno(), os.getpid(), memory_mb, sources)
        path = [entry or os.getcwd() for entry in sys.path]
        # One thread each: there are as many workers as are wanted, and a fork keeps no thread but its own.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                [sys.executable, "-c", _BOOT, json.dumps(path), settings.to_json()],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
                start_new_session=True,  # Ctrl-C on the terminal is the training process's matter
            )
        self.is_ready = False

    def wait_ready(self) -> None:
        """Wait until the plug-ins are imported; raises `PoolLost`."""
        if self.is_ready:
            return
        self.control.settimeout(_START_LIMIT_S)
        try:
            content = receive_frame(self.control, MAX_WORD_BYTES)
        except TimeoutError:
            raise PoolLost(f"could not be imported by a child process within {_START_LIMIT_S:g} s") from None
        if content is None:
            raise PoolLost("could not be imported by a child process, which died while it tried")
        if problem := json.loads(content)["problem"]:
            raise PoolLost(f"could not be imported by a child process:\n{problem}")
        self.control.settimeout(_ANSWER_LIMIT_S)
        self.is_ready = True

    def fork(self) -> _Worker:
        """A new worker; raises `PoolLost`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [COMMAND.pack(FORK, 0)], [theirs.fileno()])
                return _Worker(self._answer(), ours, self.max_answer_bytes)
            except (OSError, PoolLost) as error:
                ours.close()
                raise PoolLost(f"its child processes are gone ({error})") from error

    def kill(self, worker: _Worker) -> None:
        """Kill a worker and do not wait for it; raises `PoolLost`."""
        worker.connection.close()
        try:
            self.control.sendall(COMMAND.pack(KILL, worker.process))
        except OSError as error:
            raise PoolLost(f"its child processes are gone ({error})") from error

    def end(self, worker: _Worker) -> int:
        """Kill a worker; how it died: an exit code, or minus the number of a signal. Raises `PoolLost`."""
        worker.connection.close()
        try:
            self.control.sendall(COMMAND.pack(END, worker.process))
            return self._answer()
        except OSError as error:
            raise PoolLost(f"its child processes are gone ({error})") from error

    def _answer(self) -> int:
        content = receive_exactly(self.control, ANSWER.size)
        if len(content) < ANSWER.size:
            raise PoolLost("the process that starts them died")
        number: int = ANSWER.unpack(content)[0]
        return number

    def close(self, workers: Iterable[_Worker]) -> None:
        """Hang up; the nursery ends its workers and itself. Should it be dead, its workers are ended from here."""
        self.control.close()
        try:
            gone = self.process.wait(timeout=5.0) != 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            gone = True
        for worker in workers:
            if gone and worker.connection.fileno() >= 0:
                _kill_orphan(worker)
            worker.connection.close()


def _kill_orphan(worker: _Worker) -> None:
    """Kill a worker that lost its nursery, if its socket shows that it still lives: its number may be another's now."""
    worker.connection.setblocking(False)
    try:
        while worker.connection.recv(2**16):
            pass
    except BlockingIOError:
        try:
            os.killpg(worker.process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
    except OSError:
        return


class WorkerPool(Generic[CallT, ResultT]):
    """Child processes for some plug-ins; they start with the first batch (or `start`) and stay for the next ones.

    Args:
        work: how calls are sent and read.
        sources: the plug-ins, and what registers them.
        num_workers: calls made at once; 0 = one per core, at most 8.
        memory_mb: address space of each worker.
    """

    def __init__(self, work: Work[CallT, ResultT], sources: Sources, num_workers: int, memory_mb: int) -> None:
        self.work = work
        self.sources = sources
        self.num_workers = num_workers or min(_MOST_WORKERS, _num_cores())
        self.memory_mb = memory_mb
        self._nursery: _Nursery | None = None
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to import the plug-ins in the background."""
        with self._lock:
            self._start()

    def _start(self) -> _Nursery:
        if self._nursery is None:
            self._nursery = _Nursery(self.sources, self.memory_mb, self.work.max_answer_bytes)
        return self._nursery

    def run(self, calls: Sequence[CallT], batch_deadline_s: float) -> list[ResultT]:
        """Make calls; never raises because of one.

        Args:
            calls: of isolated plug-ins.
            batch_deadline_s: seconds for all of them, from when the children have started up.

        Returns:
            What each came to, in the order of the calls.
        """
        with self._lock:
            batch = _Batch(self, calls)
            try:
                self._start().wait_ready()
                batch.run(batch_deadline_s)
            except PoolLost as error:
                self._close()
                batch.give_up("crashed", str(error))
            except BaseException:
                self._close()  # an interrupt: what is under way belongs to nobody
                raise
            return batch.results

    def take(self) -> _Worker | None:
        """An idle worker, or a new one if there may be one more."""
        if self._idle:
            return self._idle.pop()
        if len(self._workers) >= self.num_workers:
            return None
        worker = self._start().fork()
        self._workers.append(worker)
        return worker

    def give(self, worker: _Worker) -> None:
        """Put a worker back that has answered."""
        self._idle.append(worker)

    def kill(self, worker: _Worker) -> None:
        """Kill a worker that is of no use any more."""
        self._workers.remove(worker)
        self._start().kill(worker)

    def end(self, worker: _Worker) -> int:
        """End a worker that seems dead; how it died."""
        self._workers.remove(worker)
        return self._start().end(worker)

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids: the nursery and its workers."""
        nursery = () if self._nursery is None else (self._nursery.process.pid,)
        return nursery + tuple(worker.process for worker in self._workers)

    def close(self) -> None:
        """End all child processes; the next batch would start new ones."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        nursery, self._nursery = self._nursery, None
        workers, self._workers, self._idle = self._workers, [], []
        if nursery is not None:
            nursery.close(workers)


class _Batch(Generic[CallT, ResultT]):
    """The calls of one batch while they are made."""

    def __init__(self, pool: WorkerPool[CallT, ResultT], calls: Sequence[CallT]) -> None:
        self.pool = pool
        self.work = pool.work
        self.calls = calls
        self.found: dict[int, ResultT] = {}  # index of a call -> what it came to
        self.sends = [0] * len(calls)
        self.waiting = deque(range(len(calls)))
        self.busy: dict[_Worker, tuple[int, float]] = {}  # worker -> its call, when that is overdue
        self.selector: selectors.BaseSelector

    @property
    def results(self) -> list[ResultT]:
        return [self.found[index] for index in range(len(self.calls))]

    def run(self, batch_deadline_s: float) -> None:
        until = time.monotonic() + batch_deadline_s
        with selectors.DefaultSelector() as self.selector:
            while self.waiting or self.busy:
                while self.waiting and time.monotonic() < until and (worker := self.pool.take()) is not None:
                    self._send(worker, until)
                if self.busy:  # else nothing could be sent, and nothing will come
                    soonest = min(overdue for _, overdue in self.busy.values())
                    for key, _ in self.selector.select(max(0.0, soonest - time.monotonic())):
                        self._receive(key.data)
                    self._end_overdue(until)
                if self.waiting and time.monotonic() >= until:
                    self.give_up("deadline", f"was not begun within the batch's {batch_deadline_s:g} s")

    def give_up(self, kind: Literal["deadline", "crashed"], explanation: str) -> None:
        """Count every call without an answer as failed."""
        for index, call in enumerate(self.calls):
            if index not in self.found:
                self.found[index] = self.work.failed(call, kind, explanation)
        self.waiting.clear()

    def _send(self, worker: _Worker, until: float) -> None:
        """Hand the next call that can be sent to a worker."""
        while self.waiting:
            index = self.waiting.popleft()
            call = self.calls[index]
            content = self._encoded(index, call)
            if content is None:
                continue
            overdue = time.monotonic() + call.deadline_s
            self.sends[index] += 1
            try:
                worker.connection.settimeout(call.deadline_s)
                send_frame(worker.connection, content)
                worker.connection.setblocking(False)
            except OSError as error:
                self.pool.kill(worker)
                if self.sends[index] < _SENDS:
                    self.waiting.appendleft(index)
                else:
                    self.found[index] = self.work.failed(call, "crashed", f"could not be sent: {error}")
                return
            self.busy[worker] = (index, min(overdue, until))
            self.selector.register(worker.connection, selectors.EVENT_READ, worker)
            return
        self.pool.give(worker)

    def _encoded(self, index: int, call: CallT) -> bytes | None:
        """The call's message; without one, the outcome says why."""
        try:
            content = self.work.encode(call)
        except Exception:  # noqa: BLE001 - part of the boundary: pickling runs code of the arguments
            self.found[index] = self.work.raised(call)
            return None
        if len(content) > MAX_CALL_BYTES:
            size = f"{len(content):,} bytes, more than {MAX_CALL_BYTES:,}"
            problem = f"has arguments of {size}: {self.work.how_to_send_less}"
            self.found[index] = self.work.failed(call, "exception", problem)
            return None
        return content

    def _receive(self, worker: _Worker) -> None:
        index, _ = self.busy[worker]
        call = self.calls[index]
        try:
            content = worker.reader.feed(worker.connection)
        except (OSError, EOFError, ValueError):
            self._release(worker)
            how = _how_it_died(self.pool.end(worker))
            self.found[index] = self.work.failed(call, "crashed", f"ended its process: {how}")
            return
        if content is not None:
            self._release(worker)
            self.found[index] = self.work.decode(self.calls[index], content)
            self.pool.give(worker)

    def _end_overdue(self, until: float) -> None:
        now = time.monotonic()
        for worker, (index, overdue) in list(self.busy.items()):
            if now >= overdue:
                call = self.calls[index]
                self._release(worker)
                self.pool.kill(worker)
                limit = "the deadline of the batch" if overdue >= until else f"its deadline of {call.deadline_s:g} s"
                self.found[index] = self.work.failed(call, "deadline", f"was stopped at {limit}")

    def _release(self, worker: _Worker) -> None:
        self.selector.unregister(worker.connection)
        del self.busy[worker]


def _num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _how_it_died(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    if -status == signal.SIGKILL:
        return "killed; usual cause: out of memory"
    return f"signal {signal.Signals(-status).name}"


# ---------------------------------------------------------------------- pools of this process

_pools: dict[tuple[int, Sources, int, int], WorkerPool[Any, Any]] = {}
_pools_lock = threading.Lock()


def shared_pool(
    work: Work[CallT, ResultT], sources: Sources, num_workers: int, memory_mb: int
) -> WorkerPool[CallT, ResultT]:
    """The pool for these plug-ins in this process, made once: an evaluation uses that of the training."""
    key = (os.getpid(), sources, num_workers, memory_mb)
    with _pools_lock:
        if key not in _pools:
            _pools[key] = WorkerPool(work, sources, num_workers, memory_mb)
        return _pools[key]


def close_pools() -> None:
    """End the child processes of all pools of this process."""
    with _pools_lock:
        for (owner, *_), pool in _pools.items():
            if owner == os.getpid():  # a fork of the process has copies of what is not its own
                pool.close()
        _pools.clear()


atexit.register(close_pools)
