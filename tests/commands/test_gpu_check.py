"""The report that is made on machines with GPUs, in its short form on whatever is here."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.commands import gpu_check
from rlkit.commands.doctor import diagnose
from rlkit.commands.gpu_check import Given, Skipped
from tests.commands.test_doctor import GOOD

pytestmark = pytest.mark.slow


def test_the_short_form_passes_here_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    assert main(["doctor", "--gpu", "--short", "--out", str(tmp_path / "report.md")]) == 0
    page = (tmp_path / "report.md").read_text()
    for name in gpu_check.SHORT:
        assert f"## {name}: passed" in page
    assert "## transfer: skipped\n\nLeft out of the short form." in page and "parity " in page
    assert "| blocks | 3, 3 x 80 | torch.bfloat16 | 48 |" in page and "shared memory" in page


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(given: Given) -> str:
        """It breaks."""
        raise ValueError("CUDA error: an illegal memory access")

    def bfloat16(given: Given) -> str:
        """It differs."""
        raise AssertionError("values differ by 0.3")

    def parity(given: Given) -> str:
        """It cannot."""
        raise Skipped("vLLM is not installed")

    def packing(given: Given) -> str:
        """It can."""
        return "all is well"

    monkeypatch.setattr(gpu_check, "PARTS", (attention, bfloat16, parity, packing))
    out = tmp_path / "report.md"
    found = list[str]()
    report = rk.gpu_check(short=True, say=lambda text: found.append(out.read_text() if out.exists() else ""), out=out)
    assert found[0] == "" and "## attention: failed" in found[1] and "bfloat16" not in found[1].split("| machine |")[0]
    assert out.read_text() == f"{report}\n"
    assert [p.verdict for p in report.parts] == ["failed", "failed", "skipped", "passed"] and not report.passed
    assert "illegal memory access" in str(report) and "Traceback" in report.parts[0].text
    assert report.parts[2].text == "It cannot.\n\nvLLM is not installed."


def test_a_part_has_a_process_of_its_own_where_it_is_not_short(monkeypatch: pytest.MonkeyPatch) -> None:
    part = gpu_check._apart("real_model", Given())
    assert (part.verdict, part.text.split("\n\n")[-1]) == ("skipped", "no --model was given.")
    monkeypatch.setattr(sys, "executable", "false")
    died = gpu_check._apart("real_model", Given())
    assert died.verdict == "failed" and "Its process ended with 1" in died.text


def test_a_part_that_hangs_takes_its_children_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of its own that holds its output open: nobody waits for it, and it does not keep its GPU."""
    script, pid = tmp_path / "part", tmp_path / "pid"
    script.write_text(f"#!/bin/sh\necho it starts\nsleep 600 &\necho $! > {pid}\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(gpu_check, "LIMIT", 2.0)
    hung = gpu_check._apart("transfer", Given())
    assert hung.verdict == "failed" and "did not end within 2 s" in hung.text and "it starts" in hung.text
    left = time.monotonic() + 30  # a signal takes its time
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(pid.read_text()))
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < left
            time.sleep(0.05)


def test_a_way_that_fails_keeps_no_other_from_being_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[dict[str, Any]]()

    def train(settings: dict[str, Any]) -> dict[str, float]:
        tried.append(settings)
        if settings["cluster"].get("transfer") == "gloo":
            raise RuntimeError("NCCL error\nunhandled cuda error")
        return {"probe/mean": 0.0, "probe/max": 0.0}

    monkeypatch.setattr(gpu_check, "_train", train)
    monkeypatch.setattr(gpu_check, "doctor", lambda: diagnose(GOOD))
    part = gpu_check.attempt("transfer", Given())
    assert part.verdict == "failed" and "* gloo: **failed**: RuntimeError: NCCL error unhandled cuda error" in part.text
    assert len(tried) == 7 and [s["cluster"].get("transfer") for s in tried][:3] == ["store", "gloo", "nccl"]
    assert tried[5]["peft"] and tried[6]["deepspeed"] and "* turns, LoRA: parity" in part.text
    alone = dataclasses.replace(GOOD, gpus=(), devices=0)
    monkeypatch.setattr(gpu_check, "doctor", lambda: diagnose(alone))
    tried.clear()
    text = gpu_check.attempt("transfer", Given()).text
    assert len(tried) == 3 and "* nccl: skipped" in text and "* turns, LoRA: skipped, it needs a GPU" in text
