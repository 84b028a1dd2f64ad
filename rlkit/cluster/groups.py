"""The learners and the engines of a run behind two plain classes, in this process or on Ray.

``LearnerGroup`` and ``EngineGroup`` have explicit methods and do all planning. What differs between a notebook and a
cluster is only how a method of a worker is called: :class:`LocalWorkers` or :class:`RayWorkers`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlkit.cluster.turns import Turns
from rlkit.cluster.watch import one_line
from rlkit.errors import EngineError, NumericsError, RunError, WorkerError
from rlkit.learner.plan import annotated, compared, cut, optimizer_steps, prepared
from rlkit.learner.setup import LearnerSetup
from rlkit.learner.transfer import Client, Meeting
from rlkit.objective.full_vocab import TopK
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats, all_finite


class Worker(Protocol):
    """A learner's rank or an engine: what is called by name aside, all that workers have in common."""

    def ready(self) -> dict[str, Any]:
        """Asked once, when it has been made."""
        ...

    def progress(self) -> int:
        """Grows while it gets on with what it was asked to do."""
        ...

    def close(self) -> None: ...


class Workers(Protocol):
    """Workers of one kind; ``call`` runs a method on all of them at once, ``one`` on a single one."""

    size: int

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Results of ``method`` on every worker; ``each`` gives every worker its own arguments."""
        ...

    def in_folder(self, method: str, folder: str, *args: Any, reads: bool) -> list[Any]:
        """Results of a method of a folder of this machine on every worker, wherever it is; it ``reads`` what is there, or else writes."""
        ...

    def handles(self, method: str, *args: Any) -> list[Any]:
        """Like ``call``, but results may stay where they were made; pass them on to another group's ``call``."""
        ...

    def made(self, handle: Any) -> None:
        """Waits until what :meth:`handles` promised is there, wherever that is."""
        ...

    def one(self, index: int, method: str, *args: Any) -> Any: ...

    def some(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        """Results of the workers ``which``; one that is lost by then is left out."""
        ...

    def lost(self, index: int) -> Exception | None:
        """Why this worker is lost (dead, silent or stuck), if it is; :meth:`replace` puts another in its place."""
        ...

    def replace(self, index: int) -> None:
        """Starts another worker in this place, as the first one was started."""
        ...

    def client(self, which: Sequence[int], timeout: float) -> Client:
        """What learners send weights to the engines ``which`` by; it travels."""
        ...

    def busy(self) -> float:
        """Seconds that the workers have spent in what ``call`` and ``handles`` asked of them, averaged over them."""
        ...

    def close(self) -> None: ...


class LocalWorkers:
    """One worker: an object of this process."""

    size = 1

    def __init__(self, worker: Worker) -> None:
        self.worker, self._busy = worker, 0.0

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        start = time.perf_counter()
        try:
            return [getattr(self.worker, method)(*(each[0] if each else args))]
        finally:
            self._busy += time.perf_counter() - start

    def in_folder(self, method: str, folder: str, *args: Any, reads: bool) -> list[Any]:
        return self.call(method, folder, *args)

    def handles(self, method: str, *args: Any) -> list[Any]:
        return self.call(method, *args)

    def made(self, handle: Any) -> None:
        pass

    def one(self, index: int, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*args)

    def some(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        return dict.fromkeys(which, self.call(method, *args)[0]) if which else {}

    def lost(self, index: int) -> Exception | None:
        return None  # it dies with this process

    def replace(self, index: int) -> None:
        raise AssertionError("a worker in this process is never lost")

    def client(self, which: Sequence[int], timeout: float) -> Client:
        raise AssertionError("weights of one process do not travel")

    def busy(self) -> float:
        return self._busy

    def close(self) -> None:
        self.worker.close()


class NoWorkers:
    """The engines of a run that samples nothing."""

    size = 0

    def started(self) -> None:
        """There is nothing to wait for."""

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return []

    def in_folder(self, method: str, folder: str, *args: Any, reads: bool) -> list[Any]:
        return []

    def handles(self, method: str, *args: Any) -> list[Any]:
        return []

    def made(self, handle: Any) -> None:
        pass

    def one(self, index: int, method: str, *args: Any) -> Any:
        raise AssertionError("a run without engines asked one")

    def some(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        return {}

    def lost(self, index: int) -> Exception | None:
        return None

    def replace(self, index: int) -> None:
        raise AssertionError("there is no worker to replace")

    def client(self, which: Sequence[int], timeout: float) -> Client:
        raise AssertionError("there is no worker that takes weights")

    def busy(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


# What learners do without a turn of theirs (rlkit.cluster.turns).
AT_ANY_TIME = {"buckets", "send", "offload", "onload", "release"}


SCORED = 8192  # tokens of rows that an engine scores in one request


class LearnerGroup:
    """All learner ranks. Batches are planned and cut here, from the whole batch.

    ``lock`` is held by whoever asks something of them. ``moved``: the weights are not those that were last published.
    """

    def __init__(self, workers: Workers, setup: LearnerSetup) -> None:
        self.workers, self.setup = workers, setup
        self.skipped = self._shown = 0  # optimizer steps skipped in a row, and shown in all
        self._buckets: dict[bool, list[tuple[list[str], int]]] = {}
        self.ready: dict[str, Any] = workers.call("ready")[0]
        self.packed = self.ready["layout"] == "packed"
        self.max_tokens: int = self.ready["max_tokens"]
        self.sharing = setup.learner.sequence_parallel  # neighbours among the ranks that get the same micro-batches
        self.parts = workers.size // self.sharing
        self.lock, self.moved = threading.RLock(), True
        self.turns = Turns()

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Results of all ranks, which get all calls of all threads in one order."""
        turn = contextlib.nullcontext() if method in AT_ANY_TIME else self.turns.training()
        with turn, self.lock:
            return self.workers.call(method, *args, each=each)

    def _dealt(self, shards: Sequence[list[Batch]]) -> list[list[Batch]]:
        """The micro-batches of each rank."""
        return [micros for micros in shards for _ in range(self.sharing)]

    def offload(self) -> None:
        """Gives up what only training needs of the devices, until :meth:`onload`."""
        self.call("offload")

    def onload(self) -> None:
        self.call("onload")

    def release(self) -> None:
        """Gives back to the devices what sending weights took of them."""
        self.call("release")

    def annotate(self, b: Batch, which: Sequence[str]) -> Batch:
        """The batch with ``logp[...]`` (``old``, ``ref``), ``value``, and ``whole[...]`` (``teacher_full``) for the names in ``which``."""
        if not which:
            return b
        shards, rows = cut(b, self.parts, self.max_tokens, self.packed)
        results = self.call("annotate", each=[(micros, tuple(which)) for micros in self._dealt(shards)])
        results = results[:: self.sharing]
        count = b.count()
        found = {name: _in_place(torch.cat(rows), count, [r[name] for r in results]) for name in results[0]}
        # Where sampling is cut off, a token may have the probability 0.
        cut_off = self.setup.sampling.top_p < 1 or self.setup.sampling.top_k > 0
        for name, x in found.items():
            if all_finite(x):
                continue
            good = x.isfinite() | ((x == -math.inf) & cut_off)
            if x.ndim == 1:
                b.check_tokens("value" if name == "value" else f"log-prob {name!r}", x, good)
            else:
                b.check_tokens(f"log-probs {name!r}, taken together,", x.sum(-1), good.all(-1))
        return annotated(b, found)

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
            NumericsError: a reward, advantage or value target that is not finite, before any step; ``learner.max_skipped`` steps
                skipped in a row.
        """
        b.check_finite()
        section, stats = self.setup.learner, Stats()
        steps = optimizer_steps(
            b,
            self.setup.objective,
            epochs=section.epochs,
            count=section.minibatches,
            ranks=self.parts,
            max_tokens=self.max_tokens,
            seed=seed,
            packed=self.packed,
        )
        self.moved = True
        for k, shards in enumerate(steps):
            compare = breakdown and k == len(steps) - 1
            parts = self.call("step", each=[(micros, tuple(coefs), compare) for micros in self._dealt(shards)])
            for part in parts:
                stats.merge(part)
            self._judge(bool(parts[0]["learner/skipped"]), say)
        return stats.scaled("loss/", 1 / len(steps))

    def measure(self, b: Batch, coefs: Sequence[float]) -> Stats:
        """What the terms say of rows that are not trained on: their losses and scores, and the NLL of the tokens."""
        objective, stats = self.setup.objective, Stats()
        b = prepared(objective, b, torch.Generator().manual_seed(self.setup.seed))
        shards, _ = cut(b, self.parts, self.max_tokens, self.packed, compared(objective, b))
        for part in self.call("measure", each=[(micros, tuple(coefs)) for micros in self._dealt(shards)]):
            stats.merge(part)
        return stats

    def _judge(self, skipped: bool, say: Callable[[str], object]) -> None:
        """What follows from an optimizer step that was skipped."""
        self.skipped = self.skipped + 1 if skipped else 0
        limit = self.setup.learner.max_skipped
        if not skipped or (self._shown >= 5 and self.skipped < limit):
            return
        self._shown += 1
        places: dict[str, str] = {}
        for found in self.call("blame"):
            places = found | places
        where = ", ".join(f"{term} at {place}" for term, place in places.items())
        text = (
            f"the gradient of {where} is not finite"
            if where
            else ("the gradient is not finite; those of the terms are, so it arose in the model's own backward pass")
        )
        if self.skipped < limit:
            say(f"warning: no optimizer step was taken: {text}. ({self.skipped} in a row; at {limit} the run stops.)")
            return
        remedy = (
            "A cost can be finite where its gradient is not (a root or a logarithm at 0, torch.where around such a number): change the "
            "term, so that what is not used is never computed."
            if where
            else "Lower learner.lr, or continue in float32."
        )
        raise NumericsError(
            f"{text}. {self.skipped} optimizer steps in a row were skipped (learner.max_skipped: {limit}), so nothing is learned. {remedy}"
        )

    def after_step(self, step: int, stats: Stats) -> None:
        self.call("after_step", step, stats)

    def forget(self, anchor: str) -> None:
        """Lets go of a reference (``ref``, ``teacher``) that nothing asks for any more."""
        self.call("forget", anchor)

    def buckets(self, everything: bool = True) -> list[tuple[list[str], int]]:
        """(names, bytes) of what :meth:`gather` takes at a time: all weights, or those that training can change."""
        if everything not in self._buckets:
            self._buckets[everything] = self.call("buckets", everything)[0]
        return self._buckets[everything]

    def gather(self, names: Sequence[str]) -> Any:
        """A handle of whole tensors by name; give it to :meth:`EngineGroup.load`. On Ray the learners work while the driver goes on."""
        return self.workers.handles("gather", names)[0]

    def send(self, client: Client, meeting: Meeting, everything: bool) -> str | None:
        """Sends weights to the engines of a meeting without passing here; why they have not arrived, if so."""
        found: str | None = self.call("send", client, meeting, everything)[0]
        return found

    def made(self, handle: Any) -> None:
        """Waits until the learners have made what :meth:`gather` promised."""
        self.workers.made(handle)

    def logprobs(self, rollouts: Sequence[Rollout], which: str = "old") -> list[list[float]]:
        """The learner's log-probs of each rollout's sampled tokens; ``uncut``: without ``top_p`` and
        ``top_k``; ``ref``, ``teacher``: those of an anchor."""
        b = self.annotate(Batch.from_rollouts(rollouts), (which,))
        return [x.tolist() for x in b.logp[which].split(b.count().tolist())]

    def uncut_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self.logprobs(rollouts, "uncut")

    def reloaded(self, folder: str, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probs of each rollout's sampled tokens by an exported model, loaded again from its folder without rlkit."""
        found = self._in_folder("reloaded", folder, [Batch.from_rollouts(rollouts)], reads=True)[0]
        return [x.tolist() for x in found]

    def busy(self) -> float:
        """Seconds that the learners have worked (log-probs, steps, weights), averaged over them."""
        return self.workers.busy()

    def save(self, folder: str) -> None:
        self._in_folder("save", folder)

    def load(self, folder: str) -> None:
        self._in_folder("load", folder, reads=True)
        self.moved = True

    def export(self, folder: str) -> None:
        self._in_folder("export", folder)

    def _in_folder(self, method: str, folder: str, *args: Any, reads: bool = False) -> list[Any]:
        with self.turns.training(), self.lock:  # workers may have another current folder
            return self.workers.in_folder(method, str(Path(folder).absolute()), *args, reads=reads)

    def close(self) -> None:
        self.workers.close()


def _in_place(rows: Tensor, count: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """What ranks found of the tokens of ``rows``, in the batch's order; a rank may have had none. ``count``: tokens of each sequence."""
    pieces = torch.cat([part for part in parts if len(part)] or list(parts)).split(count[rows].tolist())
    return torch.cat([pieces[k] for k in rows.argsort().tolist()])


class EngineGroup:
    """All engines. A prompt group goes to the engine with the fewest running groups.

    An engine that is lost is started again in its place, at most ``restarts`` times in all. Until it is back its requests, those that it
    was working on among them, go to the others, or wait for it: seeds do not depend on the engine, so the answers are the same. ``join``
    brings an engine that has just been started up to date and then calls :meth:`admit`; :class:`rlkit.cluster.sync.WeightSync` sets its
    own.
    """

    def __init__(self, workers: Workers, restarts: int = 0, report: Callable[[str], None] = print) -> None:
        self.workers, self.restarts, self.report = workers, restarts, report
        self.join: Callable[[int], None] = lambda index: self.admit(index)
        self._running = [0] * workers.size
        self._up = [True] * workers.size
        self._life = [0] * workers.size  # how often each was started again
        self._seen: list[dict[str, float]] = [{} for _ in range(workers.size)]
        self._before = [0.0] * workers.size  # seconds that engines worked which were lost
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._turn = itertools.count()
        self.turns = Turns()
        self.bound = False  # to learners, each of them

    @property
    def size(self) -> int:
        return self.workers.size

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        found: list[Rollout] = self._one_of_them("generate", prompt, n, sampling)
        return found

    def likely(self, rows: Sequence[Sequence[int]], k: int) -> tuple[Tensor, TopK]:
        """Log-probs ``[L]`` of the tokens of rows, one after the other, and the ``k`` most likely ones in each place."""
        logp, ids, top = (torch.cat(x) for x in zip(*self._of_rows("likely", rows, k), strict=True))
        return logp, TopK(ids, top)

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The hidden states that predict the tokens of rows, one after the other, ``[L, H]``."""
        return torch.cat(self._of_rows("hidden", rows))

    def _of_rows(self, method: str, rows: Sequence[Sequence[int]], *args: Any) -> list[Any]:
        """What engines answer about some rows at a time, in their order."""
        parts = list[list[Sequence[int]]]()
        for row in rows:
            if not parts or sum(map(len, parts[-1])) + len(row) > SCORED:
                parts.append([])
            parts[-1].append(row)
        with ThreadPoolExecutor(2 * self.size) as waiting:
            return list(waiting.map(lambda part: self._one_of_them(method, part, *args), parts))

    def _one_of_them(self, method: str, *args: Any) -> Any:
        """What an engine answers, whichever; if it is lost meanwhile, another."""
        while True:
            with self._changed:
                i = self._choose()
                life = self._life[i]
                self._running[i] += 1
            try:
                with self.turns.generating():
                    return self.workers.one(i, method, *args)
            except RunError as error:
                self._lose(i, life, error)
            finally:
                with self._changed:
                    self._running[i] -= 1

    def _choose(self) -> int:
        """The engine for the next request; waits while none is there."""
        self._changed.wait_for(lambda: self._error is not None or any(self._up))
        if self._error is not None:
            raise self._error
        first, size = next(self._turn) % self.workers.size, self.workers.size
        return min((k for k in range(size) if self._up[k]), key=lambda k: (self._running[k], (k - first) % size))

    # -- engines that are lost --------------------------------------------------------------------------------------

    def _lose(self, index: int, life: int, error: Exception | None = None) -> None:
        """Has the engine started again if it is lost, once however many requests say so; raises what is another ``error``."""
        with self._changed:
            if self._life[index] != life:  # the one that failed has been replaced since
                return
            reason = self.workers.lost(index)
            if self._error is not None or reason is None:
                raise error or self._error or AssertionError(f"engine {index} is not lost")
            self._life[index] += 1
            self._up[index] = False
            self._before[index] += self._seen[index].pop("busy", 0.0)
            if not self.restarts:
                # One that shares its device with a learner cannot be started while that is there: all of the run starts again.
                last = (
                    "cluster.restarts are used up"
                    if not self.bound
                    else "cluster.colocate starts it with its learner alone"
                )
                kind = WorkerError if self.bound and isinstance(reason, WorkerError) else EngineError
                self._fail(kind(f"{one_line(reason)}. No engine is started again: {last}."))
                raise self._error or reason
            self.restarts -= 1
            self.report(f"warning: {one_line(reason)}. Starting it again ({self.restarts} more times if need be).")
        threading.Thread(
            target=self._start, args=(index, self._life[index]), name=f"engine-{index}", daemon=True
        ).start()

    def _start(self, index: int, life: int) -> None:
        try:
            self.workers.replace(index)
        except Exception as error:
            try:
                self._lose(index, life, error)
            except Exception as final:
                self._fail(final)
            return
        try:
            self.join(index)
        except Exception as error:  # the learners', or a parity probe that failed
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def admit(self, index: int) -> None:
        """The engine has what it needs: it gets requests from now on."""
        with self._changed:
            self._up[index] = True
            self._changed.notify_all()

    def up(self) -> list[int]:
        """Engines that get requests."""
        with self._changed:
            return [i for i, up in enumerate(self._up) if up]

    def life(self, index: int) -> int:
        """How often the engine in this place was started again."""
        return self._life[index]

    def generate_on(self, index: int, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout] | None:
        """On one given engine; the parity probe asks each of them. None if it is lost meanwhile."""
        life = self._life[index]
        try:
            with self.turns.generating():
                found: list[Rollout] = self.workers.one(index, "generate", prompt, n, sampling)
            return found
        except RunError as error:
            self._lose(index, life, error)
            return None

    def _tell(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        """Results of those of the engines ``which`` that are not lost."""
        lives = {i: self._life[i] for i in which}
        found = self.workers.some(which, method, *args)
        for i in set(which) - set(found):
            self._lose(i, lives[i])
        return found

    # -- weights ----------------------------------------------------------------------------------------------------

    def begin_update(self, mode: str, which: Sequence[int]) -> list[int]:
        """Pauses the engines ``which``; this and what follows return those that are still there."""
        return list(self._tell(which, "begin_update", mode))

    def load(self, tensors: Mapping[str, Tensor] | Any, which: Sequence[int]) -> list[int]:
        return list(self._tell(which, "load", tensors))

    def end_update(self, version: int, which: Sequence[int]) -> list[int]:
        return list(self._tell(which, "end_update", version))

    def survivors(self, which: Sequence[int], patience: float) -> list[int]:
        """Those of the engines ``which`` that are left after one may have been lost; that shows within ``patience`` seconds."""
        lives = {i: self._life[i] for i in which}
        end = time.monotonic() + patience
        while time.monotonic() < end and not (lost := [i for i in which if self.workers.lost(i) is not None]):
            time.sleep(0.1)
        for i in lost:
            self._lose(i, lives[i])
        return [i for i in which if i not in lost]

    # -- memory that they share with learners ------------------------------------------------------------------------

    def sleep(self, level: int) -> None:
        """See :class:`rlkit.cluster.turns.Sleeper`."""
        self.workers.call("sleep", level)

    def wake(self, tags: Sequence[str] | None = None) -> None:
        self.workers.call("wake", tags)

    def abort(self) -> None:
        self.workers.call("abort")

    # -- what they say of themselves --------------------------------------------------------------------------------

    def stats(self) -> list[dict[str, float]]:
        """Of all engines; of one that is being started again, the last."""
        for i, found in self._tell(self.up(), "stats").items():
            self._seen[i] = found
        return self._seen

    def peak(self) -> float:
        """The most memory of any engine, MiB."""
        return max((s["peak_mib"] for s in self.stats() if s), default=0.0)

    def busy(self) -> float:
        """Seconds that the engines have worked, averaged over them."""
        found = self.stats()
        return (sum(self._before) + sum(s.get("busy", 0.0) for s in found)) / max(1, len(found))

    def close(self) -> None:
        self._fail(EngineError("the engines were closed"))
        self.workers.close()
