"""A sweep: what runs are made of a command, that it continues, and what is compared at its end."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.commands.sweep import Swept, named, outcomes, planned, table, values_of


@pytest.fixture
def config(small: dict[str, Any], tmp_path: Path) -> Path:
    made = {
        **small,
        "steps": 1,
        "rewards": ["task"],
        "data": {**small["data"], "size": 8},
        "rollout": {"engine": "hf", "prompts": 2, "n": 2},
    }
    (tmp_path / "small.yaml").write_text(rk.to_yaml(rk.load(made)))
    return tmp_path / "small.yaml"


def test_commas_separate_values_but_not_inside_of_brackets() -> None:
    assert values_of("1e-6,1e-5") == ["1e-6", "1e-5"]
    assert values_of("[a,b],{c: 1, d: 2},'x,y'") == ["[a,b]", "{c: 1, d: 2}", "'x,y'"]
    assert values_of("one") == ["one"] and values_of("") == [""]


def test_every_combination_with_every_seed(config: Path, tmp_path: Path) -> None:
    runs = planned(config, ["learner.lr=1e-4,1e-3", "objective.1.coef=0.1,0.2", "steps=2"], 3, None)
    assert len(runs) == 12 and len({r.folder for r in runs}) == 12
    first = runs[0]
    assert first.folder == tmp_path / "runs" / "small-sweep" / "lr=1e-4_coef=0.1_seed=0"
    assert (first.run.learner.lr, first.run.seed, first.run.steps) == (1e-4, 0, 2)
    assert first.label == "learner.lr=1e-4, objective.1.coef=0.1, seed=0"
    assert {r.seed for r in runs} == {0, 1, 2} and {r.run.learner.lr for r in runs} == {1e-4, 1e-3}


def test_names_are_folders_that_differ() -> None:
    assert named(["data.train=a/b.jsonl"], 1) == "train=a_b.jsonl_seed=1"
    two = {named([f"model.path={'x' * 300}{k}"], 0) for k in range(2)}
    assert len(two) == 2 and all(len(name) < 160 for name in two), "what is too long has a checksum"
    same = {named([f"objective.0.coef={a}", f"objective.1.coef={b}"], 0) for a, b in ((1, 2), (2, 1))}
    assert len(same) == 2


def test_what_is_wrong_with_any_run_is_said_before_one_starts(config: Path, tmp_path: Path) -> None:
    with pytest.raises(rk.ConfigError) as wrong:
        rk.sweep(config, ["learner.lr=1e-4,fast", "rollout.n=2,0"])
    said = str(wrong.value)
    assert "learner.lr=fast, rollout.n=2, seed=0: " in said and "rollout.n: is 0; it must be at least 1" in said
    with pytest.raises(rk.ConfigError, match=r"learner\.lr has an empty value"):
        rk.sweep(config, ["learner.lr=1e-4,,1e-3"])
    with pytest.raises(rk.ConfigError, match="two runs have the same settings"):
        rk.sweep(config, ["learner.lr=1e-4,1e-4"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_has_ended_is_not_trained_again(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two runs is there already; the other is trained by a process of its own, and both are compared."""
    folder = tmp_path / "s"
    (ended, todo) = planned(config, ["learner.lr=1e-4,1e-3"], 1, folder)
    left(ended.folder, 0.5, [True, False, False, False], ended.run)
    assert main(["sweep", str(config), "learner.lr=1e-4,1e-3", "--at-once", "2", "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        "2 runs in" in said and "1 of them done already" in said and "[1/1] learner.lr=1e-3, seed=0: held-out" in said
    )
    assert "held-out score at step 1" in todo.log.read_text() and not ended.log.exists()
    assert todo.done and (folder / "report.html").stat().st_size > 10_000
    with pytest.raises(rk.CheckpointError, match="has a run of another configuration"):
        rk.sweep(config, ["learner.lr=1e-4,1e-3", "objective.1.coef=0.3"], out=folder)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(config: Path, tmp_path: Path) -> None:
    told = list[str]()
    found = rk.sweep(config, ["model.path=nowhere"], out=tmp_path / "s", say=told.append)
    assert [r.code for r in found.failed] == [2] and "no run has come to its end" in str(found)
    assert "failed: error: " in told[-1] and "nowhere" in told[-1] and found.report is None


def left(folder: Path, score: float, solved: list[bool], run: rk.Run) -> Path:
    """What a run leaves of its scores."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(rk.to_yaml(run))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "eval.jsonl").write_text(
        json.dumps({"step": 1, "score": score, "solved": solved, "prompts": len(solved)}) + "\n"
    )
    (folder / "summary.json").write_text('{"steps": 1}')
    return folder


def test_differences_are_paired_by_seed_and_by_prompt(config: Path, tmp_path: Path) -> None:
    base, made = rk.load(config), list[Swept]()
    scores = {"lr=1": (0.5, 0.6, 0.7), "lr=2": (0.6, 0.72, 0.77)}  # differences 0.1, 0.12, 0.07
    for settings, values in scores.items():
        for seed, score in enumerate(values):
            run = base.replace(name=f"{settings}-{seed}", seed=seed)
            solved = [True, settings == "lr=2", False, False]
            made.append(Swept((settings,), seed, left(tmp_path / run.name, score, solved, run), run))
    first, second = outcomes(made)
    assert math.isnan(first.difference) and second.difference == pytest.approx(0.29 / 3)
    # s = 0.0251661, t(2) = 4.302653: half of the interval is t s / sqrt(3)
    assert second.reach == pytest.approx(4.302653 * 0.0251661 / math.sqrt(3), rel=1e-4)
    assert second.prompts is not None and (second.prompts.prompts, len(second.prompts.gained)) == (12, 3)
    assert second.prompts.p_permutation == pytest.approx(0.25), "three prompts flipped, all one way: 2 / 2^3"
    lines = table((first, second)).splitlines()
    assert lines[1].startswith("lr=1") and "+0.0967" in lines[2] and "+0.0342 to +0.1592" in lines[2]
    lonely = table((dataclasses.replace(first, scores={0: 0.5}),)).splitlines()
    assert len(lonely) == 2 and "0.5000" in lonely[1]
    assert table(()) == "no run has come to its end"
