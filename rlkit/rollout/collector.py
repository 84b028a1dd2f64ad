"""One collector for on-policy, k-steps-off and in-flight training: only ``max_lag`` and the weight sync's mode differ."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from rlkit.rollout.engine import Aborted
from rlkit.rollout.interrupt import Interruption
from rlkit.types import Prompt, Rollout, Sampling


class Generates(Protocol):
    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]: ...


class Scores(Protocol):
    def score(self, rollouts: Sequence[Rollout]) -> None: ...


class Collector:
    """Keeps prompt groups in flight and hands out ``prompts`` finished ones a step, in the order in which they started.

    Group ``i`` may start once ``i < (version + 1 + max_lag) * prompts + replaced``: with ``max_lag=0`` generation is strictly
    on-policy, with ``k`` it runs up to ``k`` steps ahead. Groups leave in start order, so that short answers do not win.
    Rewards are computed in the same thread as their group, while other groups still generate.
    """

    def __init__(self, engine: Generates, scorer: Scores, sampler: Any, *, prompts: int, n: int, sampling: Sampling, max_lag: int = 0,
                 drop: Sequence[Callable[[Sequence[Rollout]], str | None]] = (), refill: bool = True, admit: Any = None,
                 max_waste: float = 10.0, interrupt: Interruption | None = None, statistics: Any = None,
                 timeline: Any = None) -> None:
        self.engine, self.scorer, self.sampler, self.admit, self.statistics = engine, scorer, sampler, admit, statistics
        self.prompts, self.n, self.sampling, self.max_lag = prompts, n, sampling, max_lag
        self.drop, self.refill, self.max_waste, self.interrupt = tuple(drop), refill, max_waste, interrupt
        self.timeline = timeline or (lambda *a, **k: contextlib.nullcontext())
        self.pool = ThreadPoolExecutor(prompts * (1 + max_lag) * 2, thread_name_prefix="group")
        self.pending: deque[Future[tuple[list[Rollout], str | None]]] = deque()
        self.started = self.replaced = self.dropped = self.base = self.aborted = 0
        self.reasons: Counter[str] = Counter()
        self.waited = 0.0

    def start_at(self, version: int) -> None:
        """A resumed run's first step: groups of earlier steps need not be made again."""
        self.base = version

    def _admit(self, version: int) -> None:                     # the whole staleness rule
        while self.started < (version - self.base + 1 + self.max_lag) * self.prompts + self.replaced:
            self.pending.append(self.pool.submit(self._run_group, next(self.sampler)))
            self.started += 1

    def _run_group(self, prompt: Prompt) -> tuple[list[Rollout], str | None]:
        """The scored group, or one greedy response and the reason why the prompt was not admitted."""
        asked: list[Rollout] = []

        def ask(n: int, greedy: bool) -> list[Rollout]:
            asked[:] = self._ask(prompt, n, dataclasses.replace(self.sampling, temperature=0.0) if greedy else self.sampling)
            return asked

        refused = None if self.admit is None else self.admit(prompt, ask)
        return (asked, refused) if refused else (self._ask(prompt, self.n, self.sampling), None)

    def _ask(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        while True:
            try:
                with self.timeline("generate", threading.current_thread().name, prompt=prompt.id):
                    group = self.engine.generate(prompt, n, sampling) if self.interrupt is None else (
                        self.interrupt.generate(self.engine, prompt, n, sampling))
                break
            except Aborted:
                self.aborted += 1
        with self.timeline("reward", threading.current_thread().name, prompt=prompt.id):
            self.scorer.score(group)
        return group

    def next(self, version: int) -> list[Rollout]:
        """The rollouts of the next step; ``rollout.group`` numbers the prompt groups from 0.

        Errors of engines and rewards surface here. Responses without a reward are left out. Without ``refill`` there are fewer groups when
        some are dropped, but at least one.

        Raises:
            RuntimeError: more than ``max_waste * prompts`` groups of one step were dropped.
        """
        out: list[Rollout] = []
        kept = dropped_now = 0
        start = time.perf_counter()
        while kept + (0 if self.refill else dropped_now) < self.prompts or not kept:
            self._admit(version)
            group, refused = self.pending.popleft().result()
            if self.statistics is not None:
                self.statistics.step = version
                self.statistics.observe(group)
            self.sampler.observe(group)
            scored = [r for r in group if not math.isnan(r.reward)]
            why = refused or "no_reward" if refused or not scored else next(filter(None, (rule(scored) for rule in self.drop)), None)
            if why is None:
                for r in scored:
                    r.group = kept
                out.extend(scored)
                kept += 1
                continue
            self.dropped += 1
            dropped_now += 1
            if self.refill or dropped_now >= self.prompts:      # there must be something to train on
                self.replaced += 1
            self.reasons[why] += 1
            if dropped_now > self.max_waste * self.prompts:
                counts = ", ".join(f"{k}: {v}" for k, v in self.reasons.most_common())
                raise RuntimeError(
                    f"{dropped_now} groups were dropped in one step to find {kept} of {self.prompts} to train on ({counts}; last "
                    f"prompt: {group[0].prompt.id}{', ' + group[0].error if group[0].error else ''}). The task is too easy or too "
                    "hard for the model, or rewards fail. Raise rollout.max_waste, change data.drop, or choose other prompts.")
        self.waited = time.perf_counter() - start
        return out

    def metrics(self) -> dict[str, float]:
        reasons = {f"rollout/dropped_{k}": float(v) for k, v in self.reasons.items()}
        known = {} if self.statistics is None else self.statistics.metrics()
        counts = {"rollout/dropped": float(self.dropped), "rollout/aborted": float(self.aborted)}
        return {**counts, **reasons, **known, **self.sampler.metrics()}

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
