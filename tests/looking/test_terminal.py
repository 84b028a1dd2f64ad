"""A run in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import rlkit as rk
from rlkit.looking.runs import see
from rlkit.looking.terminal import bars, frame
from tests.looking.made import make_run


def test_a_curve_of_one_line() -> None:
    assert bars([(k, float(k)) for k in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert bars([(k, 1.0) for k in range(3)], 8) == "▁▁▁" and bars([], 8) == ""
    assert len(bars([(k, float(k)) for k in range(1000)], 40)) == 40


def test_a_frame_fits_the_terminal_and_says_where_the_run_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run", steps=8)
    for width in (60, 100, 200):
        assert max(map(len, frame(see(folder), width).splitlines())) <= width
    said = frame(see(folder))
    assert "step 8 of 8" in said and "done" in said and "0.250 → 0.750" in said and "0.1 → 0.8" in said
    assert "warning (truncated" in said and "update 2.0 s" in said


def test_it_is_shown_again_until_the_run_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run", ended=False)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (folder / "summary.json").write_text(json.dumps({"steps": 4}))

    shown = list(rk.watch(folder, 60.0, pause=pause))
    assert pauses == [60.0, 60.0] and ["done" in text for text in shown] == [False, False, True]
