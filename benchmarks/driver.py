"""What the driver does in a step of many long answers: engines answer at once, and learners do nothing.

    python benchmarks/driver.py                         # 8,192 answers of 1,024 tokens, 64 learners
    python benchmarks/driver.py --answers 2048
    python benchmarks/driver.py --rewards               # collector and real reward processes: answers a minute

Answers arrive as Ray brings them, as bytes, in the threads of the collector; micro-batches leave as bytes, too. What a learner does with
them is not counted. Seconds are CPU time of this process with one thread of torch, the garbage collector as a run with a cluster sets it.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import random
import resource
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from rlkit.cluster.groups import LearnerGroup, Workers
from rlkit.data.statistics import PromptStatistics
from rlkit.objective.advantages import GroupNorm
from rlkit.report import sampled
from rlkit.rewards.scoring import RewardSpec, Scorer
from rlkit.rollout.collector import Collector, Rules
from rlkit.run import Run, load
from rlkit.session import rare_collections
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats

GROUP, PROMPT, RANKS, MOST = 8, 512, 64, 16384


class Idle:
    """Ranks that are sent their micro-batches and do nothing with them."""

    size = RANKS

    def busy(self) -> float:
        return 0.0

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        if each is None:
            return [{"layout": "packed", "max_tokens": MOST}] * RANKS
        for given in each:
            pickle.dumps(given, 5)
        if method == "annotate":
            return [{which: torch.zeros(sum(m.N for m in micros)) for which in names} for micros, names in each]
        stats = Stats()
        stats.add("learner/skipped", 0.0, "max")
        return [stats] * RANKS


class AtOnce:
    """An engine whose answers are there. Of each prompt they are always the same."""

    def __init__(self, prompts: Sequence[Prompt], tokens: int, text: str) -> None:
        g = np.random.default_rng(0)
        self.made = {
            p.id: pickle.dumps(
                [
                    Rollout(
                        p,
                        g.integers(3, 150_000, tokens).tolist(),
                        [True] * tokens,
                        (-g.random(tokens)).tolist(),
                        [0] * tokens,
                        "stop",
                        text=f"{text} \\boxed{{{k}}}",
                    )
                    for k in range(GROUP)
                ]
            )
            for p in prompts
        }

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        return cast(list[Rollout], pickle.loads(self.made[prompt.id]))


class InTurn:
    """Prompts in their order, for ever."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts, self.next = prompts, 0

    def __next__(self) -> Prompt:
        self.next += 1
        return self.prompts[(self.next - 1) % len(self.prompts)]

    def observe(self, group: Sequence[Rollout]) -> None:
        pass


class Dice:
    """Rewards that cost nothing."""

    def score(self, rollouts: Sequence[Rollout]) -> None:
        for r in rollouts:
            r.reward = random.random()


def collector(run: Run, prompts: Sequence[Prompt], tokens: int, scorer: Any, text: str) -> Collector:
    statistics, sampler = PromptStatistics(prompts), cast(Any, InTurn(prompts))
    return Collector(AtOnce(prompts, tokens, text), scorer, sampler, statistics, run.rollout, run.sampling, Rules())


def setting(answers: int, tokens: int) -> tuple[Run, list[Prompt]]:
    run = load(
        {
            "model": {"path": "none"},
            "data": {"task": "Sorting"},
            "rollout": {"prompts": answers // GROUP, "n": GROUP},
            "sampling": {"max_tokens": tokens},
            "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k3", "coef": 0.04}],
        }
    )
    r = random.Random(0)
    return run, [
        Prompt(str(i), tuple(r.choices(range(3, 150_000), k=PROMPT)), "What is it?", answer="3")
        for i in range(answers // GROUP)
    ]


def step(answers: int, tokens: int, rounds: int = 3) -> dict[str, Any]:
    """CPU seconds of each part of a step, of the round that took least."""
    run, prompts = setting(answers, tokens)
    found = collector(run, prompts, tokens, Dice(), "so")
    learners = LearnerGroup(cast(Workers, Idle()), run.learner_setup("none", frozenset({"adv", "old", "ref", "behav"})))
    record = SimpleNamespace(statistics=found.statistics)
    s = cast(Any, SimpleNamespace(record=record, feed=SimpleNamespace(player=None)))
    best: dict[str, float] = {}
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for _ in range(rounds):
        laps = [("", time.process_time())]

        def lap(name: str, laps: list[tuple[str, float]] = laps) -> None:
            laps.append((name, time.process_time()))

        rollouts = found.next(0)
        lap("collect")
        b = Batch.from_rollouts(rollouts)
        lap("pack")
        b = learners.annotate(b, ("old", "ref"))
        lap("annotate")
        b = b.replace(adv=GroupNorm()(b))
        lap("advantages")
        learners.update(b, (1.0, 0.04), seed=0)
        lap("update")
        sampled(s, rollouts, b.policy_rows())
        lap("report")
        took = {name: at - laps[k][1] for k, (name, at) in enumerate(laps[1:])}
        if sum(took.values()) < sum(best.values() or [math.inf]):
            best = took
        del b, rollouts
    found.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"answers": answers, "tokens": tokens, "driver": sum(best.values()), **best, "added_mib": peak - held}


def rewards(answers: int, tokens: int, workers: int) -> dict[str, Any]:
    """Answers a minute through the collector and the built-in verifier, in its processes."""
    run, prompts = setting(answers, tokens)
    scorer = Scorer([RewardSpec("math")], workers=workers)
    scorer.check([])
    text = "We add one and two, as the question says, and see what it is. " * (4 * tokens // 60)
    found = collector(run, prompts, tokens, scorer, text)
    try:
        found.next(0)  # processes start
        cpu, wall = time.process_time(), time.perf_counter()
        made = len(found.next(1))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        found.close()
        scorer.close()
    return {"answers": made, "a_minute": 60 * made / wall, "of_the_driver": 60 * made / cpu, "workers": workers}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--answers", type=int, default=8192)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--rewards", action="store_true")
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(1)
    with rare_collections():
        row = rewards(a.answers, a.tokens, a.workers) if a.rewards else step(a.answers, a.tokens)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
