"""The learners and the engines of a run behind two plain classes, in this process or on Ray.

``LearnerGroup`` and ``EngineGroup`` have explicit methods and do all planning. What differs between a notebook and a
cluster is only how a method of a worker is called: :class:`LocalWorkers` or :class:`RayWorkers`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlkit.errors import NumericsError
from rlkit.learner.plan import cut, optimizer_steps
from rlkit.run import Run
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats


class Workers(Protocol):
    """Workers of one kind; ``call`` runs a method on all of them at once, ``one`` on a single one."""

    size: int

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Results of ``method`` on every worker; ``each`` gives every worker its own arguments."""
        ...

    def handles(self, method: str, *args: Any) -> list[Any]:
        """Like ``call``, but results may stay where they were made; pass them on to another group's ``call``."""
        ...

    def one(self, index: int, method: str, *args: Any) -> Any: ...

    def busy(self) -> float:
        """Seconds that the workers have spent in what ``call`` and ``handles`` asked of them, averaged over them."""
        ...

    def close(self) -> None: ...


class LocalWorkers:
    """One worker: an object of this process."""

    size = 1

    def __init__(self, worker: Any) -> None:
        self.worker, self._busy = worker, 0.0

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        start = time.perf_counter()
        try:
            return [getattr(self.worker, method)(*(each[0] if each else args))]
        finally:
            self._busy += time.perf_counter() - start

    def handles(self, method: str, *args: Any) -> list[Any]:
        return self.call(method, *args)

    def one(self, index: int, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*args)

    def busy(self) -> float:
        return self._busy

    def close(self) -> None:
        if hasattr(self.worker, "close"):
            self.worker.close()


class LearnerGroup:
    """All learner ranks. Batches are planned and cut here, from the whole batch."""

    def __init__(self, workers: Workers, run: Run, needs: frozenset[str]) -> None:
        self.workers, self.run, self.needs = workers, run, needs
        self._skipped = self._shown = 0  # optimizer steps skipped in a row, and shown in all
        self._buckets: dict[bool, list[tuple[list[str], int]]] = {}
        self.ready: dict[str, Any] = workers.call("ready")[0]
        self.packed = self.ready["layout"] == "packed"

    def annotate(self, b: Batch, which: Sequence[str]) -> Batch:
        """The batch with ``logp[...]`` (``old``, ``ref``) and ``value`` for the names in ``which``."""
        if not which:
            return b
        shards, rows = cut(b, self.workers.size, self.run.learner.max_tokens, self.packed)
        results = self.workers.call("annotate", each=[(micros, tuple(which)) for micros in shards])
        start = torch.bincount(b.seq, minlength=b.S).cumsum(0)
        start = torch.cat([start.new_zeros(1), start])
        index = torch.cat([torch.arange(int(start[s]), int(start[s + 1])) for part in rows for s in part.tolist()])
        found = {name: torch.empty(b.N).index_copy_(0, index, torch.cat([r[name] for r in results])) for name in which}
        cut_off = self.run.sampling.top_p < 1 or self.run.sampling.top_k > 0  # then a token may have the probability 0
        for name, x in found.items():
            good = x.isfinite() | ((x == -math.inf) & cut_off)
            b.check_tokens("value" if name == "value" else f"log-prob {name!r}", x, good)
        value = found.pop("value", b.value)
        return b.with_logp(**found).replace(value=value)

    def update(
        self,
        b: Batch,
        coefs: Sequence[float],
        seed: int,
        breakdown: bool = False,
        say: Callable[[str], object] = print,
    ) -> Stats:
        """All optimizer steps of one rollout batch; with ``breakdown`` the last one compares the terms' gradients.

        A step whose gradient is not finite is skipped on all ranks; ``say`` is told the term and the token of the first five.

        Raises:
            FloatingPointError: a reward, advantage or value target that is not finite, before any step; ``learner.max_skipped`` steps
                skipped in a row.
        """
        b.check_finite()
        section, stats = self.run.learner, Stats()
        steps = optimizer_steps(
            b,
            self.run.objective,
            epochs=section.epochs,
            count=section.minibatches,
            ranks=self.workers.size,
            max_tokens=section.max_tokens,
            seed=seed,
            packed=self.packed,
        )
        for k, shards in enumerate(steps):
            compare = breakdown and k == len(steps) - 1
            parts = self.workers.call("step", each=[(micros, tuple(coefs), compare) for micros in shards])
            for part in parts:
                stats.merge(part)
            self._judge(bool(parts[0]["learner/skipped"]), say)
        return stats.scaled("loss/", 1 / len(steps))

    def _judge(self, skipped: bool, say: Callable[[str], object]) -> None:
        """What follows from an optimizer step that was skipped."""
        self._skipped = self._skipped + 1 if skipped else 0
        limit = self.run.learner.max_skipped
        if not skipped or (self._shown >= 5 and self._skipped < limit):
            return
        self._shown += 1
        places: dict[str, str] = {}
        for found in self.workers.call("blame"):
            places = found | places
        where = ", ".join(f"{term} at {place}" for term, place in places.items())
        text = (
            f"the gradient of {where} is not finite"
            if where
            else ("the gradient is not finite; those of the terms are, so it arose in the model's own backward pass")
        )
        if self._skipped < limit:
            say(f"warning: no optimizer step was taken: {text}. ({self._skipped} in a row; at {limit} the run stops.)")
            return
        remedy = (
            "A cost can be finite where its gradient is not (a root or a logarithm at 0, torch.where around such a number): change the "
            "term, so that what is not used is never computed."
            if where
            else "Lower learner.lr, or continue in float32."
        )
        raise NumericsError(
            f"{text}. {self._skipped} optimizer steps in a row were skipped (learner.max_skipped: {limit}), so nothing is learned. {remedy}"
        )

    def after_step(self, step: int, stats: Stats) -> None:
        self.workers.call("after_step", step, stats)

    def buckets(self, everything: bool = True) -> list[tuple[list[str], int]]:
        """(names, bytes) of what :meth:`gather` takes at a time: all weights, or those that training can change."""
        if everything not in self._buckets:
            self._buckets[everything] = self.workers.call("buckets", everything)[0]
        return self._buckets[everything]

    def gather(self, names: Sequence[str]) -> Any:
        """A handle of whole tensors by name; give it to :meth:`EngineGroup.load`. On Ray the learners work while the driver goes on."""
        return self.workers.handles("gather", names)[0]

    def logprobs(self, rollouts: Sequence[Rollout], which: str = "old") -> list[list[float]]:
        """The learner's log-probs of each rollout's sampled tokens; ``uncut``: without ``top_p`` and ``top_k``."""
        b = self.annotate(Batch.from_rollouts(rollouts), (which,))
        return [x.tolist() for x in b.logp[which].split(torch.bincount(b.seq, minlength=b.S).tolist())]

    def uncut_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self.logprobs(rollouts, "uncut")

    def busy(self) -> float:
        """Seconds that the learners have worked (log-probs, steps, weights), averaged over them."""
        return self.workers.busy()

    def save(self, folder: str) -> None:
        self.workers.call("save", folder)

    def load(self, folder: str) -> None:
        self.workers.call("load", folder)

    def export(self, folder: str) -> None:
        self.workers.call("export", folder)

    def close(self) -> None:
        self.workers.close()


class EngineGroup:
    """All engines. A prompt group goes to the engine with the fewest running groups."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._running = [0] * workers.size
        self._lock = threading.Lock()
        self._turn = itertools.count()

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        with self._lock:
            first = next(self._turn) % self.workers.size
            i = min(range(self.workers.size), key=lambda k: (self._running[k], (k - first) % self.workers.size))
            self._running[i] += 1
        try:
            return self.workers.one(i, "generate", prompt, n, sampling)
        finally:
            with self._lock:
                self._running[i] -= 1

    def generate_on(self, index: int, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """On one given engine; the parity probe asks each of them."""
        return self.workers.one(index, "generate", prompt, n, sampling)

    def score(self, rollouts: Sequence[Rollout], temperature: float) -> list[list[float]]:
        return self.workers.one(0, "score", rollouts, temperature)

    def begin_update(self, mode: str) -> None:
        self.workers.call("begin_update", mode)

    def load(self, tensors: Mapping[str, Tensor] | Any) -> None:
        self.workers.call("load", tensors)

    def end_update(self, version: int) -> None:
        self.workers.call("end_update", version)

    def stats(self) -> list[dict[str, float]]:
        return self.workers.call("stats")

    def peak(self) -> float:
        """The most memory of any engine, MiB."""
        return max(s["peak_mib"] for s in self.stats())

    def busy(self) -> float:
        """Seconds that the engines have worked, averaged over them."""
        found = [s["busy"] for s in self.stats()]
        return sum(found) / len(found)

    def close(self) -> None:
        self.workers.close()
