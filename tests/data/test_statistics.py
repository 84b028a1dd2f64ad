"""What is remembered of every prompt."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlkit.data.statistics import COLUMNS, PromptStatistics
from rlkit.types import Prompt
from tests.data.groups import group, prompts


def test_statistics_by_hand(tmp_path: Path) -> None:
    ps = prompts(3)
    known = PromptStatistics(ps, decay=0.5)
    known.step = 4
    known.observe(group(ps[1], [1.0, 0.0, math.nan, 3.0]))
    known.observe(group(ps[1], [0.0, 0.0]))
    known.observe_kl(group(ps[1], [0.0, 0.0]), [0.5, 1.5])
    row = {c: float(known[c][1]) for c in COLUMNS}
    assert row == pytest.approx(
        {
            "groups": 2,
            "responses": 6,
            "failures": 1,
            "passes": 2,
            "pass_rate_ema": 0.5 * (0.25 + 1 / 3),
            "reward_mean": 0.8,
            "reward_square": 2.0,
            "length_mean": 1,
            "kl_mean": 1,
            "kl_responses": 2,
            "last_step": 4,
        }
    )
    assert known.posterior()[0][1] == 3 and known.posterior()[1][1] == 4
    known.save(tmp_path / "p.sqlite")
    known.export(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[2].startswith("p1,2.0,6.0,1.0,2.0")
    again = PromptStatistics(ps)
    again.load(tmp_path / "p.sqlite")
    assert all((again[c] == known[c]).all() for c in COLUMNS)
    with pytest.raises(ValueError, match=r"'p0' is not among them.*another data set"):
        PromptStatistics([Prompt("other", (3,), "")]).load(tmp_path / "p.sqlite")
    (tmp_path / "bad.sqlite").write_text("not a database at all, but long enough to be looked at")
    with pytest.raises(ValueError, match="not a table of prompt statistics"):
        PromptStatistics(ps).load(tmp_path / "bad.sqlite")
