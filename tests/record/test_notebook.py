"""Progress in a notebook is one output that is written again; anywhere else there is none of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkit.record.log import RunLog
from rlkit.record.notebook import Progress, showing
from rlkit.record.section import LogSection


class ZMQInteractiveShell:
    """What the kernel of a notebook calls its shell."""


class Screen:
    """IPython's display, which remembers what it was given."""

    def __init__(self) -> None:
        self.outputs: list[list[Any]] = []

    def display(self, x: Any, display_id: bool) -> Any:
        assert display_id
        self.outputs.append([x])
        return SimpleNamespace(update=self.outputs[-1].append)


def kernel(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Screen:
    screen = Screen()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=screen))
    return screen


def steps(folder: Path, count: int = 40) -> None:
    log = RunLog(LogSection(tensorboard=False), count, folder)
    for step in range(1, count + 1):
        log.progress(step, {"reward/mean": step / count})


def test_a_notebook_has_one_output_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = kernel(monkeypatch, ZMQInteractiveShell())
    steps(tmp_path)
    (shown,) = screen.outputs
    assert len(shown) == 40 and capsys.readouterr().out == "", "nothing is printed beside it"
    lines = repr(shown[-1]).splitlines()
    assert lines[0].split()[:2] == ["step", "reward"] and lines[-1].split()[:2] == ["40/40", "1.000"]
    assert len(lines) == 21, "the head and every twentieth part of the run"
    assert len(repr(shown[2]).splitlines()) == 3, "what stays, and the step of now"
    page = shown[-1]._repr_html_()
    assert '<progress value="40" max="40"' in page and "40/40" in page
    assert "&lt;b&gt;" in Progress(1, 2, ("<b>",))._repr_html_()


def test_elsewhere_a_log_gets_twenty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel(monkeypatch, object())  # IPython in a terminal
    assert showing() is None
    steps(tmp_path)
    assert len(capsys.readouterr().out.strip().splitlines()) == 21
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert showing() is None
