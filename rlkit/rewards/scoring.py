"""Calling reward functions safely: by name, in worker processes, with a time-out that kills.

A reward is a plain function::

    def correct(response, answer, level=1):              # `level` is a column of the data set
        return float(response.strip() == answer)         # or {"correct": 1.0, "format": 0.2}: the reward is the sum

Parameters are filled by name from ``prompt``, ``response``, ``answer``, ``tokens``, ``finish``, ``id`` and every data column. It may be
``async``. It runs in a worker process; one that hangs is killed with its process, and a new one takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import math
import multiprocessing
import os
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkit.config import locate

if TYPE_CHECKING:
    from rlkit.types import Rollout  # types only: a reward's process must not import torch


BUILTIN = {"math": "rlkit.rewards.math:reward", "exact": "rlkit.rewards.text:exact"}
ALWAYS = ("prompt", "response", "answer", "tokens", "finish", "id")


class RewardError(RuntimeError):
    """A reward function raised or timed out and ``on_reward_error`` is ``raise``."""


@dataclass(frozen=True)
class RewardSpec:
    """One reward: a function, or where it is: ``my_file.py:fn``, ``package.module:fn``, or a built-in name.

    ``args`` are parameters with a fixed value. ``timeout`` is in seconds, per response. ``task`` is the verifier of ``data.task``.
    """

    fn: Any
    weight: float = 1.0
    timeout: float = 10.0
    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def is_math(self) -> bool:
        """Whether it is the built-in verifier of mathematical answers, by either of its names."""
        return isinstance(self.fn, str) and BUILTIN.get(self.fn, self.fn) == BUILTIN["math"]

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        return self.fn.rsplit(":", 1)[-1] if isinstance(self.fn, str) else str(getattr(self.fn, "__name__", type(self.fn).__name__))


def import_function(where: str, base: Path | None = None) -> Callable[..., Any]:
    """The function at ``file.py:name`` or ``module:name``, or a built-in reward.

    Raises:
        ValueError: nothing there, with what is.
    """
    target = BUILTIN.get(where, where)
    place, _, name = target.rpartition(":")
    if not place:
        raise ValueError(f"rewards: {where!r} is not a built-in reward ({', '.join(BUILTIN)}); write my_file.py:function or "
                         "package.module:function.")
    try:
        module = _load_file(locate(place, base)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError:
        raise ValueError(f"rewards: there is no file {place!r} (looked in {Path(base or '.').resolve()} "
                         "and in the current folder).") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(f"rewards: importing {place!r} failed at {last.filename}:{last.lineno}: "
                         f"{type(error).__name__}: {error}") from error
    fn = getattr(module, name, None)
    if not callable(fn):
        here = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise ValueError(f"rewards: {place!r} has no function {name!r}; it has {', '.join(here) or 'none'}.")
    return fn


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"rlkit_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                 # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def inputs_of(r: Rollout) -> dict[str, Any]:
    """Everything a reward may ask for by name."""
    return {**r.prompt.columns, "prompt": r.prompt.text, "response": r.text, "answer": r.prompt.answer, "tokens": r.tokens,
            "finish": r.finish, "id": r.prompt.id}


def parameters(fn: Callable[..., Any], available: Sequence[str], label: str) -> list[str]:
    """Names to pass.

    Raises:
        ValueError: a parameter without default that no column fills.
    """
    names: list[str] = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            return [*available]
        if p.name in available:
            names.append(p.name)
        elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise ValueError(f"reward {label!r} has a parameter {p.name!r} that nothing fills; there are "
                             f"{', '.join(sorted(available))}. Rename it, give it a default, or add the column to the data.")
    return names


def normalise_result(value: Any) -> dict[str, float] | None:
    """Components by name; a plain number is the component ``""``; None means that the response cannot be scored."""
    if value is None:
        return None
    items = value.items() if isinstance(value, Mapping) else [("", value)]
    out = {}
    for key, v in items:
        try:
            out[str(key)] = float(v)
        except (TypeError, ValueError):
            raise TypeError(f"returned {v!r} ({type(v).__name__}); a reward is a number, a dict of numbers, or None") from None
        if not math.isfinite(out[str(key)]):
            raise ValueError(f"returned {v!r}; a reward must be finite")
    return out


def _worker(connection: Any, payload: bytes) -> None:
    """A worker process: receives lists of calls, answers each as soon as it is done as ``("ok", parts)`` or ``("error", text)``."""
    import cloudpickle

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    functions = [import_function(f) if isinstance(f, str) else f for f in cloudpickle.loads(payload)]
    loop = asyncio.new_event_loop()
    connection.send("ready")
    while True:
        try:
            calls = connection.recv()
        except (EOFError, OSError):
            return
        for index, arguments in calls:
            try:
                value = functions[index](**arguments)
                if inspect.isawaitable(value):
                    value = loop.run_until_complete(value)
                answer: tuple[str, Any] = ("ok", normalise_result(value))
            except BaseException as error:
                tail = traceback.extract_tb(error.__traceback__)
                place = f" at {Path(tail[-1].filename).name}:{tail[-1].lineno}" if tail else ""
                answer = ("error", f"{type(error).__name__}: {error}{place}")
            connection.send(answer)


Call = tuple[int, Mapping[str, Any]]    # index of the reward, its arguments


class _Process:
    """One worker process and its pipe."""

    def __init__(self, payload: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_worker, args=(child, payload), daemon=True)
        with _MAIN, _main_not_reimported():
            self.process.start()
        child.close()
        self.ready, self.healthy = False, True

    def call(self, calls: Sequence[Call], timeouts: Sequence[float]) -> Iterator[tuple[str, Any]]:
        """The answers in order. If a call takes longer than its time, its answer is the last one and the process has to be killed.

        Raises:
            EOFError, OSError: the process died.
        """
        self.healthy = False
        if not self.ready:
            if not self.connection.poll(120):
                yield "error", "the reward process did not start within 120 s"
                return
            self.connection.recv()
            self.ready = True
        self.connection.send(calls)
        for timeout in timeouts:
            if not self.connection.poll(timeout):
                yield "timeout", f"no answer within {timeout:g} s"
                return
            yield self.connection.recv()
        self.healthy = True

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        self.process.kill()
        self.process.join(5)
        with contextlib.suppress(ValueError):
            self.process.close()


_MAIN = threading.Lock()                # one process starts at a time: starting one changes __main__ for a moment
BATCH_CALLS, BATCH_CHARACTERS = 64, 1_000_000


@contextlib.contextmanager
def _main_not_reimported() -> Iterator[None]:
    """A spawned worker runs the caller's script again to find its functions; ours come by cloudpickle instead."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        for name in saved:
            setattr(main, name, None)
        if hasattr(main, "__file__"):
            del main.__file__
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)


class Scorer:
    """Fills ``reward``, ``parts`` and ``error`` of rollouts. Thread-safe; calls from many collector threads run side by side.

    ``on_error``: a reward that raises, hangs or returns something else is counted and reported with its prompt;
    ``mask`` leaves the reward nan (the response is not trained on), ``raise`` stops the run, ``zero`` gives 0.
    """

    def __init__(self, rewards: Sequence[RewardSpec], *, on_error: Literal["mask", "raise", "zero"] = "mask", workers: int = 1,
                 base: Path | None = None, report: Callable[[str], None] = print) -> None:
        self.rewards, self.on_error, self.base, self.report = tuple(rewards), on_error, base, report
        self.workers, self.counts = max(1, workers), Counter[str]()
        self._names: list[list[str]] = []
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._payload = b""
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
            raise ValueError("rewards run in worker processes, which needs cloudpickle. Install it with: pip install "
                             "cloudpickle") from None
        available = sorted({*ALWAYS, *columns})
        functions = []
        self._names = []
        for spec in self.rewards:
            fn = import_function(spec.fn, self.base) if isinstance(spec.fn, str) else spec.fn
            unknown = [name for name in spec.args if name not in inspect.signature(fn).parameters]
            if unknown:
                raise ValueError(f"reward {spec.label!r} has no parameter {unknown[0]!r} (args); it has "
                                 f"{', '.join(inspect.signature(fn).parameters)}.")
            # The options of a built-in reward come from `args` alone: a data column that happens to be called `mode` must not set one.
            offered = ALWAYS if isinstance(spec.fn, str) and spec.fn in BUILTIN else available
            self._names.append(parameters(fn, sorted({*offered, *spec.args}), spec.label))
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
        share = max(1, min(BATCH_CALLS // max(1, len(self.rewards)), -(-len(rollouts) // (self.workers if alone else 1))))
        batches: list[list[Rollout]] = []
        size = 0
        for r in rollouts:
            if not batches or len(batches[-1]) >= share or size > BATCH_CHARACTERS:
                batches.append([])
                size = 0
            batches[-1].append(r)
            size += len(r.text)
        try:
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

    def _score_batch(self, rollouts: Sequence[Rollout]) -> None:
        calls: list[Call] = []
        for r in rollouts:
            inputs = inputs_of(r)
            for index, spec in enumerate(self.rewards):
                given = {**inputs, **spec.args}
                calls.append((index, {n: given[n] for n in self._names[index] if n in given}))
        answers = self._call(calls)
        for r in rollouts:
            total = 0.0
            for spec in self.rewards:
                status, value = next(answers)
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
            self.counts["calls"] += len(calls)

    def _failed(self, r: Rollout, spec: RewardSpec, status: str, why: str) -> None:
        with self._lock:
            self.counts[status] += 1
            self.counts[f"{status}/{spec.label}"] += 1
            self._reported += 1
            first = self._reported <= 5
        r.error = f"{spec.label}: {status}: {why}"
        message = (f"reward {spec.label!r} {'timed out' if status == 'timeout' else 'failed'} on prompt {r.prompt.id}: {why}; "
                   f"response {r.text[:80]!r}")
        if self.on_error == "raise":
            raise RewardError(message + ". Mend it, or set on_reward_error: mask.")
        if first:
            more = " Further failures are only counted (reward/errors; `error` in rollouts.jsonl)." if self._reported == 5 else ""
            self.report(f"warning: {message}.{more}")

    def _call(self, calls: Sequence[Call]) -> Iterator[tuple[str, Any]]:
        """The answers to all calls in order; after one that hung or killed its process, the rest goes to another process."""
        done = 0
        while done < len(calls):
            rest = calls[done:]
            with self._slots:
                try:
                    worker = self._idle.get_nowait()
                except queue.Empty:
                    worker = _Process(self._payload)
                answers: list[tuple[str, Any]] = []
                try:
                    for answer in worker.call(rest, [self.rewards[index].timeout for index, _ in rest]):
                        answers.append(answer)
                except (EOFError, OSError):
                    worker.process.join(1)
                    answers.append(("error", f"the reward's process died (exit code {worker.process.exitcode})"))
                finally:
                    if worker.healthy:
                        self._idle.put(worker)
                    else:
                        worker.kill()
            done += len(answers)
            yield from answers

    def metrics(self) -> dict[str, float]:
        return {"reward/errors": float(self.counts["error"] + self.counts["unscorable"]), "reward/timeouts": float(self.counts["timeout"])}

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().kill()


def _installed() -> set[str]:
    """Modules that a worker can import by name."""
    return {name for name, m in sys.modules.items() if "site-packages" in str(getattr(m, "__file__", "")) or name.startswith("rlkit")}
