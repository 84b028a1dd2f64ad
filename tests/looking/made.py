"""Run folders that are made of numbers, for tests that need no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def rows(path: Path, some: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in some))


def response(step: int, prompt: str, reward: float | None, text: str = "13", **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": prompt,
        "prompt": prompt,
        "question": f"{prompt}?",
        "response": text,
        "answer": "13",
        "reward": reward,
        "parts": {},
        "error": None,
        "finish": "stop",
        "tokens": len(text),
        "version": step,
        "group": 0,
        **more,
    }


def make_run(out: Path, name: str, *, seed: int = 0, lr: float = 1e-3, steps: int = 4, ended: bool = True) -> Path:
    """A run whose reward at step s is ``s / 10 + seed / 100``, and whose second held-out prompt is solved in the end."""
    folder = out / name
    folder.mkdir(parents=True)
    config = {"name": name, "out": str(out), "seed": seed, "steps": steps, "learner": {"lr": lr}, "rewards": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = [
        {
            "step": s,
            "reward/mean": s / 10 + seed / 100,
            "reward/std": 0.5,
            "batch/sequences": 25.0,
            "kl/ref_sequence": s / 4,
            "kl/ref": None if s == 2 else s / 100,
            "gradient/share/PPOClip": 0.75,
            "gradient/share/KL_k2(ref)": 0.25,
            "drift/start": s / 50,
            "drift/start_error": 0.01,
            "time/generate": 1.0,
            "time/update": 2.0,
            "time/step": 3.5,
            "length/truncated": 0.5,
        }
        for s in range(1, steps + 1)
    ]
    rows(folder / "metrics.jsonl", metrics)
    rows(
        folder / "eval.jsonl",
        [
            {"step": 0, "score": 0.25, "prompts": 2, "n": 1, "solved": [True, False], "error": 0.05},
            {"step": steps, "score": 0.75 + seed / 100, "prompts": 2, "n": 1, "solved": [True, True], "error": 0.05},
        ],
    )
    details = {"pieces": ["1", "3"], "kl": [0.5, -0.25], "surprise": [0.1, 2.0]}
    rows(
        folder / "rollouts.jsonl", [response(s, f"p{s % 2}", s / 10, **(details if s == 1 else {})) for s in (1, 2, 3)]
    )
    samples = [response(s, "held", float(s > 0), "31" if s == 0 else "13", sample="fixed") for s in (0, steps)]
    rows(folder / "eval_samples.jsonl", [*samples, response(steps, "other", None, sample="random")])
    start = {
        "packages": {"rlkit": "0.1.0"},
        "python": "3.11",
        "platform": "Linux",
        "cpus": 2,
        "git": {"commit": "abc", "dirty": ""},
        "command": ["rlkit", "train", "c.yaml", "seed=1"],
        "started": "2026-01-01T00:00:00+0000",
        "origins": {"seed": "command line", "learner": "c.yaml:4"},
    }
    rows(folder / "environment.jsonl", [start])
    if ended:
        (folder / "summary.json").write_text(json.dumps({"steps": steps, "seconds": 7.0}))
    return folder
