"""Exact resume on Ray with two vLLM engines and two DeepSpeed ranks that run ahead; and with other numbers of engines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import rlkit as rk
from rlkit.run import Cluster
from tests.test_exact_resume import history, killed_at, same, settings

MODE = {
    "rollout": {"engine": "vllm", "max_lag": 1},
    "sampling": {"max_tokens": 8},
    "reference": {"type": "EMA", "decay": 0.5},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "data": {"drop": [{"type": "ZeroVariance"}], "sampler": {"type": "Thompson"}},
}


def test_a_run_on_ray_is_resumed_exactly_and_by_fewer_engines_within_rounding(
    small: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    alone = {"max_num_seqs": 1}  # one sequence at a time: what vLLM computes depends on what it runs beside
    cluster = {"cpus": 0.3, "engines": 2, "learners": 2}
    run = rk.load(settings({**small, "cluster": cluster, "vllm": alone}, MODE, tmp_path))
    copy = tmp_path / "killed" / "small"
    with killed_at(5, copy):
        whole = rk.train(run, quiet=True)
    assert [r["rollout/lag_max"] for r in history(whole)["metrics"]] == [0, 1, 1, 1, 1, 1]
    shutil.copytree(copy, tmp_path / "fewer" / "small")
    same(whole, rk.train(run.replace(out=str(tmp_path / "killed")), resume=True, quiet=True))

    fewer = run.replace(out=str(tmp_path / "fewer"), vllm={}, cluster=Cluster(cpus=0.3, learners=2))
    other = rk.train(fewer, resume=True, quiet=True)
    shown = [[(r["step"], r["response"], r["version"]) for r in history(f)["rollouts"]] for f in (whole, other)]
    assert shown[0] == shown[1]
    for name, value in load_file(other / "final" / "model.safetensors").items():
        assert value.numpy() == pytest.approx(load_file(whole / "final" / "model.safetensors")[name].numpy(), abs=1e-4)
