"""Calling reward functions safely: by name, in worker processes, with a time-out that kills.

A reward is a plain function::

    def correct(response, answer, level=1):              # `level` is a column of the data set
        return float(response.strip() == answer)         # or {"correct": 1.0, "format": 0.2}: the reward is the sum

Parameters are filled by name from ``prompt``, ``response``, ``answer``, ``tokens``, ``finish``, ``id``, ``transcript`` (an episode as
people read it), ``responses`` (all to the prompt) and every data column. It runs in a worker process; one that hangs is killed with its
process, and a new one takes its place. Calls of an ``async`` function wait side by side. Before a run starts, every reward is tried on one
row (:meth:`Scorer.trial`).

A function that takes ``responses``, and nothing that is a single response's (``response``, ``tokens``, ``finish``, ``transcript``), is
called once for all of a prompt and returns a list with a reward for each::

    def longest(responses):
        most = max(map(len, responses))
        return [float(len(r) == most) for r in responses]

A :class:`rlkit.rewards.grader.Grader` in the place of a function has a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from rlkit.bounds import Bounded, Count, Finite, Positive
from rlkit.errors import ConfigError, DataError, RewardError
from rlkit.place import PlacedFunction, snapshot
from rlkit.rewards.functions import (
    BUILTIN,
    SINGLE,
    clip,
    import_function,
    is_async,
    is_of_group,
    label_of,
    pack,
    parameters,
    row_check,
    signature,
)
from rlkit.rewards.grader import Grader
from rlkit.rewards.workers import GIB, Answer, AsyncWorker, Call, Job, Output, Waits, Worker
from rlkit.samples import Prompt, Rollout
from rlkit.values import Given, otherwise

BATCH_CALLS, BATCH_CHARACTERS = 64, 1_000_000
LARGE = ("responses", "transcript")  # much to send: whoever takes **anything has to ask for them by name
ALWAYS = (*SINGLE, "prompt", "answer", "id", "responses")
Used = Callable[[Mapping[str, int]], None]  # hears of what a grader has used
USUAL_TIMEOUT, USED = 10.0, "used"


@dataclass(frozen=True)
class RewardSpec(Bounded):
    """One reward: ``fn`` is a function, or where it is: ``my_file.py:fn``, ``package.module:fn``, or a built-in name; or a grader.

    ``weight`` multiplies it in the sum of all rewards. ``name`` is what it is called in metrics; by default as its function.
    ``args`` are parameters with a fixed value. ``timeout`` is in seconds, per response (10; a grader has its own). ``task`` is the verifier
    of ``data.task``. ``concurrency``: how many calls of an ``async`` function wait at the same time, over all responses. ``patience``: the
    run stops when it has waited this many times ``timeout`` without one answer of this reward. ``memory``: GiB by which a process of
    rewards may grow beyond what it held after its imports, before another one takes its place; of several rewards, the largest counts, and
    a grader's is its own.
    """

    shorthand: ClassVar[str] = "fn"

    fn: PlacedFunction | Callable[..., Any] | Grader
    weight: Finite = 1.0
    timeout: Given[Positive, float] = otherwise(None)
    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    concurrency: Count = 64
    patience: Count = 8
    memory: Positive = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given: float | None = self.timeout
        if given is None:
            usual = self.fn.usual_timeout if isinstance(self.fn, Grader) else USUAL_TIMEOUT
            object.__setattr__(self, "timeout", usual)

    @property
    def is_math(self) -> bool:
        """Whether it is the built-in verifier of mathematical answers, by either of its names."""
        return isinstance(self.fn, str) and BUILTIN.get(self.fn, self.fn) == BUILTIN["math"]

    @property
    def share(self) -> float | None:
        """GPUs of a cluster that it takes in an actor of its own; None: it stays on the machine of the run's process."""
        return self.fn.share if isinstance(self.fn, Grader) else None

    @property
    def label(self) -> str:
        return self.name or label_of(self.fn)


def inputs_of(r: Rollout, responses: Sequence[str]) -> dict[str, Any]:
    """Everything a reward may ask for by name; ``responses`` are those to the same prompt, its own included."""
    return {
        "responses": responses,
        "transcript": r.transcript or f"{r.prompt.text}{r.text}",
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
    ``mask`` leaves the reward nan (the response is not trained on), ``raise`` stops the run, ``zero`` gives 0. ``elsewhere`` makes the
    place of a grader that takes a share of a cluster.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        *,
        on_error: Literal["mask", "raise", "zero"] = "mask",
        workers: int = 1,
        report: Callable[[str], None] = print,
        elsewhere: Callable[[Job, RewardSpec, Grader, Used], Waits] | None = None,
    ) -> None:
        self.rewards, self.on_error, self.report = tuple(rewards), on_error, report
        self.elsewhere = elsewhere
        self.workers, self.counts = max(1, workers), Counter[str]()
        self.output = Output()
        self._names: list[list[str]] = []
        self._waits: dict[int, tuple[Waits, int]] = {}  # the async ones: their process, and their index there
        self._groups: set[int] = set()  # those that are called once for all responses to a prompt
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._living: set[Worker] = set()
        self._slots = threading.Semaphore(self.workers)
        self._lock = threading.Lock()
        self._job = Job(b"", {}, 0.0)  # until `check` has found the functions
        self._silence = [_Silence() for _ in self.rewards]
        self._stop: RewardError | None = None
        self._closed = False
        self._reported = self._scoring = 0
        self.busy = 0.0

    def check(self, columns: Sequence[str]) -> None:
        """Imports every reward and matches its parameters with the data, before anything expensive starts.

        Raises:
            ConfigError: two rewards of one name, one that cannot be imported or sent to a process, or a parameter that nothing fills.
        """
        try:
            import cloudpickle  # noqa: F401
        except ImportError:
            raise ConfigError(
                "rewards run in worker processes, which needs cloudpickle. Install it with: pip install cloudpickle"
            ) from None
        twice = [label for label, n in Counter(r.label for r in self.rewards).items() if n > 1]
        if twice:
            raise ConfigError(
                f"rewards: two of them are called {twice[0]!r}, and metrics could not tell them apart. Give one a name of its own: "
                "{fn: ..., name: ...}, in Python rk.RewardSpec(fn, name=...)."
            )
        available = sorted({*ALWAYS, *columns})
        functions: list[Any] = []
        self._names, self._waits, self._groups = [], {}, set()
        waiting = list[int]()
        for spec in self.rewards:
            if isinstance(spec.fn, Grader):
                spec.fn.check()
            fn = import_function(spec.fn) if isinstance(spec.fn, str) else spec.fn
            takes = signature(fn, spec.label).parameters
            unknown = [name for name in spec.args if name not in takes]
            if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                raise ConfigError(
                    f"reward {spec.label!r} has no parameter {unknown[0]!r} (args); it has {', '.join(takes)}."
                )
            # The options of a built-in reward come from `args` alone: a data column that happens to be called `mode` must not set one.
            offered = ALWAYS if isinstance(spec.fn, str) and spec.fn in BUILTIN else available
            names = parameters(fn, sorted({*offered, *spec.args}), spec.label)
            self._names.append([n for n in names if n not in LARGE or n in takes or n in columns])
            if "responses" not in columns and is_of_group(self._names[-1]):
                self._groups.add(len(functions))
            if is_async(fn):
                waiting.append(len(functions))
            elif isinstance(fn, Grader):
                raise ConfigError(
                    f"reward {spec.label!r}: the __call__ of a grader is an async method. Write: async def __call__(self, ...)"
                )
            if isinstance(spec.fn, str) and ".py:" in spec.fn:
                path, _, name = spec.fn.rpartition(":")
                functions.append(f"{Path(path).resolve()}:{name}")
            else:
                functions.append(spec.fn)
            try:
                pack(functions[-1:])
            except Exception as error:
                raise ConfigError(
                    f"reward {spec.label!r} cannot be sent to a worker process: {clip(error, 300)}. It may hold something open (a file, a "
                    "lock, a connection): make that inside the function, or name the reward as my_file.py:function."
                ) from error
        own = {i: spec.fn for i, spec in enumerate(self.rewards) if isinstance(spec.fn, Grader)}
        shared = [None if i in own else fn for i, fn in enumerate(functions)]
        most = max((r.memory for i, r in enumerate(self.rewards) if i not in own), default=0.0)
        self._job = Job(pack(shared), snapshot(), GIB * most, frozenset(self._groups))
        longest = max((self.rewards[i].timeout for i in waiting if i not in own), default=0.0)
        together = AsyncWorker(self._job, self.output, longest)
        self._waits = {i: (together, i) for i in waiting if i not in own}
        for i, grader in own.items():
            spec, together_there = self.rewards[i], frozenset({0} if i in self._groups else ())
            alone = Job(pack([grader.everywhere()]), snapshot(), GIB * spec.memory, together_there)
            used = partial(self._used, i)
            if grader.share is None:
                self._waits[i] = AsyncWorker(alone, self.output, spec.timeout, grader.starting, used), 0
            elif self.elsewhere is None:
                raise ConfigError(
                    f"reward {spec.label!r} takes a share of a cluster (gpus), and there is none. Set gpus: null."
                )
            else:
                self._waits[i] = self.elsewhere(alone, spec, grader, used), 0

    def check_rows(self, prompts: Sequence[Prompt]) -> None:
        """Lets every reward that looks at rows (:func:`rlkit.rewards.functions.rows_checked_by`) look at all of them.

        Raises:
            DataError: the first row that one cannot use, with its place, and how many there are.
        """
        for spec in self.rewards:
            fn = import_function(spec.fn) if isinstance(spec.fn, str) else spec.fn
            check = row_check(fn)
            if check is None:
                continue
            wrong = list[tuple[Prompt, str]]()
            for p in prompts:
                row = {**p.columns, "prompt": p.text, "answer": p.answer, "id": p.id, **spec.args}
                try:
                    check(**{name: row[name] for name in parameters(check, sorted(row), spec.label)})
                except RewardError as error:
                    wrong.append((p, str(error)))
            if wrong:
                p, why = wrong[0]
                more = f" ({len(wrong)} of {len(prompts)} rows are wrong)" if len(wrong) > 1 else ""
                raise DataError(
                    f"{p.where or f'prompt {p.id}'}: reward {spec.label!r}: {why}{more}. Mend or remove the row."
                )

    def trial(self, prompt: Prompt) -> list[str]:
        """Tries every reward on a real row, in its process and with its time-out: on the row's answer as the response, and on an empty one.

        Returns what a user should know: rewards that fail on one of the two.

        Raises:
            ConfigError: a reward that fails on both.
        """

        tried = {"its answer": str("an answer" if prompt.answer is None else prompt.answer), "an empty response": ""}
        rollouts = [Rollout.given(prompt, [0] * len(text.split()), text=text) for text in tried.values()]
        together = self._together({prompt.id: rollouts}, patient=True)
        calls = [self._calls(r, [r.text], together) for r in rollouts]
        plain = iter(list(self._call([c for one in calls for c in one if not isinstance(c, _Waiting)], patient=True)))
        answers = [[c.answer() if isinstance(c, _Waiting) else next(plain) for c in one] for one in calls]
        notes = []
        for spec, found in zip(self.rewards, zip(*answers, strict=True), strict=True):
            said = [
                f"on {what}, {value if status != 'ok' else 'it returned None'}"
                for what, (status, value, _) in zip(tried, found, strict=True)
                if status != "ok" or value is None
            ]
            if all(status != "ok" for status, _, _ in found):
                frames = next((f for _, _, f in found if f), "")
                raise ConfigError(
                    f"reward {spec.label!r} was tried on prompt {prompt.id!r} and failed: with the row's answer as the response "
                    f"{found[0][1]}; with an empty response {found[1][1]}."
                    + (f"\n{frames.rstrip()}\n" if frames else " ")
                    + "Mend it; what it should not score it can return None for."
                )
            if len(said) == 2:
                notes.append(
                    f"warning: reward {spec.label!r} returned None for prompt {prompt.id!r}, with its answer as the response and with an "
                    "empty one: such responses are not scored. Does it lack a `return`?"
                )
            elif said:
                notes.append(
                    f"note: reward {spec.label!r} was tried on prompt {prompt.id!r}: {said[0]}. Such responses will be treated as "
                    f"on_reward_error: {self.on_error} says."
                )
        return notes

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
        batches: list[list[tuple[Rollout, list[Call | _Waiting]]]] = []
        size = 0
        members: dict[str, list[Rollout]] = {}
        for r in rollouts:
            members.setdefault(r.prompt.id, []).append(r)
        texts = {id: [r.text for r in group] for id, group in members.items()}
        try:
            together = self._together(members)
            for r in rollouts:
                if not batches or len(batches[-1]) >= share or size > BATCH_CHARACTERS:
                    batches.append([])
                    size = 0
                batches[-1].append((r, self._calls(r, texts[r.prompt.id], together)))
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
            if note := self.output.news():
                self.report(note)
        with self._lock:
            self.busy += time.perf_counter() - start

    def _together(
        self, members: Mapping[str, Sequence[Rollout]], patient: bool = False
    ) -> dict[tuple[int, int], _Waiting]:
        """What rewards of whole groups say of each response, by the reward's index and the response's ``id()``.

        Raises:
            RewardError: a reward gives no answers any more; never when ``patient``.
        """
        found: dict[tuple[int, int], _Waiting] = {}
        for index in sorted(self._groups):
            groups = list(members.values())
            calls = [self._call_of(index, group[0], [r.text for r in group]) for group in groups]
            waits = index in self._waits
            if waits:
                futures = [self._submit(call) for call in calls]
            else:
                futures = [Future() for _ in calls]
                for future, answer in zip(futures, self._call(calls, patient), strict=True):
                    future.set_result(answer)
            for group, future in zip(groups, futures, strict=True):
                for k, r in enumerate(group):
                    found[index, id(r)] = _Waiting(future, k, news=waits and k == 0)
        return found

    def _call_of(self, index: int, r: Rollout, responses: Sequence[str]) -> Call:
        given = {**inputs_of(r, responses), **self.rewards[index].args}
        return index, {n: given[n] for n in self._names[index] if n in given}

    def _seconds(self, call: Call) -> float:
        """How long a call may take: so long for each response that it is about."""
        index, arguments = call
        return self.rewards[index].timeout * (len(arguments["responses"]) if index in self._groups else 1)

    def _submit(self, call: Call) -> Future[Answer]:
        index, arguments = call
        worker, there = self._waits[index]
        return worker.submit((there, arguments), self._seconds(call), self.rewards[index].concurrency)

    def _calls(
        self, r: Rollout, responses: Sequence[str], together: Mapping[tuple[int, int], _Waiting]
    ) -> list[Call | _Waiting]:
        """For each reward its call, or for one that is async or of the whole group the answer that is under way."""
        calls = list[Call | _Waiting]()
        for index in range(len(self.rewards)):
            if index in self._groups:
                calls.append(together[index, id(r)])
                continue
            call = self._call_of(index, r, responses)
            calls.append(_Waiting(self._submit(call)) if index in self._waits else call)
        return calls

    def _score_batch(self, batch: Sequence[tuple[Rollout, Sequence[Call | _Waiting]]]) -> None:
        plain = [c for _, calls in batch for c in calls if not isinstance(c, _Waiting)]
        answers = iter(list(self._call(plain)))  # all of them now: async calls wait meanwhile
        for r, calls in batch:
            total = 0.0
            for index, (spec, call) in enumerate(zip(self.rewards, calls, strict=True)):
                if isinstance(call, _Waiting):
                    answer = call.answer()
                    if call.news:
                        self._heard(index, answer, spec.timeout)
                else:
                    answer = next(answers)
                status, value, frames = answer
                if status == "ok" and value is None:
                    status, value = "unscorable", "the reward returned None"
                if status == "ok":
                    for key, v in value.items():
                        r.parts[f"{spec.label}/{key}" if key else spec.label] = v
                    total += spec.weight * sum(value.values())
                    continue
                self._failed(r, spec, "error" if status == "lost" else status, value, frames)
                if self.on_error == "mask":
                    total = math.nan
            r.reward = total
        with self._lock:
            self.counts["calls"] += len(batch) * len(self.rewards)

    def _failed(self, r: Rollout, spec: RewardSpec, status: str, why: str, frames: str) -> None:
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
            raise RewardError(
                message + (f"\n{frames.rstrip()}\n" if frames else ". ") + "Mend it, or set on_reward_error: mask."
            )
        if first:
            more = (
                " Further failures are only counted (reward/errors; `error` in rollouts.jsonl)."
                if self._reported == 5
                else ""
            )
            self.report(f"warning: {message}.{more}")

    def _heard(self, index: int, answer: Answer, seconds: float) -> None:
        """Notes whether a reward gives answers at all; raises when it has not for too long. ``seconds``: how long this one took."""
        spec = self.rewards[index]
        with self._lock:
            silence = self._silence[index]
            if answer[0] in ("ok", "error"):
                silence.calls, silence.seconds = 0, 0.0
            else:
                silence.add(time.monotonic(), min(seconds, spec.timeout))
                if silence.seconds > 0.98 * spec.patience * spec.timeout and self._stop is None:
                    self._stop = RewardError(
                        f"reward {spec.label!r} gave no answer in {silence.seconds:.0f} s: {silence.calls} calls in a row came to nothing, "
                        f"the last because: {answer[1]}. See whether it can answer at all (a server that is down, a loop that does "
                        "not end), or raise its `timeout` or its `patience`."
                    )
            if self._stop is not None:
                raise self._stop

    def _call(self, calls: Sequence[Call], patient: bool = False) -> Iterator[Answer]:
        """The answers to all calls in order; after one that hung or killed its process, the rest goes to another process.

        Raises:
            RewardError: a reward gives no answers any more; never when ``patient``.
        """
        done = 0
        while done < len(calls):
            rest = calls[done:]
            answers: list[Answer] = []
            with self._slots:
                if self._closed:
                    yield from [("error", "the scorer was closed", "")] * len(rest)
                    return
                worker = self._worker()
                try:
                    since = time.monotonic()
                    for answer in worker.call(rest, [self._seconds(call) for call in rest]):
                        answers.append(answer)
                        if not patient and (answer[0] != "ok" or self._silence[rest[len(answers) - 1][0]].calls):
                            self._heard(rest[len(answers) - 1][0], answer, time.monotonic() - since)
                        since = time.monotonic()
                finally:
                    if worker.healthy:
                        self._idle.put(worker)
                    else:
                        self._replace(worker)
            done += len(answers)
            yield from answers

    def _worker(self) -> Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            worker = Worker(self._job, self.output)
        with self._lock:
            self._living.add(worker)
        return worker

    def _replace(self, worker: Worker) -> None:
        worker.clear_away()
        with self._lock:
            self._living.discard(worker)
            self.counts["spent"] += bool(worker.spent)
            first = bool(worker.spent) and self.counts["spent"] == 1
        if first:
            self.report(f"note: a process of rewards was replaced by a new one: {worker.spent}. This is said once.")

    def _used(self, index: int, taken: Mapping[str, int]) -> None:
        """Adds up what a grader has used, and stops the run where that is more than it may."""
        spec = self.rewards[index]
        assert isinstance(spec.fn, Grader)
        with self._lock:
            self.counts.update({f"{USED}/{spec.label}/{name}": n for name, n in taken.items()})
            try:
                why = spec.fn.spent(self._used_by(spec))
            except Exception as error:  # whoever waits for an answer must not wait for ever
                why = f"its `spent` failed: {clip(error)}."
            if why is not None and self._stop is None:
                self._stop = RewardError(f"reward {spec.label!r}: {why}")

    def _used_by(self, spec: RewardSpec) -> dict[str, int]:
        start = f"{USED}/{spec.label}/"
        return {name.removeprefix(start): n for name, n in self.counts.items() if name.startswith(start)}

    def metrics(self) -> dict[str, float]:
        found = {
            "reward/errors": float(self.counts["error"] + self.counts["unscorable"]),
            "reward/timeouts": float(self.counts["timeout"]),
        }
        with self._lock:
            for spec in self.rewards:
                if isinstance(spec.fn, Grader):
                    told = spec.fn.metrics(self._used_by(spec))
                    found |= {f"reward/{spec.label}/{name}": value for name, value in told.items()}
        return found

    def state_dict(self) -> dict[str, int]:
        with self._lock:
            return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.counts.update(state)

    def close(self) -> None:
        """Ends all processes, with what they started. Calls that this cuts off are no failures."""
        report, self.report, self._closed = self.report, lambda text: None, True
        for waiting, _ in self._waits.values():
            waiting.close()
        with self._lock:
            living = list(self._living)
        for worker in living:
            worker.end()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().clear_away()
        if note := self.output.news():
            report(note)


@dataclass(frozen=True)
class _Waiting:
    """An answer that is under way. ``member``: of a reward of the whole group, which response it is asked for; ``news``: nobody else hears
    whether the reward answers.
    """

    future: Future[Answer]
    member: int | None = None
    news: bool = True

    def answer(self) -> Answer:
        status, value, frames = self.future.result()
        return status, value[self.member] if status == "ok" and self.member is not None else value, frames


@dataclass
class _Silence:
    """How long a reward was waited for, and in how many calls, since its last answer; time that several calls share counts once."""

    calls: int = 0
    seconds: float = 0.0
    until: float = 0.0

    def add(self, now: float, seconds: float) -> None:
        self.calls += 1
        self.seconds += now - max(self.until, now - seconds)
        self.until = now
