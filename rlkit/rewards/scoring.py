"""Calling reward functions safely: by name, in worker processes, with a time-out that kills.

A reward is a plain function::

    def correct(response, answer, level=1):              # `level` is a column of the data set
        return float(response.strip() == answer)         # or {"correct": 1.0, "format": 0.2}: the reward is the sum

Parameters are filled by name from ``prompt``, ``response``, ``answer``, ``tokens``, ``finish``, ``id`` and every data column. It runs in a
worker process; one that hangs is killed with its process, and a new one takes its place. Calls of an ``async`` function wait side by side.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkit.config import locate
from rlkit.errors import ConfigError, RewardError
from rlkit.rewards.functions import BUILTIN, import_function, parameters
from rlkit.rewards.workers import Answer, AsyncWorker, Call, Worker

if TYPE_CHECKING:
    from rlkit.types import Rollout  # types only: a reward's process must not import torch


BATCH_CALLS, BATCH_CHARACTERS = 64, 1_000_000
ALWAYS = ("prompt", "response", "answer", "tokens", "finish", "id")


@dataclass(frozen=True)
class RewardSpec:
    """One reward: a function, or where it is: ``my_file.py:fn``, ``package.module:fn``, or a built-in name.

    ``args`` are parameters with a fixed value. ``timeout`` is in seconds, per response. ``task`` is the verifier of ``data.task``.
    ``concurrency``: how many calls of an ``async`` function wait at the same time, over all responses.
    """

    fn: Any
    weight: float = 1.0
    timeout: float = 10.0
    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 64

    @property
    def is_math(self) -> bool:
        """Whether it is the built-in verifier of mathematical answers, by either of its names."""
        return isinstance(self.fn, str) and BUILTIN.get(self.fn, self.fn) == BUILTIN["math"]

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        return (
            self.fn.rsplit(":", 1)[-1]
            if isinstance(self.fn, str)
            else str(getattr(self.fn, "__name__", type(self.fn).__name__))
        )


def inputs_of(r: Rollout) -> dict[str, Any]:
    """Everything a reward may ask for by name."""
    return {
        **r.prompt.columns,
        "prompt": r.prompt.text,
        "response": r.text,
        "answer": r.prompt.answer,
        "tokens": r.tokens,
        "finish": r.finish,
        "id": r.prompt.id,
    }


class Scorer:
    """Fills ``reward``, ``parts`` and ``error`` of rollouts. Thread-safe; calls from many collector threads run side by side.

    ``on_error``: a reward that raises, hangs or returns something else is counted and reported with its prompt;
    ``mask`` leaves the reward nan (the response is not trained on), ``raise`` stops the run, ``zero`` gives 0.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        *,
        on_error: Literal["mask", "raise", "zero"] = "mask",
        workers: int = 1,
        base: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.rewards, self.on_error, self.base, self.report = tuple(rewards), on_error, base, report
        self.workers, self.counts = max(1, workers), Counter[str]()
        self._names: list[list[str]] = []
        self._waits: set[int] = set()  # the async ones
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._payload = b""
        self._async: AsyncWorker | None = None
        self._reported = self._scoring = 0
        self.busy = 0.0

    def check(self, columns: Sequence[str]) -> None:
        """Imports every reward and matches its parameters with the data, before anything expensive starts.

        Raises:
            ValueError: a reward that cannot be imported, or a parameter that nothing fills.
        """
        try:
            import cloudpickle
        except ImportError:
            raise ConfigError(
                "rewards run in worker processes, which needs cloudpickle. Install it with: pip install cloudpickle"
            ) from None
        available = sorted({*ALWAYS, *columns})
        functions: list[Any] = []
        self._names, self._waits = [], set()
        for spec in self.rewards:
            fn = import_function(spec.fn, self.base) if isinstance(spec.fn, str) else spec.fn
            unknown = [name for name in spec.args if name not in inspect.signature(fn).parameters]
            if unknown:
                raise ConfigError(
                    f"reward {spec.label!r} has no parameter {unknown[0]!r} (args); it has "
                    f"{', '.join(inspect.signature(fn).parameters)}."
                )
            # The options of a built-in reward come from `args` alone: a data column that happens to be called `mode` must not set one.
            offered = ALWAYS if isinstance(spec.fn, str) and spec.fn in BUILTIN else available
            self._names.append(parameters(fn, sorted({*offered, *spec.args}), spec.label))
            if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
                self._waits.add(len(functions))
                if spec.concurrency < 1:
                    raise ConfigError(
                        f"reward {spec.label!r}: concurrency {spec.concurrency} lets no call start; it has to be 1 or more."
                    )
            portable = isinstance(spec.fn, str) and ".py:" not in spec.fn
            if not portable and not isinstance(spec.fn, str):
                module = inspect.getmodule(fn)
                if module is not None and module.__name__ != "__main__" and module.__name__ not in _installed():
                    cloudpickle.register_pickle_by_value(module)
            if isinstance(spec.fn, str) and ".py:" in spec.fn:
                path, _, name = spec.fn.rpartition(":")
                functions.append(f"{locate(path, self.base).resolve()}:{name}")
            else:
                functions.append(spec.fn)
        self._payload = cloudpickle.dumps(functions)
        if self._waits:
            self._async = AsyncWorker(self._payload, max(self.rewards[i].timeout for i in self._waits))

    def score(self, rollouts: Sequence[Rollout]) -> None:
        """Scores all of them; returns when the last one is scored.

        Raises:
            RewardError: under ``on_error="raise"``.
        """
        start = time.perf_counter()
        with self._lock:
            self._scoring += 1
            alone = self._scoring == 1
        # The calls of many rollouts travel in one message. A caller that is alone uses all workers; many callers have one each.
        share = max(
            1, min(BATCH_CALLS // max(1, len(self.rewards)), -(-len(rollouts) // (self.workers if alone else 1)))
        )
        batches: list[list[tuple[Rollout, list[Call | Future[Answer]]]]] = []
        size = 0
        try:
            for r in rollouts:
                if not batches or len(batches[-1]) >= share or size > BATCH_CHARACTERS:
                    batches.append([])
                    size = 0
                batches[-1].append((r, self._calls(r)))
                size += len(r.text)
            if alone and len(batches) > 1 and self.workers > 1:
                with ThreadPoolExecutor(min(self.workers, len(batches))) as threads:
                    list(threads.map(self._score_batch, batches))
            else:
                for batch in batches:
                    self._score_batch(batch)
        finally:
            with self._lock:
                self._scoring -= 1
        with self._lock:
            self.busy += time.perf_counter() - start

    def _calls(self, r: Rollout) -> list[Call | Future[Answer]]:
        """For each reward its call, or for an async one the call that is under way."""
        inputs, calls = inputs_of(r), list[Call | Future[Answer]]()
        for index, spec in enumerate(self.rewards):
            given = {**inputs, **spec.args}
            call: Call = (index, {n: given[n] for n in self._names[index] if n in given})
            calls.append(
                self._async.submit(call, spec.timeout, spec.concurrency)
                if self._async and index in self._waits
                else call
            )
        return calls

    def _score_batch(self, batch: Sequence[tuple[Rollout, Sequence[Call | Future[Answer]]]]) -> None:
        plain = [c for _, calls in batch for c in calls if not isinstance(c, Future)]
        answers = iter(list(self._call(plain)))  # all of them now: async calls wait meanwhile
        for r, calls in batch:
            total = 0.0
            for spec, call in zip(self.rewards, calls, strict=True):
                status, value = call.result() if isinstance(call, Future) else next(answers)
                if status == "ok" and value is None:
                    status, value = "unscorable", "the reward returned None"
                if status == "ok":
                    for key, v in value.items():
                        r.parts[f"{spec.label}/{key}" if key else spec.label] = v
                    total += spec.weight * sum(value.values())
                    continue
                self._failed(r, spec, status, value)
                if self.on_error == "mask":
                    total = math.nan
            r.reward = total
        with self._lock:
            self.counts["calls"] += len(batch) * len(self.rewards)

    def _failed(self, r: Rollout, spec: RewardSpec, status: str, why: str) -> None:
        with self._lock:
            self.counts[status] += 1
            self.counts[f"{status}/{spec.label}"] += 1
            self._reported += 1
            first = self._reported <= 5
        r.error = f"{spec.label}: {status}: {why}"
        message = (
            f"reward {spec.label!r} {'timed out' if status == 'timeout' else 'failed'} on prompt {r.prompt.id}: {why}; "
            f"response {r.text[:80]!r}"
        )
        if self.on_error == "raise":
            raise RewardError(message + ". Mend it, or set on_reward_error: mask.")
        if first:
            more = (
                " Further failures are only counted (reward/errors; `error` in rollouts.jsonl)."
                if self._reported == 5
                else ""
            )
            self.report(f"warning: {message}.{more}")

    def _call(self, calls: Sequence[Call]) -> Iterator[Answer]:
        """The answers to all calls in order; after one that hung or killed its process, the rest goes to another process."""
        done = 0
        while done < len(calls):
            rest = calls[done:]
            with self._slots:
                try:
                    worker = self._idle.get_nowait()
                except queue.Empty:
                    worker = Worker(self._payload)
                answers: list[Answer] = []
                try:
                    for answer in worker.call(rest, [self.rewards[index].timeout for index, _ in rest]):
                        answers.append(answer)
                except (EOFError, OSError):
                    answers.append(("error", worker.died()))
                finally:
                    if worker.healthy:
                        self._idle.put(worker)
                    else:
                        worker.kill()
            done += len(answers)
            yield from answers

    def metrics(self) -> dict[str, float]:
        return {
            "reward/errors": float(self.counts["error"] + self.counts["unscorable"]),
            "reward/timeouts": float(self.counts["timeout"]),
        }

    def close(self) -> None:
        self.report = lambda text: None  # calls that the end of a run cuts off are no failures
        if self._async is not None:
            self._async.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().kill()


def _installed() -> set[str]:
    """Modules that a worker can import by name."""
    return {
        name
        for name, m in sys.modules.items()
        if "site-packages" in str(getattr(m, "__file__", "")) or name.startswith("rlkit")
    }
