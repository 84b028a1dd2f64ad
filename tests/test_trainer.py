"""A run in the hands of a program: one step at a time, callbacks, and what it gives back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkit as rk
from rlkit.errors import CheckpointError, ConfigError
from rlkit.rollout import hf
from tests.test_exact_resume import same

pytestmark = pytest.mark.slow


PENALISED = {"reward_penalties": [{"type": "KLReward", "coef": 0.01}]}


@pytest.fixture
def run(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> rk.Run:
    monkeypatch.setattr(hf, "MAX_ROWS", 1)  # each request is a batch: what is computed does not depend on others
    return rk.load(
        {
            **small,
            "steps": 4,
            "eval": {"every": 2, "prompts": 4},
            "checkpoint": {"every": 3, "minutes": None, "keep": 0, "best": False},
            "probe": {"every": 0, "final": False},
        }
    )


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").glob("step_*"))


def test_the_loop_is_the_run(run: rk.Run) -> None:
    loop = rk.steps(run, quiet=True)
    made = list(loop)
    assert loop.folder is not None and made[-1].folder == loop.folder
    assert [s.number for s in made] == [1, 2, 3, 4] and all(len(s.rollouts) == 16 for s in made)
    rows = loop.folder.metrics()
    assert [{"step": s.number, **s.metrics} for s in made] == rows
    assert [None if s.held_out is None else s.held_out.step for s in made] == [None, 2, None, None]
    assert [h.step for h in loop.folder.held_out()] == [0, 2, 4] and made[1].held_out == loop.folder.held_out()[1]
    same(rk.train(run.replace(name="trained"), quiet=True), loop.folder)


def test_a_loop_that_is_left_leaves_a_checkpoint_from_which_the_run_goes_on_as_if_it_had_not(run: rk.Run) -> None:
    whole = rk.train(run.replace(name="whole"), quiet=True)
    for step in rk.steps(run.replace(log={"report": True}), quiet=True):
        if step.number == 2:
            break
    assert checkpoints(step.folder) == ["step_00000002"] and not step.folder.final.exists()
    assert "2 of 4 steps, not at its end" in (step.folder / "report.html").read_text()
    same(whole, rk.train(run, resume=True, quiet=True))


def test_a_run_that_is_told_to_stop_ends_as_after_its_last_step(run: rk.Run) -> None:
    for step in rk.steps(run, quiet=True):
        if step.number == 3:
            step.stop()
    summary = step.folder.summary()
    assert (step.number, summary["steps"], summary["final_step"]) == (3, 3, 3)
    assert step.folder.held_out()[-1].step == 3 and checkpoints(step.folder) == ["step_00000003"]


def test_a_coefficient_that_is_set_holds_also_in_a_resumed_run(run: rk.Run, small: dict[str, Any]) -> None:
    kl = {"type": "KL", "estimator": "k2", "coef": {"type": "AdaptiveKL", "target": 0.01, "init": 0.1}}
    run = rk.load({**small, **PENALISED, "steps": 4, "eval": {"prompts": 0}, "probe": {"every": 0, "final": False}})
    run = run.replace(objective=[*run.objective[:1], rk.load({**small, "objective": [kl]}).objective[0]])
    for step in rk.steps(run, quiet=True):
        if step.number == 1:
            assert list(step.coefficients) == ["PPOClip", "KL_k2(ref)", "KLReward(ref)"]
            step.set_coefficient("KL_k2(ref)", 0.0)
            step.set_coefficient("KLReward(ref)", 0.5)
            with pytest.raises(ConfigError, match=r"no coefficient of 'KL'; there are those of PPOClip, KL_k2\(ref\)"):
                step.set_coefficient("KL", 1.0)
            with pytest.raises(ConfigError, match="must be finite"):
                step.set_coefficient("PPOClip", float("nan"))
        if step.number == 2:
            break
    rows = rk.train(run, resume=True, quiet=True).metrics()
    assert [r["coef/KL_k2(ref)"] for r in rows][1:] == [0.0] * 3 and rows[0]["coef/KL_k2(ref)"] != 0
    assert [r["coef/KLReward(ref)"] for r in rows] == [0.01, 0.5, 0.5, 0.5]
    assert [r["loss/total"] for r in rows[1:]] == pytest.approx([r["loss/PPOClip"] for r in rows[1:]], abs=1e-7)
    assert all(r["loss/KL_k2(ref)"] > 0 for r in rows[1:]) and "coef/PPOClip/held" not in rows[-1]


def test_callbacks_hear_of_what_happened_in_its_order(run: rk.Run) -> None:
    heard = list[tuple[str, int]]()
    folder = rk.train(
        run,
        quiet=True,
        on_step=lambda step: heard.append(("step", step.number)),
        on_eval=lambda held_out: heard.append(("eval", held_out.step)),
        on_save=lambda path: heard.append(("save", json.loads((path / "manifest.json").read_text())["step"])),
    )
    assert heard == [
        *(("eval", 0), ("step", 1), ("eval", 2), ("step", 2), ("step", 3), ("save", 3)),
        *(("step", 4), ("save", 4), ("eval", 4)),
    ]
    assert checkpoints(folder) == ["step_00000003", "step_00000004"]


def test_what_a_callback_raises_ends_the_run_and_keeps_its_last_step(run: rk.Run) -> None:
    def fails(step: rk.StepResult) -> None:
        if step.number == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        rk.train(run, quiet=True, on_step=fails)
    folder = Path(run.out) / run.name
    assert checkpoints(folder) == ["step_00000002"]
    with pytest.raises(CheckpointError, match=re.escape("has not come to its end. Continue it with resume=True.")):
        rk.RunFolder(folder).model()
    with pytest.raises(CheckpointError, match=r"no summary\.json"):
        rk.RunFolder(folder).summary()
    assert rk.train(run, resume=True, quiet=True).summary()["steps"] == 4  # its lock is free


def test_a_run_gives_back_its_model_as_a_folder_and_as_an_object(run: rk.Run) -> None:
    folder = rk.train(run.replace(steps=1), quiet=True)
    assert folder == Path(run.out) / "small" and isinstance(folder / "final", Path)
    assert type(folder / "final") is type(Path()) and pickle.loads(pickle.dumps(folder)) == folder
    model, stored = folder.model(), load_file(folder.final / "model.safetensors")
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters() if name in stored) and stored
    assert folder.tokenizer()("1>").input_ids == rk.RunFolder(str(folder)).tokenizer()("1>").input_ids
    assert folder.held_out()[-1].score == folder.summary()["eval_after"]
