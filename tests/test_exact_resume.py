"""A run that is killed and resumed is the run that was not: rows, responses and weights are equal bit by bit, in every mode."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkit as rk
from rlkit import checks
from rlkit.config import to_yaml
from rlkit.data.stored import write_stored
from rlkit.errors import CheckpointError
from rlkit.files import read_rows
from rlkit.resume import compare
from rlkit.rollout import hf
from rlkit.types import Prompt, Rollout, Sampling
from tests.test_resume import around

pytestmark = pytest.mark.slow

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5}
KL = {"type": "KL", "estimator": "k2"}


def objective(coef: Any) -> dict[str, Any]:
    return {"objective": [{"type": "PPOClip"}, {**KL, "coef": coef}]}


def sampler(**spec: Any) -> dict[str, Any]:
    return {"data": {"sampler": spec}}


MODES: dict[str, dict[str, Any]] = {
    "on policy, evaluated at the checkpoint's step": {"eval": {"every": 1, "prompts": 4}},
    "one step ahead": {"rollout": {"max_lag": 1}},
    "three steps ahead, dropped and replaced": {
        "rollout": {"max_lag": 3},
        "data": {"drop": [{"type": "ZeroVariance"}, {"type": "Overlong", "share": 0.99}]},
    },
    "without refill": {"rollout": {"max_lag": 1}, "data": {"drop": [{"type": "Overlong"}], "refill": False}},
    "replaced ahead of time": {
        "rollout": {"max_lag": 1},
        "data": {"drop": [{"type": "Overlong", "share": 0.99}], "refill": "ahead"},
    },
    "admitted": {
        "data": {"admit": {"type": "GreedyUnsolved", "solved": 0.5}},
        "rewards": ["tests/rewards/examples.py:by_prompt"],
    },
    "interrupted": {
        "rollout": {"interrupt": {"low": 1, "high": 3, "text": ">", "until": None}},
        "sampling": {"max_tokens": 6},
    },
    "longer and longer": {"rollout": {"max_lag": 1, "lengths": {"limits": [2, 4, 6], "every": 2, "min_entropy": 0.0}}},
    "Shuffle": {"data": {"size": 10, "sampler": {"type": "Shuffle", "retire_above": 0.5}}},
    "GaussianDifficulty": sampler(type="GaussianDifficulty"),
    "Learnability": {**sampler(type="Learnability"), "rollout": {"max_lag": 1}},
    "Thompson": {**sampler(type="Thompson"), "rollout": {"max_lag": 1}},
    "Pools": sampler(type="Pools", column="level", order=[1, 2], after=6, keep=0.3),
    "Proportions": sampler(type="Proportions", column="level", weights={"1": 1.0, "2": 3.0}),
    "LoRA that asks for dropout": {"peft": LORA},
    "EMA": {"reference": {"type": "EMA", "decay": 0.5}},
    "HardReset": {
        "reference": {"type": "HardReset", "every": 4, "patience": 2, "kl_above": 0.0, "reset_optimizer": True},
        "eval": {"every": 1, "prompts": 4},
    },
    "ElasticReset": {"reference": {"type": "ElasticReset", "every": 4, "decay": 0.5}, "peft": LORA},
    "stored rows": {
        "data": {"stored": {"path": "stored.jsonl", "per_step": 3}},
        "objective": [{"type": "PPOClip"}, {"type": "Divergence", "f": "forward_ukl", "on": "reference", "coef": 0.1}],
    },
    "a critic": {
        "critic": {"lr": 1e-3},
        "advantage": {"type": "GAE"},
        "objective": [{"type": "PPOClip"}, {"type": "ValueMSE", "coef": 0.5}],
    },
    "minibatches, epochs, schedule": {
        "learner": {"minibatches": 2, "epochs": 2, "schedule": "cosine", "warmup_steps": 9, "lr": 1e-3}
    },
    "AdaptiveKL": objective({"type": "AdaptiveKL", "target": 0.01, "horizon": 100.0}),
    "KLBudget": objective({"type": "KLBudget", "target": 0.01}),
    "DualAscent": objective({"type": "DualAscent", "target": 0.001, "lr": 1.0}),
    "EntropyTarget": {
        "objective": [{"type": "PPOClip"}, {"type": "Entropy", "coef": {"type": "EntropyTarget", "target": 3.0}}]
    },
    "rewards that fail": {"rewards": ["tests/rewards/examples.py:fails_at_times"], "on_reward_error": "mask"},
    "rewards that are late": {"rewards": ["tests/rewards/examples.py:late"], "rollout": {"max_lag": 1}},
}


def settings(base: dict[str, Any], mode: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The small run with a mode's sections laid over its own."""
    out = {
        **base,
        "steps": 6,
        "eval": {"prompts": 0},
        "probe": {"every": 0, "final": False},
        "checkpoint": {"every": 3, "minutes": None},
        "log": {"tensorboard": False, "rollouts": 64, "drift": 2, "breakdown": 3},
        "reference": {"type": "Frozen"},
    }
    out["data"] = {**base["data"], "task": {"type": "Sorting", "levels": [1, 2]}}
    for key, value in mode.items():
        out[key] = {**out[key], **value} if key in ("data", "rollout", "learner") else value
    if "stored" in out["data"]:
        rows = [
            Rollout(Prompt(f"s{k}", (3, 4 + k), f"{k}>"), [4, 5 + k], [True] * 2, [-2.0, -1.5 - k], [0] * 2, "stop")
            for k in range(7)
        ]
        write_stored(folder / "stored.jsonl", rows)
        out["data"]["stored"] = {**out["data"]["stored"], "path": str(folder / "stored.jsonl")}
    return out


CLOCKS = ("time/", "speed/", "memory/", "idle/")


def history(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves and that is no time and no memory."""

    def rows(name: str) -> list[dict[str, Any]]:
        kept = [
            {k: v for k, v in r.items() if not k.startswith((*CLOCKS, "seconds"))} for r in read_rows(folder / name)
        ]
        return json.loads(json.dumps(kept).replace("NaN", '"nan"'))  # type: ignore[no-any-return]

    return {name: rows(f"{name}.jsonl") for name in ("metrics", "rollouts", "eval", "kl_tokens")}


def same(whole: Path, resumed: Path) -> None:
    one, two = history(whole), history(resumed)
    for name, rows in one.items():
        assert len(rows) == len(two[name]), name
        for a, b in zip(rows, two[name], strict=True):
            assert {k: (v, b.get(k)) for k, v in a.items() if b.get(k) != v} == {} and a.keys() == b.keys(), (
                name,
                a["step"],
            )
    a, b = (load_file(f / "final" / "model.safetensors") for f in (whole, resumed))
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []


def killed_at(step: int, copy: Path) -> Any:
    """Copies the run folder within a step: what a SIGKILL would leave."""

    def hook(s: Any, now: int) -> None:
        if now == step:
            shutil.copytree(s.record.folder, copy, ignore=shutil.ignore_patterns(".lock"))

    return around("summarize", hook)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_and_resumed_run_is_bit_equal(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    run = rk.load(settings(small, MODES[mode], tmp_path))
    monkeypatch.setattr(hf, "MAX_ROWS", 1)  # each request is a batch: what is computed does not depend on others
    monkeypatch.setattr(checks, "CHECKS", ())  # they refuse to run ahead in one process: there is nothing to gain
    if run.rollout.max_lag:
        monkeypatch.setattr(rk.Run, "shares_weights", False)  # an engine that runs ahead has its own
    with killed_at(5, tmp_path / "killed" / "small"):
        whole = rk.train(run, quiet=True)
    resumed = rk.train(run.replace(out=str(tmp_path / "killed")), resume=True, quiet=True)
    same(whole, resumed)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_another_number_of_ranks_is_refused_by_name_where_each_has_shards(
    small: dict[str, Any], tmp_path: Path, stage: int
) -> None:
    def run(ranks: int) -> rk.Run:
        return rk.load({**small, "cluster": {"learners": ranks}, "deepspeed": {"zero_optimization": {"stage": stage}}})

    (tmp_path / "config.yaml").write_text(to_yaml(run(2)))
    if stage:
        with pytest.raises(CheckpointError, match=r"cluster\.learners was 2 and is now 1"):
            compare(tmp_path, run(1))
    else:
        assert compare(tmp_path, run(1)) == {"cluster.learners": (2, 1)}


def test_what_was_asked_before_a_weight_update_is_answered_by_the_old_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "MAX_ROWS", 1)  # eight batches, one after the other
    engine = hf.HFEngine(str(tiny))
    with ThreadPoolExecutor(10) as threads:

        def ask(k: int) -> Any:
            return threads.submit(engine.generate, Prompt(str(k), (3, 4), ""), 1, Sampling(seed=0, max_tokens=8))

        with engine._lock:
            before = [ask(k) for k in range(8)]
            while len(engine._pending._open) < 8:
                time.sleep(0.01)
            update = threads.submit(engine.begin_update, "wait")
        update.result(30)
        after = ask(8)
        engine.end_update(1)
        versions = [{v for r in x.result(30) for v in r.version} for x in (*before, after)]
    engine.close()
    assert versions == [{0}] * 8 + [{1}]
