"""Peak memory of an update on a CPU, measured in a fresh process.

What enters: a side, a case, settings. What leaves: bytes that forward and backward needed beyond what was resident before.

Allocators keep what they have once been given: in a process that has already taken steps, the same update finds its memory
waiting. So each measurement has a process of its own, which prepares one batch without sampling, hands free pages back where
the C library can, notes its resident size, resets the kernel's high-water mark (Linux) and runs the update once.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.sides import Case, Name, Settings, build


def update_peak(name: Name, case: Case, settings: Settings, threads: int) -> int:
    """Bytes of one update beyond those before it, in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(peak_here, name, case, settings, threads).result()


def peak_here(name: Name, case: Case, settings: Settings, threads: int) -> int:
    """The same in this process, which should be new."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        side = build(name, case, replace(settings, beta=0.0), Path(folder), steps=1)
        side.prepare()
        gc.collect()
        before = _reset()
        side.update()
        return _peak() - before


def _reset() -> int:
    """Forget the peak so far; returns bytes resident now, or the peak where the kernel cannot forget."""
    status = Path("/proc/self/status")
    if not status.exists():
        return _peak()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """Most bytes that were resident."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
