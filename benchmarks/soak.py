"""Whether anything grows over many steps on Ray: private memory, descriptors, threads, the object store and shared memory.

    python benchmarks/soak.py --steps 2000

Runs the quickstart's stack (vLLM engine, DeepSpeed learner, a Ray of its own) with a tiny model and looks at every process each
``--every`` steps. Growth is the least-squares slope over the second half, per 100 steps: start-up and filling caches are not growth.
The samples go to ``benchmarks/results/soak.jsonl`` and the table to ``benchmarks/soak.md``, both after every look: a run that is cut short
has measured what it did.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from report import RESULTS, ROOT, Row, machine

import rlkit as rk

QUANTITIES = ("mib", "descriptors", "threads")
# what a process is called here, and how its command line begins or what it contains
KINDS = {
    "ray::EngineHost": "engine",
    "ray::LearnerHost": "learner",
    "gcs_server": "gcs_server",
    "raylet": "raylet",
    "ray::DashboardAgent": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime env agent",
    "dashboard.py": "dashboard",
    "monitor.py": "monitor",
    "log_monitor.py": "log monitor",
}


def kind(process: psutil.Process) -> str | None:
    words = process.cmdline()
    names = {word.split(".")[0] if word.startswith("ray::") else os.path.basename(word) for word in words[:3]}
    return next((k for name, k in KINDS.items() if name in names), None)


def look() -> Row:
    """Every process of the run by kind (several of one kind added up), and what all of them share."""
    me = psutil.Process()
    found: dict[str, dict[str, float]] = {}
    for process in [me, *me.children(recursive=True)]:
        try:
            name = "driver" if process == me else kind(process)
            if name is None:
                continue
            now = (process.memory_full_info().uss / 2**20, process.num_fds(), process.num_threads())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        row = found.setdefault(name, dict.fromkeys(QUANTITIES, 0.0))
        for quantity, value in zip(QUANTITIES, now, strict=True):
            row[quantity] += value
    shared = psutil.disk_usage("/dev/shm").used / 2**20 if os.path.isdir("/dev/shm") else 0.0
    return {"processes": found, "shared": {"/dev/shm, MiB": shared, "object store, MiB": store()}}


def store() -> float:
    """MiB that objects take in this node's store."""
    import ray
    from ray._private.internal_api import node_stats

    node = next(n for n in ray.nodes() if n["Alive"])
    return (
        float(
            node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats.object_store_bytes_used
        )
        / 2**20
    )


def watch(metrics: Path, every: int, look_at: Callable[[int], None], done: threading.Event) -> None:
    """Calls ``look_at`` with the step whenever a multiple of ``every`` is reached."""
    step, next_at = 0, every
    while not metrics.exists():
        if done.wait(0.2):
            return
    with metrics.open("rb") as f:  # read once: the file as a whole, again and again, would be growth of the driver's
        while not done.wait(0.2):
            step += f.read().count(b"\n")
            if step >= next_at:
                next_at = (step // every + 1) * every
                look_at(step)


def slope(steps: list[float], values: list[float]) -> float:
    """Growth per 100 steps over the second half."""
    half = len(steps) // 2
    if len(steps) - half < 2:
        return float("nan")
    return round(float(np.polyfit(steps[half:], values[half:], 1)[0]) * 100, 3) + 0.0  # not -0.0


def table(rows: list[Row]) -> str:
    steps = [float(r["step"]) for r in rows]
    lines = [
        "| | MiB at the first look | at half | at the end | growth per 100 steps, MiB | descriptors | growth per 100 steps | threads | "
        "growth per 100 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(rows[-1]["processes"]):
        series = {q: [r["processes"].get(name, {}).get(q, float("nan")) for r in rows] for q in QUANTITIES}
        cells = [_memory(steps, series["mib"])]
        for q in ("descriptors", "threads"):
            cells.append(f"{series[q][0]:.0f} to {series[q][-1]:.0f} | {slope(steps, series[q]):+.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in rows[-1]["shared"]:
        lines.append(f"| {name} | {_memory(steps, [r['shared'][name] for r in rows])} | | | | |")
    return "\n".join(lines) + "\n"


def _memory(steps: list[float], mib: list[float]) -> str:
    return f"{mib[0]:.1f} | {mib[len(mib) // 2]:.1f} | {mib[-1]:.1f} | {slope(steps, mib):+.2f}"


def page(rows: list[Row], steps: int, engine: str) -> str:
    m, last = machine(), rows[-1]
    return (
        f"# Soak\n\nWritten by `python benchmarks/soak.py --steps {steps}`: {last['step']} steps in {last['seconds']:.0f} s on Ray with "
        f"{engine} and ZeRO-1, 32 responses a step. {m['cpu']} ({m['cores']} cores), ray {m.get('ray')}.\n\nMemory is private memory "
        "(shared pages are not counted), growth the least-squares slope over the second half of the looks.\n\n"
        + table(rows)
    )


def settings(steps: int, out: str, engine: str) -> dict[str, Any]:
    return {
        "name": "soak",
        "out": out,
        "steps": steps,
        "model": {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}},
        "data": {"task": {"type": "Sorting", "levels": [1, 2]}, "size": 4000, "test_size": 20},
        "sampling": {"max_tokens": 6},
        "rollout": {"engine": engine, "prompts": 8, "n": 4},
        "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "coef": 0.001}],
        "learner": {"lr": 1e-5},
        "deepspeed": {"zero_optimization": {"stage": 1}},
        "cluster": {"cpus": 0.5},
        "eval": {"prompts": 20},
        "checkpoint": {"every": 500},
        "log": {"tensorboard": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--engine", choices=("vllm", "hf"), default="vllm")
    a = parser.parse_args()
    if a.steps < 4 * a.every:
        parser.error(
            f"--steps {a.steps} is less than four looks, one each --every {a.every} steps: a slope needs two in each half."
        )
    out = tempfile.mkdtemp(prefix="soak-")
    rows: list[Row] = []
    started, done = time.monotonic(), threading.Event()

    def look_at(step: int) -> None:
        rows.append({"step": step, "seconds": round(time.monotonic() - started, 1), **look()})
        sizes = ", ".join(f"{k} {v['mib']:.1f}" for k, v in sorted(rows[-1]["processes"].items()))
        print(f"  {step}/{a.steps} after {rows[-1]['seconds']:.0f} s: MiB {sizes}", flush=True)
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "soak.jsonl").open("a") as f:
            row = {"steps": a.steps, "engine": a.engine, **rows[-1], "machine": machine()}
            f.write(json.dumps(row) + "\n")
        (ROOT / "benchmarks" / "soak.md").write_text(page(rows, a.steps, a.engine))

    run = rk.load(settings(a.steps, out, a.engine))
    observer = threading.Thread(target=watch, args=(Path(out) / "soak" / "metrics.jsonl", a.every, look_at, done))
    observer.start()
    try:
        rk.train(run, quiet=True)
    finally:
        done.set()
        observer.join()
        shutil.rmtree(out, ignore_errors=True)
    print("\n" + page(rows, a.steps, a.engine))


if __name__ == "__main__":
    main()
