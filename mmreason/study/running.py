"""The processes of a study: so many at once, each with its own log, stopped and continued cleanly.

What enters: a `Plan`. What leaves: run folders, and the `State` of every job. A job that fails does not stop the others; what starts
from its model is not started. The first Ctrl-C or SIGTERM lets the running jobs save and end, the second one stops them at once.

Processes stand in sessions of their own, so that a terminal's Ctrl-C reaches them once, through here. The folder's lock is handed to
them: it stays held while any of them lives, even if this process was killed, and a second study cannot start in between.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmreason.errors import ConfigError, DataError
from mmreason.run_records import RunFolder, read_metrics
from mmreason.study.planning import Job, Plan
from mmreason.study.records import is_finished, log_file, write_record

_POLL_S = 0.3
#: Last lines of a log that are shown of a failed job.
LOG_LINES = 12
#: Bytes read from the end of a log.
_TAIL_BYTES = 16_000

Stage = Literal["waiting", "running", "finished", "kept", "failed", "stopped", "not started"]


@dataclass
class State:
    """Where a job stands.

    Attributes:
        stage: `kept` = it had been finished by an earlier run of the study.
        steps: done so far.
        first_step: done before this process started.
        started: by the monotonic clock, seconds.
        seconds: that it ran, once it has ended.
        reason: why it failed or was not started.
    """

    stage: Stage = "waiting"
    steps: int = 0
    first_step: int = 0
    started: float = 0.0
    seconds: float = 0.0
    reason: str = ""


class Runner:
    """Runs the jobs of a plan.

    Args:
        plan: the study.
        at_once: processes at the same time.
        show: called several times a second, and at the end.

    Attributes:
        states: job name -> where it stands.
        signals: how many Ctrl-C and SIGTERM have come.
    """

    def __init__(self, plan: Plan, at_once: int, show: Callable[[Runner], None] | None = None) -> None:
        self.plan = plan
        self.at_once = at_once
        self.show = show or (lambda _: None)
        self.states = {job.name: State() for job in plan.jobs}
        self.signals = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: int | None = None
        #: Looked at and not finished: weights are hashed once.
        self._unfinished: set[str] = set()

    @property
    def failed(self) -> bool:
        """A job failed, or was not started because another one did."""
        return any(state.stage in ("failed", "not started") for state in self.states.values())

    def run(self) -> None:
        """Run every job that is not finished.

        Raises:
            ConfigError: another study works in the folder.
        """
        with locked(self.plan.out) as self._lock, self._signals():
            while True:
                self._collect()
                if not self.signals:
                    self._start_ready()
                self.show(self)
                if not self._processes:
                    break
                time.sleep(_POLL_S)
        for state in self.states.values():
            if state.stage == "waiting":
                state.stage = "stopped"
        self.show(self)

    # ------------------------------------------------------------------ jobs

    def _start_ready(self) -> None:
        """Start, keep or give up what can be decided, in the order of the plan."""
        for job in self.plan.jobs:
            state = self.states[job.name]
            if state.stage != "waiting":
                continue
            before = [self.states[name].stage for name in job.after]
            if any(stage in ("failed", "not started") for stage in before):
                state.stage, state.reason = "not started", f"{job.after[0]} failed"
            elif all(stage in ("finished", "kept") for stage in before):
                if job.name not in self._unfinished and is_finished(self.plan, job):
                    state.stage, state.steps = "kept", job.steps
                    continue
                self._unfinished.add(job.name)
                if len(self._processes) < self.at_once:
                    self._start(job, state)

    def _start(self, job: Job, state: State) -> None:
        try:
            config = write_record(self.plan, job)
        except DataError as error:
            state.stage, state.reason = "failed", str(error)
            return
        log = log_file(self.plan, job)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mmreason", job.command, "-cd", str(config.parent), "-cn", config.stem]
        threads = str(max(1, job.config.trainer.num_threads))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "COLUMNS": "120"}
        with log.open("ab") as output:
            self._processes[job.name] = subprocess.Popen(  # noqa: S603 - this program, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=() if self._lock is None else (self._lock,),
            )
        state.stage, state.started, state.reason = "running", time.monotonic(), ""
        state.steps = state.first_step = steps_done(job)

    def _collect(self) -> None:
        """See how far the processes are, and which have ended."""
        for name, process in list(self._processes.items()):
            job = next(one for one in self.plan.jobs if one.name == name)
            state = self.states[name]
            state.steps = steps_done(job)
            code = process.poll()
            if code is None:
                continue
            del self._processes[name]
            state.seconds = time.monotonic() - state.started
            if code == 0:
                state.stage = "finished"
            elif self.signals and code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
                state.stage = "stopped"
            else:
                state.stage = "failed"
                state.reason = (
                    f"exit code {code}; {log_file(self.plan, job)} ends:\n{log_tail(log_file(self.plan, job))}"
                )

    # ------------------------------------------------------------------ signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def pass_on(number: int, _frame: object) -> None:
            self.signals += 1
            for process in self._processes.values():
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in self._processes.values():
                # Only when this process itself goes wrong; an ordinary end waits for all of them.
                process.terminate()


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold the lock of a study's folder; yields its file descriptor.

    Raises:
        ConfigError: it is held.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another `mmreason study`, or a run that one left behind, works in {out}. Wait for it or stop it, "
                "or choose another --out."
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def steps_done(job: Job) -> int:
    """Optimizer steps that a job has logged."""
    metrics = RunFolder(job.folder).metrics
    if job.command == "eval" or not metrics.is_file():
        return 0
    last = deque(read_metrics(metrics), maxlen=1)
    return int(last[0].get("step", 0)) if last else 0


def log_tail(log: Path, lines: int = LOG_LINES) -> str:
    """The last lines of a log."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
