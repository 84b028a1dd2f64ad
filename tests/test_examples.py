"""Every example runs as its first lines say, only shorter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlkit as rk
from rlkit.plug import Plug

EXAMPLES = Path("examples")
COMMANDS = {
    "custom_reward": [sys.executable, "examples/custom_reward.py"],
    "custom_loss": [sys.executable, "-m", "rlkit", "train", "examples/custom_loss.yaml"],
    "custom_pair_loss": [sys.executable, "-m", "rlkit", "train", "examples/custom_pair_loss.yaml"],
    "custom_engine": [sys.executable, "-m", "rlkit", "train", "examples/custom_engine.yaml"],
    "custom_parts": [
        *(sys.executable, "-m", "rlkit", "train", "examples/custom_parts.yaml"),
        *("steps=2", "model.warm_up.steps=5", "rollout.prompts=4"),  # that all parts fit together, not what they learn
        "pairing.margin=-1",  # so short a run has only wrong answers: equal ones are pairs, too
    ],
    "calculator": [
        *(sys.executable, "-m", "rlkit", "train", "examples/calculator.yaml", "steps=12", "eval.every=0"),
        *("eval.n=2", "checkpoint.every=0"),
    ],
    "guessing": [
        *(sys.executable, "-m", "rlkit", "train", "examples/guessing.yaml", "steps=40", "eval.every=0"),
        *("eval.n=8", "checkpoint.every=0"),
    ],
    "local": [sys.executable, "-m", "rlkit", "train", "examples/local.yaml"],
    "own_data": [sys.executable, "-m", "rlkit", "train", "examples/own_data.yaml"],
}


@pytest.mark.slow(20)
@pytest.mark.parametrize("name", COMMANDS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run([*COMMANDS[name], f"out={tmp_path}"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / name / "summary.json").read_text())
    if name == "custom_parts":
        row = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert row.keys() >= {
            "loss/LeCam(ref)",
            "loss/TOPR",
            "loss/DPO",
            "coef/LeCam(ref)",
            "coef/Surprise",
            "correction/mean_weight",
            "reward/Places",
        }
    elif name == "custom_pair_loss":
        last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["accuracy/PerToken"] == 1 and last["margin/PerToken"] > 0.1
    elif name != "own_data":
        assert summary["eval_after"] > summary["eval_before"] + 0.3, done.stdout


def test_every_example_is_run() -> None:
    used = {word for command in COMMANDS.values() for word in command}
    here = {str(p) for p in EXAMPLES.iterdir() if p.suffix in (".py", ".yaml")}
    named = {f"examples/{file}" for p in EXAMPLES.glob("*.yaml") for file in re.findall(r"(\w+\.py):", p.read_text())}
    elsewhere = {
        "examples/custom_control.py",  # above
        "examples/judged.yaml",  # tests/model/test_classifier.py
        "examples/ray_job.py",  # tests/stack/test_clusters.py
        "examples/real.py",  # a pretrained model: by hand, `make real`
    }
    assert here == {w for w in used if w.startswith("examples/")} | named | elsewhere


def test_a_control_of_ones_own_keeps_what_is_likely_enough() -> None:
    own = "{type: examples/custom_control.py:MinP, least: 0.25}"
    run = rk.load("quickstart", [f"rollout.engine={{type: Controlled, engine: hf, control: {own}}}"])
    assert isinstance(run.rollout.engine, rk.Controlled)
    control = run.rollout.engine.control
    assert isinstance(control, rk.controls.Steering)
    logits = torch.tensor([[0.5, 0.2, 0.12, 0.18], [0.97, 0.01, 0.01, 0.01]]).log()
    kept = control.steer(logits, None) > -torch.inf  # type: ignore[arg-type]
    assert kept.tolist() == [[True, True, False, True], [True, False, False, False]]


def test_every_kind_of_part_has_an_example() -> None:
    text = "".join(p.read_text() for p in EXAMPLES.glob("custom_*.py"))
    kinds = {kind.__name__ for kind in Plug.__subclasses__() if not kind.__module__.startswith("tests")}
    shown = {base.split("(")[1] for base in re.findall(r"^class \w+\(\w+", text, re.MULTILINE)}
    simpler = {"Coefficient": "Schedule", "Control": "Steering"}  # what users override of these
    assert {simpler.get(kind, kind) for kind in kinds} <= shown
