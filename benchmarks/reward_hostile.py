"""What one hostile answer costs each side, measured in a process of its own that is killed after a limit.

What enters: a way of scoring and a hostile completion. What leaves: `Cost`, the seconds of one call and what it was worth.
As a program, `python -m benchmarks.reward_hostile SIDE TEXT`, it makes one easy call, then the hostile one, and prints its
seconds and value as JSON.
"""

from __future__ import annotations

import json
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.reward_sides import MATH_VERIFY, POOL, TRL, Batch, Values, math_verify_own, ours, trl_accuracy

#: Address space of the measured process: a tower of powers may want all there is.
_MEMORY_BYTES = 12 * 2**30
#: For the imports of the measured process, in seconds; they are not measured.
_START_S = 120.0

#: Right answer and completion, by what the completion is.
TEXTS: dict[str, tuple[str, str]] = {
    "tower of powers": ("5", r"<think></think><answer>\boxed{9^{9^{9^9}}}</answer>"),
    "power of a sum": ("x+1", r"<think></think><answer>\boxed{(x+y+z+1)^{200}}</answer>"),
    "long sum": ("5", r"<think></think><answer>\boxed{\sum_{i=1}^{100000} \frac{1}{i}}</answer>"),
    "12 brackets": ("x+1", rf"<think></think><answer>\boxed{{{'(' * 12}1{')' * 12}}}</answer>"),
    "a box opened 1,000 times": ("5", "<think></think><answer>" + r"\boxed{" * 1000 + "</answer>"),
    "1 MB of opened boxes": ("5", r"\boxed{" * 143_000),
    "1 MB of numbers": ("5", "<think></think>" + "$1$ " * 250_000),
}
OFF_THREAD = "TRL, off the main thread"
SIDES = (POOL, TRL, OFF_THREAD, MATH_VERIFY)
_EASY = Batch.of([r"<think></think><answer>\boxed{\frac{1}{2}+x}</answer>"], [r"x+\frac{1}{2}"])


@dataclass(frozen=True)
class Cost:
    """What a hostile answer came to.

    Attributes:
        seconds: of the call; the limit where it was killed.
        worth: its value; `killed`, or how the process died.
    """

    seconds: float
    worth: str

    def __str__(self) -> str:
        if self.worth == "killed":
            return f"> {self.seconds:.0f} s"
        shown = f"{1000 * self.seconds:.0f} ms" if self.seconds < 1 else f"{self.seconds:.1f} s"
        return f"{shown} ({self.worth})"


def cost(side: str, text: str, limit_s: float) -> Cost:
    """Score one of `TEXTS` on one of `SIDES` in a child process."""
    command = [sys.executable, "-m", "benchmarks.reward_hostile", side, text]
    with tempfile.TemporaryFile(mode="w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(child, lines), daemon=True).start()
        try:
            started = lines.get(timeout=_START_S)
            answer = _wait(lines, limit_s) if started else ""
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        problem = (errors.read().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    if not started:
        raise RuntimeError(f"{side} cannot score an easy answer: {problem}")
    if answer is None:
        return Cost(limit_s, "killed")
    seconds, worth = json.loads(answer) if answer else (limit_s, f"died: {problem[:80]}")
    return Cost(seconds, worth)


def _wait(lines: queue.SimpleQueue[str], limit_s: float) -> str | None:
    try:
        return lines.get(timeout=limit_s)
    except queue.Empty:
        return None


def _read_lines(child: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Hand on what a process prints; an empty text at its end, for each of the two lines that it owes."""
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")
    lines.put("")


def _scorer(side: str) -> Callable[[Batch], Values]:
    if side == POOL:
        return ours("math", {"math": {}, "workers": 1})
    return {TRL: trl_accuracy, OFF_THREAD: _off_thread, MATH_VERIFY: math_verify_own}[side]


def _off_thread(batch: Batch) -> Values:
    """TRL's reward as trainers that score in the background call it: there it turns its time limit off."""
    found: list[Values] = []
    thread = threading.Thread(target=lambda: found.append(trl_accuracy(batch)))
    thread.start()
    thread.join()
    return found[0] if found else [None]


def main(side: str, name: str) -> None:
    """One easy call, then the hostile one."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, hard))
    right, text = TEXTS[name]
    batch, score = Batch.of([text], [right]), _scorer(side)
    score(_EASY)
    print("ready", flush=True)
    began = time.perf_counter()
    try:
        (value,) = score(batch)
        worth = "no value" if value is None else f"{value:g}"
    except (MemoryError, RecursionError, OverflowError, ValueError) as error:
        worth = type(error).__name__
    print(json.dumps([time.perf_counter() - began, worth]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
