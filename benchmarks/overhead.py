"""What regularizers cost in an optimizer step, beside PPO-clip alone; reference log-probs are given, as they are in training.

    python benchmarks/overhead.py

Objectives take turns on the same learner and the same batch; the ratio is the median over rounds of paired steps.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlkit.learner.learner import Learner
from rlkit.model.tiny import make_tiny
from rlkit.objective import normalise
from rlkit.run import load
from rlkit.types import Batch, Prompt, Rollout

PPO = {"type": "PPOClip"}
OBJECTIVES: dict[str, list[Any]] = {
    "PPOClip": [PPO],
    "PPOClip + KL k3": [PPO, {"type": "KL", "acknowledge": True}],
    "PPOClip + KL k2 + js + alpha + mixture": [
        PPO,
        {"type": "KL", "estimator": "k2", "importance": "token"},
        {"type": "Divergence", "f": "js"},
        {"type": "Divergence", "f": "alpha", "parameter": 0.5},
        {"type": "KL", "estimator": "k2", "anchor": {"of": ["ref", "old"]}},
    ],
}


def main(rounds: int = 25) -> None:
    g = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        alphabet = "".join(chr(0x4E00 + i) for i in range(8000))
        path = make_tiny(Path(folder) / "model", alphabet, hidden=256, layers=4, heads=4, kv_heads=2)
        rollouts = [
            Rollout(
                Prompt(str(i), tuple(range(3, 35)), ""),
                torch.randint(3, 8000, (96,), generator=g).tolist(),
                [True] * 96,
                [-9.0] * 96,
                [0] * 96,
                "stop",
                group=i // 4,
            )
            for i in range(16)
        ]
        run = load(
            {
                "model": {"path": str(path)},
                "data": {"task": "Sorting"},
                "objective": [PPO],
                "learner": {"lr": 1e-6, "minibatches": 2},
            }
        )
        learner = Learner(run.learner_setup(str(path), frozenset({"adv", "old", "behav"})))
        b = Batch.from_rollouts(rollouts)
        b = b.replace(adv=torch.randn(b.N, generator=g))
        b = b.with_logp(old=torch.full((b.N,), -9.0), ref=torch.full((b.N,), -9.1))
        runs = {
            name: dataclasses.replace(
                run,
                objective=load({"model": {"path": str(path)}, "data": {"task": "Sorting"}, "objective": o}).objective,
            )
            for name, o in OBJECTIVES.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, r in runs.items():
                learner.setup = r.learner_setup(str(path), learner.setup.needs)
                b = b.replace(norm=normalise(r.objective, b))
                start = time.perf_counter()
                learner.step([b], [t.coef for t in r.objective])
                seconds[name].append(time.perf_counter() - start)
    base = seconds["PPOClip"][2:]
    for name, s in seconds.items():
        ratio = statistics.median(x / y for x, y in zip(s[2:], base, strict=True))
        print(f"{name:<42} {statistics.median(s[2:]) * 1000:8.1f} ms   x {ratio:.4f}")


if __name__ == "__main__":
    main()
