"""Which curves a report has."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.looking.charts import Chart
from rlkit.looking.panels import SECTIONS, charts, matching
from rlkit.looking.runs import Seen, grouped, see
from tests.looking.made import make_run


def by_title(*folders: Path) -> dict[str, Chart]:
    return {chart.title: chart for _, some in charts(grouped([see(f) for f in folders])) for chart in some}


def test_one_run_shows_all_metrics_of_a_panel_together(tmp_path: Path) -> None:
    shown = by_title(make_run(tmp_path, "run"))
    assert [line.label for line in shown["Share of the gradient"].lines] == ["KL_k2(ref)", "PPOClip"]
    assert [line.label for line in shown["Seconds of a step by stage"].lines] == ["generate", "update"]
    reward = shown["Reward in training"].lines[0]
    assert reward.points[0] == (1, 0.1)
    assert reward.band[0] == pytest.approx((1, 0.1 - 2 * 0.5 / 5, 0.1 + 2 * 0.5 / 5)), "0.5 / sqrt(25), twice"
    drift = shown["KL to the reference, and from the start model"].lines[-1]
    assert drift.label == "drift/start" and drift.band[0] == pytest.approx((1, 0.0, 0.04))
    score = shown["Held-out score"].lines[0]
    assert score.points == [(0.0, 0.25), (4.0, 0.75)] and score.band[1] == pytest.approx((4.0, 0.65, 0.85))
    assert shown["Reward against KL"].lines[0].points[3] == (1.0, 0.4)


def test_seeds_are_a_mean_with_their_range(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, f"a{k}", seed=k) for k in (1, 2, 3)]
    shown = by_title(*folders, make_run(tmp_path, "b", lr=1e-4))
    *faint, mean, other = shown["Reward in training"].lines
    assert [line.faint for line in faint] == [True] * 3 and mean.label == "a1 (3 runs)" and other.label == "b"
    assert mean.points[0] == pytest.approx((1, 0.12)) and mean.band[0] == pytest.approx((1, 0.11, 0.13))
    assert {line.style for line in faint} == {mean.style} != {other.style}
    assert "gradient/share/PPOClip" in shown, "several groups are compared metric by metric"


def test_no_metric_stands_in_two_panels() -> None:
    names = "reward/mean reward/std reward/correct kl/ref kl_by/position/q1 coef/KL coef/KL/held time/step time/update".split()
    run = Seen(Path("x"), {}, {}, [{"step": 1, **dict.fromkeys(names, 1.0)}], [], [], [], [], None)
    found = [name for section in SECTIONS for panel in section.panels for name in matching(panel, [run])]
    assert len(found) == len(set(found)) and "coef/KL/held" not in found and "reward/correct" in found
