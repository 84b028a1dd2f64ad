"""A run on Ray that is told to stop: a checkpoint, one sentence, and no dump of Ray's own handlers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from rlkit.files import read_rows


def test_sigterm_on_ray_leaves_a_checkpoint_and_one_sentence(small: dict[str, Any], tmp_path: Path) -> None:
    config, folder = tmp_path / "c.yaml", Path(small["out"]) / "small"
    changes = {"steps": 100_000, "rewards": [], "cluster": {"cpus": 0.3}, "eval": {"prompts": 0}}
    config.write_text(yaml.safe_dump({**small, **changes}))
    command = [sys.executable, "-m", "rlkit", "train", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        while len(read_rows(folder / "metrics.jsonl")) < 2:
            assert run.poll() is None, run.communicate()
            time.sleep(0.2)
        run.terminate()
        _, err = run.communicate()
    last = read_rows(folder / "metrics.jsonl")[-1]["step"]
    assert run.returncode == 143 and f"`--resume` continues from step {last}" in err, err
    assert "@" not in err and "*** SIGTERM" not in err and err.count("\n") <= 4, err
