"""Runs as their folders tell them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.errors import ConfigError
from rlkit.looking import runs
from rlkit.looking.runs import differing, grouped, responses, see
from rlkit.record.alarms import Alarms
from tests.looking.made import make_run, response, rows


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path: Path) -> None:
    some = [see(make_run(tmp_path, f"r{k}", seed=k % 2, lr=lr)) for k, lr in enumerate((1e-3, 1e-3, 1e-4))]
    groups = grouped(some)
    assert [[run.name for run in group.runs] for group in groups] == [["r0", "r1"], ["r2"]]
    assert [group.label for group in groups] == ["r0", "r2"] and differing(some) == ["learner.lr", "name", "seed"]


def test_groups_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    some = [
        see(make_run(tmp_path / f"{k}", "run", lr=lr, steps=n))
        for k, (lr, n) in enumerate([(1e-3, 4), (1e-4, 4), (1e-3, 5)])
    ]
    assert [group.label for group in grouped(some[:2])] == ["learner.lr=0.001", "learner.lr=0.0001"]
    told_apart = ["learner.lr=0.001, steps=4", "learner.lr=0.0001, steps=4", "learner.lr=0.001, steps=5"]
    assert [group.label for group in grouped(some)] == told_apart


def test_a_step_that_was_made_again_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps({"step": 2, "reward/mean": 0.9}) + "\n")
    assert see(folder).series("reward/mean") == [(1, 0.1), (2, 0.9), (3, pytest.approx(0.3)), (4, 0.4)]


def test_a_value_knows_where_it_was_read(tmp_path: Path) -> None:
    run = see(make_run(tmp_path, "run"))
    assert [run.origin(key) for key in ("seed", "learner.lr", "steps")] == ["command line", "c.yaml:4", "default"]
    (run.folder / "environment.jsonl").unlink()
    assert see(run.folder).origin("seed") == "?", "earlier versions wrote none"


def test_a_number_that_was_not_finite_is_left_out(tmp_path: Path) -> None:
    run = see(make_run(tmp_path, "run"))
    assert run.series("kl/ref") == [(1, 0.01), (3, 0.03), (4, 0.04)] and run.last("kl/ref") == 0.04
    assert run.last("nothing") is None and run.ended and not see(make_run(tmp_path, "new", ended=False)).ended


def test_alarms_are_told_again_as_the_run_told_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run", steps=80)
    said: list[str] = []
    alarms = Alarms()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        alarms.observe(row["step"], {k: v for k, v in row.items() if v is not None}, said.append)
    assert [told.text for told in see(folder).told] == said and any("truncated" in text for text in said)


def test_of_a_large_file_the_responses_of_every_so_many_steps_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(tmp_path / "rollouts.jsonl", [response(step, "p", 0.0) for step in range(0, 200, 20) for _ in range(2)])
    assert len(responses(tmp_path / "rollouts.jsonl")) == 20 and responses(tmp_path / "nothing.jsonl") == []
    monkeypatch.setattr(runs, "MOST", (tmp_path / "rollouts.jsonl").stat().st_size // 3 + 10)
    assert [row["step"] for row in responses(tmp_path / "rollouts.jsonl")] == [0, 0, 60, 60, 120, 120, 180, 180]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config\.yaml"):
        see(tmp_path)
