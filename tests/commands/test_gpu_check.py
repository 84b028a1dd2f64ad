"""The report that is made on machines with GPUs, in its short form on whatever is here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.commands import gpu_check
from rlkit.commands.gpu_check import Given, Skipped

pytestmark = pytest.mark.slow


def test_the_short_form_passes_here_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    assert main(["doctor", "--gpu", "--short", "--out", str(tmp_path / "report.md")]) == 0
    page = (tmp_path / "report.md").read_text()
    for name in gpu_check.SHORT:
        assert f"## {name}: passed" in page
    assert "## transfer: skipped\n\nLeft out of the short form." in page and "parity " in page
    assert "| blocks | torch.bfloat16 | 48 |" in page and "shared memory" in page


def test_a_part_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
    report = rk.gpu_check(short=True, say=lambda text: None)
    assert [p.verdict for p in report.parts] == ["failed", "failed", "skipped", "passed"] and not report.passed
    assert "illegal memory access" in str(report) and "Traceback" in report.parts[0].text
    assert report.parts[2].text == "It cannot.\n\nvLLM is not installed."


def test_a_part_has_a_process_of_its_own_where_it_is_not_short(monkeypatch: pytest.MonkeyPatch) -> None:
    part = gpu_check._apart("real_model", Given())
    assert (part.verdict, part.text.split("\n\n")[-1]) == ("skipped", "no --model was given.")
    monkeypatch.setattr(sys, "executable", "false")
    died = gpu_check._apart("real_model", Given())
    assert died.verdict == "failed" and "Its process ended with 1" in died.text
