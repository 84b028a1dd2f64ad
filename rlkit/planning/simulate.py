"""A run in simulated time: engines with continuous batching, one learner, and the collector's staleness rule.

An engine makes one token for each of its running sequences a step, so all of them age together: a sequence that starts at engine step ``k``
with ``l`` tokens ends at ``k + l``. Events are therefore ends of sequences, not tokens, and a step on 1,024 GPUs takes seconds to simulate.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rlkit.errors import ConfigError
from rlkit.files import read_rows
from rlkit.run import load


@dataclass(frozen=True)
class LogNormal:
    """Response lengths: log-normal with spread ``sigma`` of the log, cut at ``limit``; ``mean`` (tokens) is that of the cut lengths."""

    mean: float
    sigma: float
    limit: int

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= self.limit:
            raise ConfigError(
                f"response lengths: the mean is {self.mean:g}; it must be between 1 and the limit, {self.limit}."
            )

    def _cut_mean(self, mu: float) -> float:
        def below(x: float) -> float:
            return 0.5 * (1 + math.erf(x / math.sqrt(2)))

        d = (math.log(self.limit) - mu) / self.sigma
        return math.exp(mu + self.sigma**2 / 2) * below(d - self.sigma) + self.limit * (1 - below(d))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Whole numbers from 1 to ``limit``."""
        if self.sigma == 0 or self.mean >= self.limit:
            return np.full(count, round(self.mean))
        low, high = math.log(1e-3), math.log(self.limit) + 40 * self.sigma
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cut_mean(middle) < self.mean else (low, middle)
        return np.clip(np.rint(rng.lognormal(low, self.sigma, count)), 1, self.limit).astype(int)


@dataclass(frozen=True)
class Workload:
    """What one step asks for: ``prompts`` groups of ``n`` responses, prompts of ``prompt_tokens``, and the collector's settings."""

    prompts: int
    n: int
    lengths: LogNormal
    prompt_tokens: float = 0.0
    max_lag: int = 0
    pause: Literal["wait", "keep"] = "wait"
    over: float = 0.0
    overtake: int = 1

    def __post_init__(self) -> None:
        if self.pause not in ("wait", "keep"):
            raise ConfigError(f"rollout.pause is {self.pause!r}; the simulation knows wait and keep.")


@dataclass(frozen=True)
class EngineModel:
    """Seconds of one engine step with ``b`` running sequences of together ``c`` tokens: ``base + per_sequence b + per_context c``.

    ``prefill``: seconds that a new prompt group stops the engine. ``max_running``: sequences at once; the others wait their turn.
    """

    base: float
    per_sequence: float = 0.0
    per_context: float = 0.0
    prefill: float = 0.0
    max_running: int = 256


@dataclass(frozen=True)
class LearnerModel:
    """Seconds of annotate and update: ``fixed + per_token * tokens`` (prompts included), and of one weight sync."""

    fixed: float
    per_token: float
    sync: float = 0.0


@dataclass
class Trace:
    """What happened. Arrays are per step, in seconds or tokens; ``lag`` is per response: mean version distance of its tokens."""

    engines: int
    start: np.ndarray
    end: np.ndarray
    waited: np.ndarray  # for responses: what a run logs as time/generate
    updated: np.ndarray
    synced: np.ndarray  # with the wait for running requests: time/sync
    tokens: np.ndarray  # response tokens that were trained
    busy: np.ndarray  # engine seconds, summed over engines
    overlap: np.ndarray  # those of them during the update
    lag: list[float]
    served: int  # responses that finished, and their tokens
    served_tokens: float

    def _window(self) -> slice:
        return slice(len(self.end) // 3, None)  # the pipeline has filled

    @property
    def step_seconds(self) -> float:
        w = self._window()
        return float((self.end[w][-1] - self.start[w][0]) / len(self.end[w]))

    @property
    def throughput(self) -> float:
        """Trained response tokens per second."""
        return float(self.tokens[self._window()].mean() / self.step_seconds)

    @property
    def engine_idle(self) -> float:
        return float(1 - self.busy[self._window()].mean() / self.engines / self.step_seconds)

    @property
    def learner_idle(self) -> float:
        return float(1 - self.updated[self._window()].mean() / self.step_seconds)

    @property
    def staleness(self) -> float:
        """Mean version distance of a trained token."""
        return float(np.mean(self.lag))


class _Engine:
    """One engine; ``k`` counts its steps, ``c`` the tokens in its cache."""

    def __init__(self, model: EngineModel, prompt_tokens: float) -> None:
        self.model, self.prompt = model, prompt_tokens
        self.k = self.c = self.t = self.debt = self.busy = 0.0
        self.running: list[tuple[float, int, float, int]] = []  # (last step, sequence, first step, tokens)
        self.waiting: deque[tuple[int, int, bool]] = deque()  # (sequence, tokens, first of its group)
        self.frozen = False
        self.marks = [0.0]  # step at which each weight version began
        self.stamp = 0

    def _rates(self) -> tuple[float, float]:
        """A step's seconds now, and half of what each further step adds."""
        b, m = len(self.running), self.model
        return m.base + m.per_sequence * b + m.per_context * self.c, m.per_context * b / 2

    def advance(self, now: float) -> None:
        dt, self.t = now - self.t, now
        if self.frozen or not self.running:
            return
        self.busy += dt
        paid = min(dt, self.debt)
        self.debt, dt = self.debt - paid, dt - paid
        a, h = self._rates()
        # Clearing h k^2 + a k = dt without losing digits where h is small.
        steps = 2 * dt / (a + math.sqrt(a * a + 4 * h * dt)) if dt else 0.0
        self.k, self.c = self.k + steps, self.c + steps * len(self.running)

    def admit(self) -> None:
        while self.waiting and len(self.running) < self.model.max_running and not self.frozen:
            i, tokens, first = self.waiting.popleft()
            heapq.heappush(self.running, (self.k + tokens, i, self.k, tokens))
            self.c += self.prompt
            self.debt += self.model.prefill if first else 0.0

    def next_end(self) -> float:
        if self.frozen or not self.running:
            return math.inf
        steps = max(0.0, self.running[0][0] - self.k)
        a, h = self._rates()
        return self.t + self.debt + a * steps + h * steps * steps

    def finished(self, at: float) -> Iterator[tuple[int, int, float]]:
        """Ends what ends now: (sequence, tokens, mean weight version of its tokens)."""
        self.k = max(self.k, min(self.running[0][0], at))
        while self.running and self.running[0][0] <= self.k + 1e-9:
            last, i, first, tokens = heapq.heappop(self.running)
            self.c -= self.prompt + tokens
            version, total = len(self.marks) - 1, 0.0
            while True:  # versions that were current while it ran, newest first
                begin = max(first, self.marks[version])
                total += max(0.0, last - begin) * version
                last = min(last, begin)
                if self.marks[version] <= first:
                    break
                version -= 1
            yield i, tokens, total / tokens
        if not self.running:
            self.c = 0.0


class _Simulation:
    def __init__(self, w: Workload, engines: int, model: EngineModel, seed: int) -> None:
        self.w, self.rng = w, np.random.default_rng(seed)
        self.engines = [_Engine(model, w.prompt_tokens) for _ in range(engines)]
        self.now, self.started = 0.0, 0
        self.events: list[tuple[float, int, int]] = []
        self.open: dict[int, int] = {}  # responses that are missing, by group
        self.waiting: deque[int] = deque()  # groups that no step has taken, in start order
        self.ready: list[int] = []  # those of them that are complete, oldest first
        self.taken = 0
        self.place: dict[int, int] = {}
        self.loads = [(0, k, k) for k in range(engines)]  # (running groups, turn, engine)
        self.running_groups, self.turn = [0] * engines, itertools.count(engines)
        self.length: dict[int, list[tuple[int, float]]] = {}  # (tokens, mean version) of finished responses, by group
        self.served = self.served_tokens = self.left = 0

    def plan(self, k: int) -> None:
        e = self.engines[k]
        e.stamp += 1
        at = e.next_end()
        if at < math.inf:
            heapq.heappush(self.events, (at, k, e.stamp))

    def group(self) -> None:
        """One more group, to the engine with the fewest running ones."""
        while True:
            load, _, k = heapq.heappop(self.loads)
            if load == self.running_groups[k]:
                break
        self.running_groups[k] += 1
        heapq.heappush(self.loads, (load + 1, next(self.turn), k))
        g, n = self.started, self.w.n
        self.started, self.open[g], self.place[g], self.length[g] = g + 1, n, k, []
        self.waiting.append(g)
        self.left += n
        e = self.engines[k]
        e.advance(self.now)
        e.waiting.extend((g * n + j, int(tokens), j == 0) for j, tokens in enumerate(self.w.lengths.draw(self.rng, n)))
        e.admit()
        self.plan(k)

    def run(self, done: Callable[[], bool] = lambda: False, until: float = math.inf) -> None:
        """Until ``done`` or until a time."""
        while not done():
            while self.events and self.events[0][2] != self.engines[self.events[0][1]].stamp:
                heapq.heappop(self.events)
            if not self.events or self.events[0][0] > until:
                assert until < math.inf, "a simulated run waits for something that never comes"
                break
            self.now, k, _ = heapq.heappop(self.events)
            e = self.engines[k]
            e.advance(self.now)
            for i, tokens, version in e.finished(e.running[0][0]):
                g = i // self.w.n
                self.length[g].append((tokens, version))
                self.open[g], self.left = self.open[g] - 1, self.left - 1
                self.served, self.served_tokens = self.served + 1, self.served_tokens + tokens
                if not self.open[g]:
                    insort(self.ready, g)
                    self.running_groups[k] -= 1
                    heapq.heappush(self.loads, (self.running_groups[k], next(self.turn), k))
            e.admit()
            self.plan(k)
        if until < math.inf:
            self.now = until

    def take(self, extra: int) -> int:
        """The group that the collector would hand out next, waiting for it."""
        group = oldest = self.waiting[0]
        if extra and self.taken - oldest < self.w.overtake * self.w.prompts:
            self.run(lambda: bool(self.ready))
            group = self.ready[0]
        else:
            self.run(lambda: not self.open[oldest])
        self.waiting.remove(group)
        self.ready.remove(group)
        self.taken += 1
        return group

    def freeze(self, frozen: bool) -> None:
        for k, e in enumerate(self.engines):
            e.advance(self.now)
            e.frozen = frozen
            e.admit()
            self.plan(k)

    def busy(self) -> float:
        for e in self.engines:
            e.advance(self.now)
        return sum(e.busy for e in self.engines)


def simulate(
    w: Workload,
    engines: int,
    engine: EngineModel,
    learner: LearnerModel,
    *,
    steps: int = 12,
    seed: int = 0,
    shared: bool = False,
) -> Trace:
    """The loop of :func:`rlkit.trainer.train` in simulated time, with the rule of :class:`rlkit.rollout.collector.Collector`.

    Group ``i`` may start once ``i < (version + 1 + max_lag) * prompts + ceil(over * prompts)``; the step of version ``v`` trains groups
    ``v * prompts`` to ``(v + 1) * prompts - 1``, or with ``over`` those that end first. ``pause: wait`` lets all running groups end before
    new weights come, ``keep`` stops them meanwhile.
    ``shared``: engine and learner are one device and take turns.
    """
    if engines < 1 or steps < 1:
        raise ConfigError(f"a simulation needs at least one engine and one step; found {engines} and {steps}.")
    sim = _Simulation(w, engines, engine, seed)
    rows: list[tuple[float, ...]] = []
    lag: list[float] = []
    extra = math.ceil(w.over * w.prompts)
    for v in range(steps):
        start, busy = sim.now, sim.busy()
        while sim.started < (v + 1 + w.max_lag) * w.prompts + extra:
            sim.group()
        mine = [sim.take(extra) for _ in range(w.prompts)]
        waited = sim.now - start
        responses = [r for g in mine for r in sim.length.pop(g)]
        lag.extend(round(v - version, 9) for _, version in responses)
        tokens = float(sum(t for t, _ in responses))
        seconds = learner.fixed + learner.per_token * (tokens + w.prompt_tokens * len(responses))
        before = sim.busy()
        if shared:
            sim.freeze(True)
        sim.run(until=sim.now + seconds)
        if shared:
            sim.freeze(False)
        overlap, updated = sim.busy() - before, sim.now
        if w.pause == "wait":
            sim.run(lambda: not sim.left)
        sim.freeze(True)
        sim.now += learner.sync
        for e in sim.engines:
            e.marks.append(e.k)
        sim.freeze(False)
        rows.append((start, sim.now, waited, seconds, sim.now - updated, tokens, sim.busy() - busy, overlap))
    begin, end, waits, updates, syncs, trained, worked, overlaps = np.array(rows).T
    return Trace(
        engines, begin, end, waits, updates, syncs, trained, worked, overlaps, lag, sim.served, float(sim.served_tokens)
    )


@dataclass(frozen=True)
class Calibration:
    """What a finished run measured, as the simulation's parts; :meth:`predict` runs it with other settings."""

    workload: Workload
    engines: int
    engine: EngineModel
    learner: LearnerModel
    measured: float  # median time/step of that run, seconds
    shared: bool

    def predict(
        self,
        max_lag: int | None = None,
        pause: Literal["wait", "keep"] | None = None,
        engines: int | None = None,
        steps: int = 30,
        seed: int = 0,
        shared: bool | None = None,
    ) -> Trace:
        """The same run with another ``max_lag``, ``pause`` or number of engines.

        ``shared``: whether engine and learner take turns on one device. On one CPU the truth lies between: overlapping stages slow
        each other.
        """
        w = self.workload
        w = dataclasses.replace(w, max_lag=w.max_lag if max_lag is None else max_lag, pause=pause or w.pause)
        return simulate(
            w,
            engines or self.engines,
            self.engine,
            self.learner,
            steps=steps,
            seed=seed,
            shared=self.shared if shared is None else shared,
        )


def calibrate(folder: str | Path, skip: int = 2) -> Calibration:
    """Fits the simulation to a run folder's ``metrics.jsonl``, without the first ``skip`` steps, which warm up, and without
    steps that took more than twice the median (a probe, a checkpoint, another user of the machine).

    With ``max_lag: 0`` the wait for responses is the engines' time, ``base * longest + per_sequence * tokens / engines + constant``: least
    squares over the steps, no coefficient below 0. The learner's time is ``fixed + per_token * tokens`` in the same way.

    Raises:
        ConfigError: no such run, too few steps, or a run with ``max_lag`` above 0, whose waits overlap with training.
    """
    folder = Path(folder)
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"calibrate: {folder} has no metrics.jsonl; give the folder of a run.")
    run = load(folder / "config.yaml")
    if run.rollout.max_lag or run.rollout.over:
        raise ConfigError(
            f"calibrate: {folder} ran with rollout.max_lag: {run.rollout.max_lag} and over: {run.rollout.over:g}, so its "
            "time/generate is not the engines' own. Use a run with both at 0."
        )
    rows = read_rows(folder / "metrics.jsonl", print)[skip:]
    usual = 2 * float(np.median([r["time/step"] for r in rows])) if rows else 0.0
    rows = [r for r in rows if r["time/step"] <= usual]
    if len(rows) < 4:
        raise ConfigError(f"calibrate: {folder} has {len(rows)} steps after the first {skip}; at least 4 are needed.")

    def column(name: str) -> np.ndarray:
        return np.array([float(r[name]) for r in rows])

    engines = run.cluster.engines if run.cluster else 1
    tokens = column("length/mean") * column("batch/sequences")
    base, per_token, constant = _fit(
        [column("length/max"), tokens / engines, np.ones(len(rows))], column("time/generate")
    )
    stages = column("time/annotate") + column("time/update") + column("time/sync")
    rest = column("time/step") - stages - column("time/generate")
    per, fixed = _fit([tokens, np.ones(len(rows))], column("time/annotate") + column("time/update") + rest)
    limit = max(run.sampling.max_tokens, int(column("length/max").max()))
    # Prompts are part of what the learner reads, but a fit over one data set cannot tell them from the constant: they are in `fixed`.
    mean, longest = max(1.0, float(column("length/mean").mean())), float(column("length/max").mean())
    lengths = _spread(mean, longest, run.rollout.prompts * run.rollout.n, limit)
    pause: Literal["wait", "keep"] = "keep" if run.rollout.pause in ("keep", "continue") else "wait"
    workload = Workload(run.rollout.prompts, run.rollout.n, lengths, 0.0, 0, pause)
    seats = int(run.vllm.get("max_num_seqs", 256)) if run.rollout.engine == "vllm" else run.rollout.n
    return Calibration(
        workload,
        engines,
        EngineModel(base, per_token, 0.0, constant * engines / run.rollout.prompts, seats),
        LearnerModel(fixed, per, float(np.median(column("time/sync")))),
        float(np.median(column("time/step"))),
        run.cluster is None,
    )


def _spread(mean: float, longest: float, count: int, limit: int) -> LogNormal:
    """Lengths of this mean, of which the longest of ``count`` is ``longest`` tokens on average."""
    low, high = 0.0, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        found = (
            LogNormal(mean, middle, limit).draw(np.random.default_rng(0), 200 * count).reshape(200, count).max(1).mean()
        )
        low, high = (middle, high) if found < longest else (low, middle)
    return LogNormal(mean, low, limit)


def _fit(columns: Sequence[np.ndarray], y: np.ndarray) -> list[float]:
    """Least squares with coefficients of at least 0: the best of all subsets of columns whose own fit is not negative."""
    best, out = math.inf, [0.0] * len(columns)
    for count in range(1, len(columns) + 1):
        for chosen in itertools.combinations(range(len(columns)), count):
            a = np.stack([columns[i] for i in chosen], 1)
            x, *_ = np.linalg.lstsq(a, y, rcond=None)
            error = float(((a @ x - y) ** 2).sum())
            if (x >= 0).all() and error < best * (1 - 1e-9):
                best, out = error, [0.0] * len(columns)
                for i, value in zip(chosen, x, strict=True):
                    out[i] = float(value)
    return out
