"""What a person sees while a study runs: a live table on a terminal, one line for every change elsewhere.

What enters: a `Runner`. What leaves: text on the console.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mmreason.study.running import Runner, State

_STYLES = {"running": "bold", "finished": "green", "kept": "green", "failed": "bold red", "not started": "red"}


class Screen:
    """Shows the jobs; a context manager around `Runner.run`.

    Args:
        console: where to write; default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._stages: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, runner: Runner) -> None:
        if self._live is not None:
            self._live.update(table(runner))
        for job in runner.plan.jobs:
            state = runner.states[job.name]
            if self._stages.get(job.name, "waiting") == state.stage:
                continue
            self._stages[job.name] = state.stage
            if self._live is None:
                took = f", {state.seconds:.0f} s" if state.stage == "finished" else ""
                self.console.print(f"{state.stage:<12} {job.name}{took}", markup=False, highlight=False)
            if state.reason:
                self.console.print(f"{job.name}: {state.reason}", markup=False, highlight=False)
        if runner.signals and self._stages.get("", "") != str(runner.signals):
            self._stages[""] = str(runner.signals)
            self.console.print("stopping: running jobs save and end; once more stops them at once", markup=False)


def table(runner: Runner) -> RenderableType:
    """One line a job."""
    shown = Table(box=None, pad_edge=False)
    for name in ("job", "", "step", "time left"):
        shown.add_column(name, no_wrap=True)
    for job in runner.plan.jobs:
        state = runner.states[job.name]
        steps = f"{state.steps}/{job.steps}" if job.steps and state.stage != "waiting" else ""
        left = time_left(state, job.steps, time.monotonic())
        text = "" if left is None else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        shown.add_row(escape(job.name), state.stage, steps, text, style=_STYLES.get(state.stage, "dim"))
    return shown


def time_left(state: State, steps: int, now: float) -> float | None:
    """Seconds that a running job still needs for its steps, at the pace of this process; `None` before its first step."""
    done = state.steps - state.first_step
    if state.stage != "running" or done <= 0 or not steps:
        return None
    return (now - state.started) / done * (steps - state.steps)
