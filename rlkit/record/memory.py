"""Memory in use: now, and at most during a stage. MiB; on a GPU what torch has allocated, on a CPU what the process holds."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> float:
    """A field of Linux's ``/proc/self/status``; on other systems the most that the process ever held."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return (
        next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")) / 2**10
    )


def resident() -> float:
    return _status("VmRSS")


def peak() -> float:
    """The most since the last :func:`reset_peak`; where a process cannot reset it, since it started."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmHWM")


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")  # proc(5): resets the peak of resident memory


def release() -> None:
    """Gives back to the system what was freed. glibc keeps it for the thread that allocated it, where no other thread can use it."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class Peaks:
    """The most memory of each stage since the last :meth:`take`."""

    def __init__(self) -> None:
        self._mib: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        reset_peak()
        try:
            yield
        finally:
            self._mib[stage] = max(self._mib.get(stage, 0.0), peak())

    def take(self) -> dict[str, float]:
        mib, self._mib = self._mib, {}
        return mib
