"""Loses a machine of a Ray cluster in the middle of a run: raylets on this one stand for machines, one of them idle.

    python scripts/two_nodes.py engine|learner

The raylet under an engine (or the learner) is killed while the run generates. Its workers must start again on the idle one,
and the curve must be that of a run in one process. Not in the test suite, because it takes minutes on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

import rlkit as rk
from rlkit.cluster.ray import RayWorkers


def curve(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[r[k] for k in ("step", "reward/mean", "entropy/sampled", "batch/sequences")] for r in rows]


def main() -> None:
    import ray

    victim = sys.argv[1]
    out = tempfile.mkdtemp(prefix="nodes-")
    settings: dict[str, Any] = {
        "name": "one_process",
        "out": out,
        "steps": 4,
        "model": {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}},
        "data": {"task": {"type": "Sorting", "levels": [1]}, "size": 40, "test_size": 4},
        "sampling": {"max_tokens": 4},
        "rollout": {"engine": "hf", "prompts": 4, "n": 4},
        "objective": [{"type": "PPOClip"}],
        "learner": {"lr": 1e-3},
        "checkpoint": {"every": 1},
        "log": {"tensorboard": False},
    }
    whole = curve(rk.train(rk.load(settings), quiet=True))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]  # one has nothing to do until another is lost
    calls, one = 0, RayWorkers.one
    groups: dict[str, RayWorkers] = {}
    init = RayWorkers.__init__

    def noted(self: RayWorkers, *args: Any) -> None:
        init(self, *args)
        groups[self.what] = self

    def struck(self: RayWorkers, index: int, method: str, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            actor = groups[victim].actors[0]
            where = ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
            print(f"killing the raylet under the {victim}", flush=True)
            cluster.remove_node(next(n for n in nodes if n.node_id == where), allow_graceful=False)
        return one(self, index, method, *args)

    RayWorkers.__init__, RayWorkers.one = noted, struck  # type: ignore[method-assign]
    start = time.monotonic()
    on_ray = {"address": cluster.address, "cpus": 0.9, "timeout": 60.0}
    found = curve(rk.train(rk.load({**settings, "name": "nodes", "cluster": on_ray})))
    seconds = time.monotonic() - start
    same = max(abs(a - b) for x, y in zip(whole, found, strict=True) for a, b in zip(x, y, strict=True))
    print(
        f"lost the machine of the {victim}: {len(found)} steps in {seconds:.0f} s, largest difference of the curves {same:.2g}"
    )
    ray.shutdown()
    cluster.shutdown()
    assert calls >= 20 and same < 1e-4


if __name__ == "__main__":
    main()
