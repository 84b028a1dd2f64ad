"""Every algorithm of configs/algorithms: at most 25 lines, says what it is, and runs."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.objective.oracle import dishonest, examine_all

CONFIGS = sorted(Path("configs/algorithms").glob("*.yaml"))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short ``rlkit train configs/algorithms/grpo.yaml`` leaves: ``start`` is warmed up, ``final`` trained."""
    out = tmp_path_factory.mktemp("teacher")
    rk.train(rk.load("configs/algorithms/grpo.yaml", [f"out={out}", "steps=3", "eval.prompts=4"]), quiet=True)
    return out / "grpo"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_algorithm(path: Path, tmp_path: Path, grpo: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 25 and lines[0].startswith("# ")
    overrides = [f"out={tmp_path}", "steps=2", "model.make=null", "model.warm_up=null", f"model.path={grpo / 'start'}", "eval.prompts=4", "rollout.max_waste=50"]
    run = rk.load(path, overrides + ([f"teacher.path={grpo / 'final'}"] if "teacher:" in path.read_text() else []))
    assert run.name == path.stem
    if path.stem == "astar_po":
        stage_1 = tmp_path / "astar.jsonl"
        assert main(["filter", "configs/tasks/sorting.yaml", "objective=[PPOClip]", "data.size=60", "--model", str(grpo / "start"), "-n", "8",
                     "--soft-value", "0.5", "--out", str(stage_1)]) == 0
        assert all(0 < json.loads(line)["v_star"] <= 1 for line in stage_1.read_text().splitlines())
        run = rk.load(path, [*overrides, f"data.train={stage_1}", "data.test=null", "rollout.prompts=16", "learner.minibatches=1"])
    if run.data.stored is not None:
        stored = tmp_path / "stored.jsonl"
        assert main(["filter", str(path), *overrides, "data.size=40", "data.stored=null", "objective=[PPOClip]", "--model", str(grpo / "start"), "-n", "8",
                     "--out", str(tmp_path / "kept.jsonl"), "--responses", str(stored)]) == 0
        run = rk.load(path, [*overrides, f"data.stored.path={stored}", "data.stored.per_step=5", "learner.minibatches=2"])
    assert not dishonest(examine_all(run.objective, run.reward_penalties), off_policy=False)
    rows = [json.loads(line) for line in (rk.train(run, quiet=True) / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(math.isfinite(r["loss/total"]) for r in rows) and rows[0]["learner/grad_norm"] > 0


def test_a_missing_teacher_is_named_with_its_place(tmp_path: Path) -> None:
    run = rk.load("configs/algorithms/opd.yaml", [f"out={tmp_path}", "teacher.path=no/such/model"])
    with pytest.raises(ValueError, match="no/such/model"):
        rk.train(run, quiet=True)
