"""Isolated rewards: a pool of child processes with a deadline for every call and one for the batch.

What enters: calls. What leaves: their outcomes, in order, after a bounded time whatever the calls do: a call that
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

from mmreason.plugin_functions import is_file_module
from mmreason.reward_kit.outcome import Call, FailureKind, Outcome, failed, raised
from mmreason.reward_kit.spec import RewardSpec
from mmreason.reward_kit.worker import (
    ANSWER,
    COMMAND,
    END,
    FORK,
    KILL,
    MAX_ANSWER_BYTES,
    MAX_CALL_BYTES,
    FrameReader,
    NurserySettings,
    Sources,
    decode_answer,
    encode_call,
    receive_exactly,
    receive_frame,
    send_frame,
)

#: The child's first words; the import path is the parent's, so that it finds the same modules.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import mmreason.reward_kit.worker as w; w.main()"
#: Seconds for importing the rewards' modules, and for the nursery to answer a command.
_START_LIMIT_S = 180.0
_ANSWER_LIMIT_S = 30.0
#: Workers where `reward.workers` leaves it open.
_MOST_WORKERS = 8
#: A worker that died while idle is not the next call's fault: that is sent again, this often at most.
_SENDS = 2


class PoolLost(RuntimeError):
    """The nursery could not start or is gone; the message says why."""


def sources_of(specs: Iterable[RewardSpec]) -> Sources:
    """What a child has to import for these rewards."""
    names, modules, files = [], [], []
    for spec in specs:
        module = spec.function.__module__
        names.append(spec.name)
        if is_file_module(module):
            files.append(str(sys.modules[module].__file__))
        else:
            modules.append(module)
    return Sources(tuple(names), tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(files)))


class _Worker:
    """One child process that makes one call at a time."""

    def __init__(self, process: int, connection: socket.socket) -> None:
        self.process = process
        self.connection = connection
        self.reader = FrameReader(MAX_ANSWER_BYTES)


class _Nursery:
    """The process that forks workers, seen from the training process."""

    def __init__(self, sources: Sources, memory_mb: int) -> None:
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
        """Wait until the rewards are imported; raises `PoolLost`."""
        if self.is_ready:
            return
        self.control.settimeout(_START_LIMIT_S)
        try:
            content = receive_frame(self.control, MAX_ANSWER_BYTES)
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
                return _Worker(self._answer(), ours)
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


class WorkerPool:
    """Child processes for some rewards; they start with the first batch (or `start`) and stay for the next ones.

    Args:
        sources: the rewards, and what registers them.
        num_workers: calls made at once; 0 = one per core, at most 8.
        memory_mb: address space of each worker.
    """

    def __init__(self, sources: Sources, num_workers: int, memory_mb: int) -> None:
        self.sources = sources
        self.num_workers = num_workers or min(_MOST_WORKERS, _num_cores())
        self.memory_mb = memory_mb
        self._nursery: _Nursery | None = None
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to import the rewards in the background."""
        with self._lock:
            self._start()

    def _start(self) -> _Nursery:
        if self._nursery is None:
            self._nursery = _Nursery(self.sources, self.memory_mb)
        return self._nursery

    def run(self, calls: Sequence[Call], batch_deadline_s: float) -> list[list[Outcome]]:
        """Make calls; never raises because of one.

        Args:
            calls: of isolated rewards.
            batch_deadline_s: seconds for all of them, from when the children have started up.

        Returns:
            Outcomes of each call, one a member, in the order of the calls.
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
            return batch.outcomes

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


class _Batch:
    """The calls of one batch while they are made."""

    def __init__(self, pool: WorkerPool, calls: Sequence[Call]) -> None:
        self.pool = pool
        self.calls = calls
        self.found: list[list[Outcome] | None] = [None] * len(calls)
        self.sends = [0] * len(calls)
        self.waiting = deque(range(len(calls)))
        self.busy: dict[_Worker, tuple[int, float]] = {}  # worker -> its call, when that is overdue
        self.selector: selectors.BaseSelector

    @property
    def outcomes(self) -> list[list[Outcome]]:
        return [found for found in self.found if found is not None]

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

    def give_up(self, kind: FailureKind, explanation: str) -> None:
        """Count every call without an answer as failed."""
        for index, call in enumerate(self.calls):
            if self.found[index] is None:
                self.found[index] = failed(call.spec, kind, explanation, call.members)
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
                    self.found[index] = failed(call.spec, "crashed", f"could not be sent: {error}", call.members)
                return
            self.busy[worker] = (index, min(overdue, until))
            self.selector.register(worker.connection, selectors.EVENT_READ, worker)
            return
        self.pool.give(worker)

    def _encoded(self, index: int, call: Call) -> bytes | None:
        """The call's message; without one, the outcome says why."""
        try:
            content = encode_call(call)
        except Exception:  # noqa: BLE001 - part of the reward boundary: pickling runs code of the arguments
            self.found[index] = [raised()] * call.members
            return None
        if len(content) > MAX_CALL_BYTES:
            problem = f"has arguments of {len(content):,} bytes, more than {MAX_CALL_BYTES:,}: name less than `rollout`"
            self.found[index] = failed(call.spec, "exception", problem, call.members)
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
            self.found[index] = failed(call.spec, "crashed", f"ended its process: {how}", call.members)
            return
        if content is not None:
            self._release(worker)
            self.found[index] = decode_answer(content)
            self.pool.give(worker)

    def _end_overdue(self, until: float) -> None:
        now = time.monotonic()
        for worker, (index, overdue) in list(self.busy.items()):
            if now >= overdue:
                call = self.calls[index]
                self._release(worker)
                self.pool.kill(worker)
                limit = "the deadline of the batch" if overdue >= until else f"its deadline of {call.deadline_s:g} s"
                self.found[index] = failed(call.spec, "deadline", f"was stopped at {limit}", call.members)

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

_pools: dict[tuple[int, Sources, int, int], WorkerPool] = {}
_pools_lock = threading.Lock()


def shared_pool(sources: Sources, num_workers: int, memory_mb: int) -> WorkerPool:
    """The pool for these rewards in this process, made once: an evaluation uses that of the training."""
    key = (os.getpid(), sources, num_workers, memory_mb)
    with _pools_lock:
        if key not in _pools:
            _pools[key] = WorkerPool(sources, num_workers, memory_mb)
        return _pools[key]


def close_pools() -> None:
    """End the child processes of all pools of this process."""
    with _pools_lock:
        for (owner, *_), pool in _pools.items():
            if owner == os.getpid():  # a fork of the process has copies of what is not its own
                pool.close()
        _pools.clear()


atexit.register(close_pools)
