"""A run compares its reference with its start, its engines with its learners, and what it exported with what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rlkit as rk
from rlkit.learner.learner import Learner
from rlkit.model.reference import OwnWeights

pytestmark = pytest.mark.slow


def test_an_export_that_is_not_the_trained_model_ends_in_an_error(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Learner.export

    def damaged(self: Learner, folder: str) -> None:
        right(self, folder)
        file = Path(folder) / "model.safetensors"
        state = load_file(file)
        state["model.layers.0.mlp.up_proj.weight"] = 2 * state["model.layers.0.mlp.up_proj.weight"]
        save_file(state, file, {"format": "pt"})

    monkeypatch.setattr(Learner, "export", damaged)
    with pytest.raises(
        RuntimeError, match=r"export probe: the model in .*final, loaded again .* differs from the trained one by"
    ):
        rk.train(rk.load(small), quiet=True)
    folder = rk.train(rk.load({**small, "name": "unchecked", "probe": {"final": False}}), quiet=True)
    assert json.loads((folder / "summary.json").read_text())["export_gap"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_difference_stands_in_the_summary(small: dict[str, Any], dtype: str) -> None:
    more = {"deepspeed": {"zero_optimization": {"stage": 1}}} if dtype == "bfloat16" else {}
    run = {
        **small,
        "model": {**small["model"], "dtype": dtype},
        "sampling": {"max_tokens": 4, "temperature": 0.7, "top_k": 5},
        **more,
    }
    folder = rk.train(rk.load(run), quiet=True)
    assert json.loads((folder / "summary.json").read_text())["export_gap"] < (1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("reference", [{"type": "Frozen"}, {"type": "EMA"}, {"type": "ElasticReset"}])
def test_a_reference_that_is_not_the_start_model_ends_in_an_error(
    small: dict[str, Any], reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OwnWeights.__init__

    def other(self: OwnWeights, *args: Any, **kwargs: Any) -> None:
        right(self, *args, **kwargs)
        with torch.no_grad():
            next(self.model.parameters()).mul_(1.5)

    monkeypatch.setattr(OwnWeights, "__init__", other)
    with pytest.raises(
        ValueError, match=r"reference probe: before the first step, the reference differs from the policy by"
    ):
        rk.train(rk.load({**small, "reference": reference}), quiet=True)
