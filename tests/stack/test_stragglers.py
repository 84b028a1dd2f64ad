"""A whole run on Ray that does not wait for its longest responses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

from rlkit.run import load
from rlkit.trainer import train


def test_a_run_continues_its_stragglers_and_asks_for_them_again_when_resumed(
    small: dict[str, Any], ray_session: None
) -> None:
    run = load(
        {
            **small,
            "steps": 4,
            "checkpoint": {"every": 2},
            "sampling": {"max_tokens": 60},
            "probe": {"every": 0},
            "eval": {"prompts": 0},
            "cluster": {"cpus": 0.3},
            "rollout": {"engine": "vllm", "prompts": 4, "n": 4, "over": 0.5, "pause": "continue"},
        }
    )
    folder = train(run, quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(r["rollout/lag_max"] for r in rows) in (1, 2) and all(
        0 <= r["rollout/lag_mean"] <= r["rollout/lag_max"] for r in rows
    )
    assert all(r["batch/sequences"] == 16 and r["mismatch/mean"] < 1 for r in rows)
    ahead = folder / "checkpoints" / "step_00000002" / "ahead.jsonl"
    waiting = [json.loads(line)["prompt"] for line in ahead.read_text().splitlines()]
    assert len(waiting) == 2  # as many as were started beyond the step
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    train(run.replace(log=dataclasses.replace(run.log, rollouts=16)), resume=True, quiet=True)
    shown = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert set(waiting) & {r["prompt_id"] for r in shown if r["step"] > 2}
