"""Whether anything grows over many steps on Ray: private memory, descriptors, threads, the object store and shared memory.

    python benchmarks/soak.py --steps 2000

Runs the quickstart's stack (vLLM engine, DeepSpeed learner, a Ray of its own) with a tiny model and looks at every process each
``--every`` steps. Growth is the least-squares slope over the second half, per 100 steps: start-up and filling caches are not growth.
The table goes to ``benchmarks/soak.md``, the samples to ``benchmarks/results/soak.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from report import ROOT, Row, append, machine

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


def watch(metrics: Path, steps: int, every: int, rows: list[Row], done: threading.Event) -> None:
    """Takes a row whenever ``every`` more steps are done."""
    next_at, started = every, time.monotonic()
    while not done.wait(0.2):
        step = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if step >= next_at:
            next_at = step + every
            row = {"step": step, "seconds": round(time.monotonic() - started, 1), **look()}
            rows.append(row)
            sizes = ", ".join(f"{k} {v['mib']:.1f}" for k, v in sorted(row["processes"].items()))
            print(f"  {step}/{steps} after {row['seconds']:.0f} s: MiB {sizes}", flush=True)


def slope(steps: list[float], values: list[float]) -> float:
    """Growth per 100 steps over the second half."""
    half = len(steps) // 2
    return float(np.polyfit(steps[half:], values[half:], 1)[0] * 100) if len(steps) - half > 1 else float("nan")


def table(rows: list[Row]) -> str:
    steps = [float(r["step"]) for r in rows]
    names = sorted(rows[-1]["processes"])
    head = "| process | MiB at the first look | at half | at the end | growth per 100 steps, MiB | descriptors | threads |\n|---|---|---|---|---|---|---|\n"
    lines = []
    for name in names:
        series = {q: [r["processes"].get(name, {}).get(q, float("nan")) for r in rows] for q in QUANTITIES}
        mib = series["mib"]
        lines.append(
            f"| {name} | {mib[0]:.1f} | {mib[len(mib) // 2]:.1f} | {mib[-1]:.1f} | {slope(steps, mib):+.2f} | "
            f"{series['descriptors'][0]:.0f} to {series['descriptors'][-1]:.0f} | {series['threads'][0]:.0f} to {series['threads'][-1]:.0f} |"
        )
    for name in rows[-1]["shared"]:
        values = [r["shared"][name] for r in rows]
        lines.append(
            f"| {name} | {values[0]:.1f} | {values[len(values) // 2]:.1f} | {values[-1]:.1f} | {slope(steps, values):+.2f} | | |"
        )
    return head + "\n".join(lines) + "\n"


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
    out = tempfile.mkdtemp(prefix="soak-")
    rows: list[Row] = []
    done = threading.Event()
    run = rk.load(settings(a.steps, out, a.engine))
    observer = threading.Thread(target=watch, args=(Path(out) / "soak" / "metrics.jsonl", a.steps, a.every, rows, done))
    observer.start()
    try:
        rk.train(run, quiet=True)
    finally:
        done.set()
        observer.join()
        shutil.rmtree(out, ignore_errors=True)
    for row in rows:
        append("soak", {"steps": a.steps, "engine": a.engine, **row})
    m = machine()
    text = (
        f"# Soak\n\nWritten by `python benchmarks/soak.py --steps {a.steps}`: {rows[-1]['step']} steps in {rows[-1]['seconds']:.0f} s on Ray "
        f"with {a.engine} and ZeRO-1, 32 responses a step. {m['cpu']} ({m['cores']} cores), ray {m.get('ray')}.\n\nMemory is private memory "
        "(shared pages are not counted), growth the least-squares slope over the second half of the looks.\n\n"
        + table(rows)
    )
    (ROOT / "benchmarks" / "soak.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
