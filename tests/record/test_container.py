"""Limits of a container, in the files of both kinds of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from rlkit.cluster.ray import _store_bytes
from rlkit.planning import Machine
from rlkit.record import container
from rlkit.record.container import Limits, limits, memory


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_groups_of_the_second_kind_and_those_around_them(tmp_path: Path) -> None:
    own = written(tmp_path, {"own": "0::/slice/job"}) / "own"
    root = tmp_path / "cgroup"
    assert limits(root, own) == Limits()
    written(root, {"slice/job/memory.max": "max", "slice/job/cpu.max": "max 100000"})
    assert limits(root, own) == Limits()
    written(root, {"slice/memory.max": "4096", "slice/memory.current": "3000", "slice/job/cpu.max": "150000 100000"})
    assert limits(root, own) == Limits(4096, 1096, 1.5)
    written(
        root, {"slice/memory.stat": "anon 900\ninactive_file 2000", "memory.max": "8192", "cpu.max": "50000 100000"}
    )
    assert limits(root, own) == Limits(4096, 3096, 0.5)
    assert limits(root, tmp_path / "none") == Limits(8192, 8192, 0.5)  # its own is not told


def test_groups_of_the_first_kind(tmp_path: Path) -> None:
    own = written(tmp_path, {"own": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n2:cpuset:/\n0::/docker/a"}) / "own"
    root = tmp_path / "cgroup"
    written(
        root,
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/docker/a/memory.limit_in_bytes": "4096",
            "memory/docker/a/memory.usage_in_bytes": "5000",
            "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert limits(root, own) == Limits(4096, 0, 2.5)
    written(tmp_path, {"own": "4:memory:/../b\n3:cpu:/x\nnonsense"})  # a path outside of what the container sees
    assert limits(root, own) == Limits()


def test_a_container_has_less_memory_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    most, free = memory(Limits())
    assert most == psutil.virtual_memory().total >= free > 2**20
    assert memory(Limits(memory=4096)) == (4096, pytest.approx(free, rel=0.5))
    assert memory(Limits(memory=2**60, left=5)) == (most, 5)

    def bare() -> None:
        raise KeyError(b"MemAvailable:")  # a container's own /proc/meminfo need not have every line

    monkeypatch.setattr(psutil, "virtual_memory", bare)
    assert memory(Limits())[0] > 2**30 and memory(Limits())[1] > 2**20
    # Plan, doctor and Ray's object store go by the same number.
    monkeypatch.setattr(container, "limits", lambda: Limits(memory=4 << 30))
    assert Machine.here().memory == 4 << 30 and _store_bytes() == (4 << 30) // 10
