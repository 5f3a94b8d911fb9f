"""What a person sees while a run trains: a live table on a terminal, one compact line per log step elsewhere.

What enters: the metrics of a step, by the names that the trainer logs. What leaves: text on the console.
Nothing is computed here but the time left and the change since the start. No torch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

#: Steps averaged at the start and now, so that the change shown is not the noise of two steps.
WINDOW = 5
#: Alarms that stay below the table.
SHOWN_ALARMS = 4
#: Rows below the reward parts: (metric, name shown, unit, whether more of it is better, worse, or neither).
_ROWS: tuple[tuple[str, str, str, int], ...] = (
    ("completion_length", "length", "tokens", 0),
    ("entropy", "entropy", "nats", 0),
    ("kl", "KL to reference", "", 0),
    ("zero_variance_groups", "groups without spread", "share", -1),
    ("truncated", "cut at the limit", "share", -1),
    ("parse_failures", "answers that do not parse", "share", -1),
    ("tools/call_rate", "episodes with a call", "share", 0),
    ("tools/failure_rate", "calls that fail", "share", -1),
    ("tools/over_budget", "episodes cut off", "share", -1),
    ("step_seconds", "seconds per step", "s", 0),
)
#: The same of tools in a line: (metric, name shown).
_TOOLS = (("tools/call_rate", "called"), ("tools/failure_rate", "failed"), ("tools/over_budget", "cut off"))


class LiveTable:
    """Shows progress; a context manager around the training loop.

    Args:
        total_steps: optimizer steps of the whole run.
        reward_names: reward parts in the order of the table.
        console: where to write; default standard output. A console that is no terminal gets plain lines.
    """

    def __init__(self, total_steps: int, reward_names: Sequence[str], console: Console | None = None) -> None:
        self.total_steps = total_steps
        self.reward_names = tuple(reward_names)
        self.console = console or Console()
        self.step = 0
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, deque[float]] = {}
        self._alarms: deque[str] = deque(maxlen=SHOWN_ALARMS)
        self._started = time.monotonic()
        self._started_at: int | None = None
        self._live: Live | None = None

    def __enter__(self) -> LiveTable:
        self._started = time.monotonic()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; names that are not known are passed over, non-finite values too."""
        if self._started_at is None:
            self._started_at = max(0, step - 1)  # a resumed run starts in the middle
        self.step = step
        for name, value in metrics.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            first = self._first.setdefault(name, [])
            if len(first) < WINDOW:
                first.append(float(value))
            self._recent.setdefault(name, deque(maxlen=WINDOW)).append(float(value))
        if self._live is None:
            self._print(self.line(metrics))
        else:
            self._live.refresh()

    def alarm(self, text: str) -> None:
        """Show a warning below the table, or at once as a line of its own."""
        self._alarms.append(text)
        if self._live is None:
            self._print(f"ALARM {text}")
        else:
            self._live.refresh()

    def note(self, text: str) -> None:
        """Print a line that stays, above the table."""
        if self._live is None:
            self._print(text)
        else:
            self._live.console.print(Text(text), soft_wrap=True, highlight=False)

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, from recent step times where they are logged."""
        left = max(0, self.total_steps - self.step)
        if times := self._recent.get("step_seconds"):
            return left * sum(times) / len(times)
        done = self.step - (self._started_at or 0)
        if self._started_at is None or done <= 0:
            return None
        return left * (time.monotonic() - self._started) / done

    def line(self, metrics: Mapping[str, float]) -> str:
        """One compact line, e.g. `step 12/80  reward 0.53 (iou 0.41, format 0.98)  2.1 s/step  eta 2m20s`."""
        parts = [f"step {self.step}/{self.total_steps}"]
        if "curriculum/phase" in metrics:
            parts.append(f"phase {metrics['curriculum/phase']:.0f}")
        rewards = ", ".join(
            f"{name} {show(metrics[f'rewards/{name}'])}" for name in self.reward_names if f"rewards/{name}" in metrics
        )
        if "reward" in metrics:
            parts.append(f"reward {show(metrics['reward'])}" + (f" ({rewards})" if rewards else ""))
        if "completion_length" in metrics:
            parts.append(f"len {metrics['completion_length']:.0f}")
        for name, shown in (
            ("zero_variance_groups", "zero-var"),
            ("truncated", "trunc"),
            ("parse_failures", "unparsed"),
        ):
            if name in metrics:
                parts.append(f"{shown} {show(metrics[name])}")
        told = [
            f"{shown} {show(metrics[name])}" for name, shown in _TOOLS if math.isfinite(metrics.get(name, math.nan))
        ]
        if told:
            parts.append(f"tools {', '.join(told)}")
        parts += [f"{name} {show(value)}" for name, value in metrics.items() if name.startswith("eval/")]
        if "step_seconds" in metrics:
            parts.append(f"{metrics['step_seconds']:.1f} s/step")
        left = self.seconds_left()
        if left is not None and self.step < self.total_steps:
            parts.append(f"eta {show_time(left)}")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """The table as rich draws it."""
        head = Table.grid(padding=(0, 2))
        left = self.seconds_left()
        head.add_row(
            Text(f"step {self.step}/{self.total_steps}", style="bold"),
            ProgressBar(total=max(1, self.total_steps), completed=self.step, width=40),
            Text(f"{show_time(time.monotonic() - self._started)} so far"),
            Text("" if left is None else f"{show_time(left)} left", style="bold"),
        )
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for title in ("now", "since start"):
            table.add_column(title, justify="right", min_width=9)
        table.add_column("", style="dim")
        self._row(table, "reward", "reward", "", 1, style="bold")
        for name in self.reward_names:
            self._row(table, f"rewards/{name}", f"  {name}", "", 1)
        for name, shown, unit, better in _ROWS:
            self._row(table, name, shown, unit, better)
        for name in self._recent:
            if name.startswith("eval/"):
                self._row(table, name, f"held-out {name.removeprefix('eval/')}", "", 1, latest=True)
        alarms = [Text(f"⚠ {text}", style="yellow") for text in self._alarms]
        return Group(head, Text(), table, *([Text(), *alarms] if alarms else []))

    def _row(
        self,
        table: Table,
        metric: str,
        shown: str,
        unit: str,
        better: int,
        style: str = "",
        latest: bool = False,
    ) -> None:
        """Add a metric that has been seen: recent mean (`latest`: last value), change since the start."""
        recent = self._recent.get(metric)
        if not recent:
            return
        first = self._first[metric]
        now = recent[-1] if latest else sum(recent) / len(recent)
        change = now - (first[0] if latest else sum(first) / len(first))
        color = "" if not better or abs(change) < 5e-4 else "green" if change * better > 0 else "red"
        table.add_row(
            Text(shown, style=style),
            Text(show(now), style=style),
            Text(f"{change:+.3g}", style=color),
            Text(unit),
        )

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True, highlight=False)


def show(value: float) -> str:
    """Two decimals, one from ten on, none from a hundred on."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def show_time(seconds: float) -> str:
    """`45s`, `2m20s` or `3h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
