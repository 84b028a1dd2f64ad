"""Every configuration of configs/algorithms on one task, from one model, with one budget of responses.

    python benchmarks/algorithms.py                     # all of them, about 12 minutes on 2 cores; continues where it stopped
    python benchmarks/algorithms.py grpo dapo --seeds 3

Trains each from the same warmed-up model, then draws 16 responses to each held-out prompt. Results are lines of runs/algorithms/results.jsonl;
the table goes to benchmarks/algorithms.md. KL is sum_t log pi - log base over sampled responses, in nats per response. Dynamic sampling draws
more responses than it trains on: `sampled` counts them all.
"""
from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import rlkit as rk
from rlkit.build import load_tokenizer, reward_specs
from rlkit.cli import main as cli
from rlkit.cluster.groups import EngineGroup, LocalWorkers
from rlkit.data.prompts import load_prompts
from rlkit.rewards import Scorer
from rlkit.rollout.hf import HFEngine
from rlkit.trainer import sample_and_score
from rlkit.types import Sampling

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "runs" / "algorithms"
TASK = ["data.task.levels=[1, 2]", "data.size=2000", "data.test_size=100", "eval.prompts=100", f"out={OUT}"]
SORTING = ROOT / "configs" / "tasks" / "sorting.yaml"


def pass_at(k: int, n: int, c: int) -> float:
    """The unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2107.03374)."""
    return 1.0 if n - c < k else 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def measure(run: Any, model: Path, base: Path) -> dict[str, float]:
    """pass@1, pass@16, KL to the base, entropy and length on held-out prompts, 16 responses each at temperature 1."""
    prompts = load_prompts(run.data, "test", load_tokenizer(str(model)))
    scorer = Scorer(reward_specs(run.replace(rewards=["task"])))
    scorer.check(list(prompts[0].columns))
    engine, reference = HFEngine(str(model), max_model_len=64), HFEngine(str(base), max_model_len=64)
    try:
        rollouts = sample_and_score(EngineGroup(LocalWorkers(engine)), scorer, prompts, 16, Sampling(max_tokens=6, seed=1234))
        other = reference.score(rollouts)
    finally:
        engine.close()
        reference.close()
        scorer.close()
    correct = [sum(r.reward == 1 for r in rollouts[i:i + 16]) for i in range(0, len(rollouts), 16)]
    tokens = sum(len(r.tokens) for r in rollouts)
    return {"pass@1": mean(c / 16 for c in correct), "pass@16": mean(pass_at(16, 16, c) for c in correct),
            "kl": mean(sum(r.logp) - sum(o) for r, o in zip(rollouts, other, strict=True)), "entropy": -sum(sum(r.logp) for r in rollouts) / tokens,
            "length": tokens / len(rollouts)}


def base_model() -> Path:
    """The warmed-up model that all start from, and the teacher of those that need one."""
    for name, extra in (("base", ["steps=0", "objective=[Reinforce]", "reference=null"]), ("grpo-teacher", ["steps=150"])):
        if not (OUT / name / "final").exists():
            config = SORTING if name == "base" else ROOT / "configs" / "algorithms" / "grpo.yaml"
            start = [] if name == "base" else _from(OUT / "base" / "final")
            rk.train(rk.load(config, [*TASK, f"name={name}", *extra, *start]), quiet=True)
    return OUT / "base" / "final"


def prepared(name: str, base: Path) -> list[str]:
    """Overrides for methods with a first stage, which is made here: soft values for A*-PO, stored rows for DPH-RL."""
    first = ["filter", str(SORTING), *TASK, "objective=[PPOClip]", "--model", str(base), "-n", "8"]
    if name == "astar_po":
        if not (OUT / "astar.jsonl").exists():
            cli([*first, "--soft-value", "0.5", "--out", str(OUT / "astar.jsonl")])
        return [*TASK[3:], f"data.train={OUT / 'astar.jsonl'}", "data.test=null"]
    if name == "dph_rl":
        if not (OUT / "stored.jsonl").exists():
            cli([*first, "--out", str(OUT / "kept.jsonl"), "--responses", str(OUT / "stored.jsonl")])
        return [*TASK, f"data.stored.path={OUT / 'stored.jsonl'}"]
    return TASK


def _from(model: Path) -> list[str]:
    return ["model.make=null", "model.warm_up=null", f"model.path={model}"]


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("names", nargs="*")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--steps", type=int, default=60)
    a = p.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    results = OUT / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(r["name"], r["seed"], r["steps"]) for r in rows}
    base = base_model()
    common = rk.load(SORTING, [*TASK, "objective=[PPOClip]"])
    if ("(start)", 0, 0) not in done:
        rows.append({"name": "(start)", "seed": 0, "steps": 0, "seconds": 0.0, "sampled": 0, **measure(common, base, base)})
        results.open("a").write(json.dumps(rows[-1]) + "\n")
    for path in sorted((ROOT / "configs" / "algorithms").glob("*.yaml")):
        for seed in range(a.seeds):
            if (a.names and path.stem not in a.names) or (path.stem, seed, a.steps) in done:
                continue
            teacher = [f"teacher.path={OUT / 'grpo-teacher' / 'final'}"] if "teacher:" in path.read_text() else []
            run = rk.load(path, [*prepared(path.stem, base), *_from(base), *teacher, f"seed={seed}", f"steps={a.steps}", f"name={path.stem}-{seed}", "rollout.max_waste=50"])
            start = time.perf_counter()
            try:
                folder = rk.train(run, quiet=True)
            except (RuntimeError, FloatingPointError) as error:
                print(f"{path.stem}: {error}", flush=True)
                continue
            last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
            refused = int(last.get("rollout/dropped_greedy_solved", 0))
            groups = a.steps * run.rollout.prompts + int(last.get("rollout/dropped", 0)) - refused
            n = groups * (run.rollout.n + (run.data.admit is not None)) + refused       # admission asks for one greedy response
            rows.append({"name": path.stem, "seed": seed, "steps": a.steps, "seconds": time.perf_counter() - start, "sampled": n,
                         **measure(common, folder / "final", base)})
            results.open("a").write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    table(rows)


def table(rows: list[dict[str, Any]]) -> None:
    names = sorted({r["name"] for r in rows})
    lines = ["| configuration | seeds | pass@1 | pass@16 | KL to start | entropy | length | responses sampled |", "|---|---|---|---|---|---|---|---|"]
    for name in names:
        mine = [r for r in rows if r["name"] == name]

        def cell(key: str, digits: int, mine: list[dict[str, Any]] = mine) -> str:
            values = [r[key] for r in mine]
            return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")

        lines.append(f"| {name} | {len(mine)} | {cell('pass@1', 3)} | {cell('pass@16', 3)} | {cell('kl', 2)} | {cell('entropy', 3)} | {cell('length', 2)} | {cell('sampled', 0)} |")
    page = ["# The algorithms at one budget", "", "Written by `python benchmarks/algorithms.py`: digits to be sorted (3 and 4 of them), one warmed-up model of 2 layers, 60 steps of",
            "128 responses, the published coefficients, learning rate 5e-4 (2e-4 for CISPO and PMD, 1e-4 for A*-PO: without a clip they diverge at",
            "5e-4 with several updates a batch). It shows that each configuration learns; so small a task and one seed do not rank the methods.", "", *lines, ""]
    (ROOT / "benchmarks" / "algorithms.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
