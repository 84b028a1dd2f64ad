"""Exact resume on Ray with two vLLM engines and two DeepSpeed ranks that run ahead; and with other numbers of engines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkit as rk
from rlkit.cluster.ray import RayWorkers
from rlkit.run import Cluster
from tests.test_exact_resume import history, killed_at, settings

MODE = {
    "rollout": {"engine": "vllm", "max_lag": 1},
    "sampling": {"max_tokens": 8},
    "reference": {"type": "EMA", "decay": 0.5},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "data": {"drop": [{"type": "ZeroVariance"}], "sampler": {"type": "Thompson"}},
}


def alike(whole: Path, resumed: Path) -> None:
    """The same responses of the same weights, and numbers that are equal within rounding."""
    one, two = history(whole), history(resumed)
    shown = [[(r["step"], r["response"], r["version"], r["reward"]) for r in h["rollouts"]] for h in (one, two)]
    assert shown[0] == shown[1] and len(shown[0]) == 6 * 16
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    weights = load_file(resumed / "final" / "model.safetensors")
    for name, value in load_file(whole / "final" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5)


def test_a_run_on_ray_that_is_ahead_is_resumed_by_as_many_engines_and_by_fewer(
    small: dict[str, Any], tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two ranks is taken to be on a machine that does not see the run folder: what it writes and reads travels."""

    def away(rank: int) -> None:
        monkeypatch.setattr(RayWorkers, "look", lambda self, path: self.away.update({rank: "another"}))

    alone = {"max_num_seqs": 1}  # one sequence at a time: what vLLM computes depends on what it runs beside
    cluster = {"cpus": 0.3, "engines": 2, "learners": 2}
    run = rk.load(settings({**small, "cluster": cluster, "vllm": alone}, MODE, tmp_path))
    copy = tmp_path / "killed" / "small"
    away(0)
    with killed_at(5, copy):
        whole = rk.train(run, quiet=True)
    assert [r["rollout/lag_max"] for r in history(whole)["metrics"]] == [0, 1, 1, 1, 1, 1]
    shutil.copytree(copy, tmp_path / "fewer" / "small")
    away(1)
    alike(whole, rk.train(run.replace(out=str(tmp_path / "killed")), resume=True, quiet=True))
    fewer = run.replace(out=str(tmp_path / "fewer"), vllm={}, cluster=Cluster(cpus=0.3, learners=2))
    alike(whole, rk.train(fewer, resume=True, quiet=True))
