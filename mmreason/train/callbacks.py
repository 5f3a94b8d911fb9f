"""What happens around a step: signals, when to save and stop, and who is told the step's numbers.

What enters: signals of the operating system, the trainer's step events, the step's metrics. What leaves: save
and stop orders that fall on generation-cycle boundaries, one line of `metrics.jsonl` a step, the live table,
alarms.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmreason.errors import ConfigError, MMReasonError
from mmreason.run_records import RunFolder

#: Trainer bookkeeping that is no metric of ours.
_NOT_METRICS = ("epoch",)


class Interrupted(MMReasonError):
    """The run was stopped by SIGTERM or SIGINT after saving; exit code 128 + signal number, as shells do."""

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class SignalWatch:
    """Remembers the first SIGTERM or SIGINT instead of dying of it; the second one kills as usual.

    Attributes:
        caught: number of the first signal, `None` before it.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:  # only the main thread may set handlers; a run inside a thread is stopped by its host
                break
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.caught = number
        print(
            f"\n{signal.Signals(number).name}: finishing the step and saving; once more stops at once.",
            flush=True,
        )
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class StageClock:
    """Seconds of a step by stage. Stages nest: an inner stage's time is not counted in the outer one.

    Args:
        synchronize: wait for the GPU at the borders, so that work is charged to the stage that asked for it.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize or (lambda: None)
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def begin(self, name: str) -> None:
        """Start a step; what no inner stage claims belongs to `name`."""
        self._seconds = {}
        self._stack = [name]
        self._synchronize()
        self._since = time.perf_counter()

    def end(self) -> dict[str, float]:
        """Seconds by stage since `begin`."""
        self._charge()
        self._stack = []
        return self._seconds

    @property
    def current(self) -> str:
        """The stage that time is being charged to."""
        return self._stack[-1] if self._stack else ""

    def _charge(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._stack:
            self._seconds[self._stack[-1]] = self._seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now


def gpu_synchronize() -> Callable[[], None] | None:
    """What makes the clock wait for the GPU; `None` without one."""
    return torch.cuda.synchronize if torch.cuda.is_available() else None


def process_state() -> PartialState:
    """Which of how many processes this is; the first call joins them, and picks the process's GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def refuse_unlaunched_gpus() -> None:
    """Raise `ConfigError` if one process sees several GPUs: trainers would spread over them in a way that is
    neither supported here nor what one process per GPU computes."""
    visible = torch.cuda.device_count()
    if visible > 1 and process_state().num_processes == 1:
        raise ConfigError(
            f"{visible} GPUs are visible, but this is a single process. Choose one GPU with CUDA_VISIBLE_DEVICES=0, "
            f"or start one process per GPU: accelerate launch --num_processes {visible} -m mmreason train ..."
        )


class Listener(Protocol):
    """Anything that wants the step's numbers: the live table, the alarms."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None: ...


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Saves and stops on cycle boundaries, and passes every step's metrics on.

    Args:
        folder: the run folder.
        cycle: optimizer steps per batch of rollouts (`objective.num_iterations`): saves fall on its multiples
            only, because the rollouts in between are in no checkpoint.
        save_every: checkpoint interval in steps; 0 = only at the end.
        watch: signals to obey.
        agree: true if any process says true; all processes must stop at the same step.
        listeners: told the metrics of every step, on the main process.
    """

    def __init__(
        self,
        folder: RunFolder,
        cycle: int,
        save_every: int,
        watch: SignalWatch,
        agree: Callable[[bool], bool],
        listeners: tuple[Listener, ...] = (),
    ) -> None:
        self.folder = folder
        self.cycle = cycle
        self.save_every = save_every
        self.watch = watch
        self.agree = agree
        self.listeners = listeners
        self.interrupted = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        step = state.global_step
        on_boundary = step % self.cycle == 0
        due = self.save_every > 0 and step % self.save_every == 0
        control.should_save = on_boundary and (due or step >= state.max_steps)
        if on_boundary and self.agree(self.watch.caught is not None):
            self.interrupted = step < state.max_steps
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        # TRL writes None for a metric that applied to nothing; listeners are promised numbers.
        numbers = {name: math.nan if value is None else value for name, value in logs.items()}
        metrics = {name: value for name, value in numbers.items() if name not in _NOT_METRICS}
        self.folder.append_metrics({"step": state.global_step, **metrics})
        for listener in self.listeners:
            listener(state.global_step, metrics)
