"""What a run does when a part of it dies, is stopped or hangs; and who can reach the Ray that it starts."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.cluster.ray import RayWorkers
from rlkit.config import load
from rlkit.trainer import train


def pid(workers: RayWorkers, index: int) -> int:
    import ray

    return int(ray.get(workers.actors[index].__ray_call__.remote(lambda self: os.getpid())))


def curve(folder: Path) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        tuple(r[k] for k in ("step", "reward/mean", "entropy/sampled", "batch/tokens", "batch/sequences")) for r in rows
    ]


def settings(small: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        **small,
        "steps": 4,
        "cluster": {"cpus": 0.2, "engines": 2, "timeout": 4.0},
        "rollout": {"engine": "hf", "prompts": 4, "n": 4},
        "eval": {"prompts": 4, "every": 2},
        "probe": {"every": 1},
        **changes,
    }


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    return {}


def test_smoke(small: dict[str, Any], ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    t = time.time()
    a = train(load(settings(small)))
    print("plain", time.time() - t)
    want = curve(a)
    seen: list[int] = []
    one = RayWorkers.one

    def strike(self: RayWorkers, index: int, method: str, *args: Any) -> Any:
        seen.append(index)
        if len(seen) == 30:
            os.kill(pid(self, index), signal.SIGSTOP)
        return one(self, index, method, *args)

    monkeypatch.setattr(RayWorkers, "one", strike)
    t = time.time()
    b = train(load(settings(small)))
    print("stopped", time.time() - t)
    assert curve(b) == pytest.approx(want, abs=1e-4) or print(curve(b), want)
