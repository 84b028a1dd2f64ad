"""What a container lets a process have: Linux's control groups, of both kinds, wherever in their trees the process stands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NONE = 2**60  # bytes: the first kind of groups writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Limits:
    """The tightest of the groups that a process is in; None: no limit.

    Attributes:
        memory: bytes. left: bytes that may still be taken; pages of files that the system would give up count as free. cpus: that many at a
            time, on average.
    """

    memory: int | None = None
    left: int | None = None
    cpus: float | None = None


def limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """Of this process. ``root``: where the groups are mounted. ``own``: which of them it is in."""
    memory, left, cpus = list[int](), list[int](), list[float]()
    for group in _groups(root, own):
        most = _number(group, "memory.max", "memory.limit_in_bytes")
        if most is not None and most < NONE:
            used = _number(group, "memory.current", "memory.usage_in_bytes") or 0
            memory.append(most)
            left.append(max(0, most - used + _cached(group)))
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            cpus.append(quota / period)
        quota, period = _number(group, "cpu.cfs_quota_us") or 0, _number(group, "cpu.cfs_period_us") or 0
        if quota > 0 and period > 0:
            cpus.append(quota / period)
    return Limits(min(memory, default=None), min(left, default=None), min(cpus, default=None))


def memory(given: Limits | None = None) -> tuple[int, int]:
    """(all, free) bytes that the processes of this machine may hold, or of its container, if that is less. ``given``: the container's."""
    import psutil

    container = limits() if given is None else given
    try:
        found = psutil.virtual_memory()
        most, free = found.total, found.available
    except (KeyError, ValueError, OSError):  # /proc/meminfo of some containers lacks lines
        page = os.sysconf("SC_PAGE_SIZE")
        most, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return (
        most if container.memory is None else min(most, container.memory),
        free if container.left is None else min(free, container.left),
    )


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """The folders of the groups, and of those around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, kinds, place = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        tops = [root, root / "unified"] if not kinds else [root / kinds, *(root / kind for kind in kinds.split(","))]
        if kinds and not {"memory", "cpu"} & set(kinds.split(",")):
            continue
        parts = [p for p in place.split("/") if p]
        for top in dict.fromkeys(tops):
            # From outside of a container's own view of the tree, its path cannot be followed.
            for n in range(0 if ".." in parts else len(parts), -1, -1):
                yield top.joinpath(*parts[:n])


def _number(group: Path, *names: str) -> int | None:
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            return int((group / name).read_text())
    return None


def _cached(group: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return 0
