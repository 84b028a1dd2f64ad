"""What the training benchmarks share: runs side by side in processes of their own, measured on held-out prompts, kept as lines of a file."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from report import RESULTS, Row, read

# Student's t, 95 %, by degrees of freedom.
T95 = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    6: 2.45,
    7: 2.36,
    8: 2.31,
    9: 2.26,
}


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean of a few seeds."""
    n = len(values)
    return math.nan if n < 2 else T95.get(n - 1, 2.0) * stdev(values) / math.sqrt(n)


def cell(values: Sequence[float], digits: int = 3) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {half_width(values):.{digits}f}" if len(values) > 1 else "")


def _quiet(task: tuple[Callable[..., Row], tuple[Any, ...]]) -> Row:
    """Runs one trial in its process; a trial that fails is a row with an ``error``."""
    function, arguments = task
    start = time.perf_counter()
    try:
        return {**function(*arguments), "seconds": round(time.perf_counter() - start, 1)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "arguments": [str(x) for x in arguments]}


def run_all(function: Callable[..., Row], tasks: Sequence[tuple[Any, ...]], name: str, jobs: int) -> list[Row]:
    """``function(*task)`` of every task, ``jobs`` at a time; each result joins ``benchmarks/results/NAME.jsonl`` when it is there. Returns all
    of them."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(_quiet, (function, t)) for t in tasks]), 1):
            row = future.result()
            if "error" not in row:
                with path.open("a") as f:
                    f.write(json.dumps(row) + "\n")
            print(f"[{done}/{len(tasks)}] {json.dumps({k: v for k, v in row.items() if k != 'curve'})}", flush=True)
    return read(name)


def curve(folder: Path, points: int = 20) -> list[float]:
    """The mean reward of a run's batches, averaged over ``points`` equal stretches; of a run that samples nothing, its held-out scores."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    if not rewards:
        return [round(json.loads(line)["score"], 4) for line in (folder / "eval.jsonl").read_text().splitlines()]
    points = min(points, len(rewards))
    cuts = [round(i * len(rewards) / points) for i in range(points + 1)]
    return [round(mean(rewards[a:b]), 4) for a, b in itertools.pairwise(cuts)]


def measure(run: Any, model: Path, n: int, **others: Path) -> Row:
    """pass@k, entropy, length, and different right answers, from ``n`` responses to each held-out prompt at temperature 1, and the KL to each
    of ``others`` under its name: mean of sum_t log pi - log other, in nats per response."""
    from rlkit.cluster.groups import EngineGroup, LocalWorkers
    from rlkit.data.prompts import load_prompts
    from rlkit.evaluation.metrics import pass_at_k, powers_of_two
    from rlkit.heldout import sample_and_score
    from rlkit.model.load import load_tokenizer
    from rlkit.rewards import Scorer
    from rlkit.rollout.hf import HFEngine
    from rlkit.types import Sampling

    prompts = load_prompts(run.data, "test", load_tokenizer(str(model)))
    scorer = Scorer(run.replace(rewards=["task"]).scored_by)
    scorer.check(list(prompts[0].columns))
    engine = HFEngine(str(model), max_model_len=64)
    try:
        sampling = Sampling(max_tokens=run.sampling.max_tokens, seed=1234)
        rollouts = sample_and_score(EngineGroup(LocalWorkers(engine)), scorer, prompts, n, sampling)
    finally:
        engine.close()
        scorer.close()
    kl = {}
    for name, path in others.items():
        other = HFEngine(str(path), max_model_len=64)
        try:
            kl[name] = mean(sum(r.logp) - sum(o) for r, o in zip(rollouts, other.score(rollouts), strict=True))
        finally:
            other.close()
    groups = [rollouts[i : i + n] for i in range(0, len(rollouts), n)]
    correct = [sum(r.reward == 1 for r in g) for g in groups]
    tokens = sum(len(r.tokens) for r in rollouts)
    return {
        **{f"pass@{k}": mean(pass_at_k(n, c, k) for c in correct) for k in powers_of_two(n)},
        **kl,
        "entropy": -sum(sum(r.logp) for r in rollouts) / tokens,
        "length": tokens / len(rollouts),
        "distinct": mean(len({r.text for r in g if r.reward == 1}) for g in groups),
    }


def sampled(run: Any, folder: Path) -> tuple[int, int]:
    """Responses and tokens that a run drew: dropped groups, and the greedy responses of an admission rule, count."""
    if not run.online:
        return 0, 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last, n = rows[-1], run.rollout.n
    refused = int(last.get("rollout/dropped_greedy_solved", 0))
    groups = sum(int(r["batch/sequences"]) for r in rows) / n + int(last.get("rollout/dropped", 0)) - refused
    responses = round(groups * (n + (run.data.admit is not None)) + refused)
    return responses, round(responses * mean(r["length/mean"] for r in rows))
