"""Runs on rows that are there already, on Ray: learners without an engine, and two ranks that make of pairs what one process does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkit as rk


def test_two_ranks_without_an_engine_train_on_pairs_as_one_process_does(
    small: dict[str, Any], tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{k}{k + 1}>", "chosen": "1" * (1 + k % 3), "rejected": "2" * (1 + k % 4)} for k in range(1, 9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"pairs": {"path": str(tmp_path / "pairs.jsonl"), "test": str(tmp_path / "pairs.jsonl"), "per_step": 5}}
    alone = {
        **{key: small[key] for key in ("out", "model", "log")},
        "name": "alone",
        "steps": 3,
        "data": data,
        "learner": {"lr": 1e-3, "max_tokens": 24},
        "eval": {"every": 2},
        "objective": [{"type": "DPO", "beta": 0.5}, {"type": "NLL", "on": "chosen", "coef": 0.1}],
    }
    want = rk.train(rk.load(alone), quiet=True)
    both = {"cluster": {"learners": 2, "cpus": 0.3, "timeout": 200.0}, "deepspeed": {"zero_optimization": {"stage": 1}}}
    found = rk.train(rk.load({**alone, "name": "both", **both}))
    assert "Starting on Ray: no engine, 2 DeepSpeed ZeRO-1 learner(s)" in capsys.readouterr().out
    names = (
        "loss/DPO",
        "loss/NLL",
        "margin/DPO",
        "accuracy/DPO",
        "nll/rejected",
        "learner/grad_norm",
        "learner/tokens",
    )
    for row, one in zip(found.metrics(), want.metrics(), strict=True):
        assert {k: row[k] for k in names} == pytest.approx({k: one[k] for k in names}, rel=1e-4, abs=1e-5)
    for held, one in zip(found.held_out(), want.held_out(), strict=True):
        assert held.measured == pytest.approx(one.measured, rel=1e-4, abs=1e-5) and held.rows == one.rows == 8
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (want, found))
    assert all(torch.allclose(a[k], b[k], atol=2e-5) for k in a)
