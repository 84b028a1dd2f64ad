"""Every example runs as its first lines say, only shorter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path("examples")
COMMANDS = {
    "custom_reward": [sys.executable, "examples/custom_reward.py"],
    "custom_loss": [sys.executable, "-m", "rlkit", "train", "examples/custom_loss.yaml"],
    "custom_engine": [sys.executable, "-m", "rlkit", "train", "examples/custom_engine.yaml"],
    "local": [sys.executable, "-m", "rlkit", "train", "examples/local.yaml"],
    "own_data": [sys.executable, "-m", "rlkit", "train", "examples/own_data.yaml"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run([*COMMANDS[name], f"out={tmp_path}"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / name / "summary.json").read_text())
    if name != "own_data":
        assert summary["eval_after"] > summary["eval_before"] + 0.3, done.stdout


def test_every_example_is_run() -> None:
    used = {word for command in COMMANDS.values() for word in command}
    here = {str(p) for p in EXAMPLES.iterdir() if p.suffix in (".py", ".yaml")}
    elsewhere = {
        "examples/custom_engine.py",
        "examples/custom_loss.py",
        "examples/rewards.py",  # named by configurations
        "examples/ray_job.py",
        "examples/real.py",  # a pretrained model: by hand, `make real`
    }  # tests/stack/test_quickstart.py
    assert here == {w for w in used if w.startswith("examples/")} | elsewhere
