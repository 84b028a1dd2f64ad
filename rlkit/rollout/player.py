"""Many episodes side by side on the run's engines: to the collector, an engine whose responses are episodes.

    group threads (the collector's)          one thread, one event loop          threads that wait for engines
    generate(prompt, n) -- n coroutines -->  the user's functions   -- ask -->   engine.generate(context, 1)

An episode that waits, for the model or for a tool, costs a coroutine; one that waits for the model also a thread, and so does one whose
function is no coroutine. What fails is masked, with its transcript shown, as ``on_reward_error`` says for rewards; what the engines raise
ends the run as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Waited
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlkit.bounds import Bounded, Positive
from rlkit.data.render import Renderer
from rlkit.errors import ConfigError, EpisodeError, RunError
from rlkit.model.endings import Endings
from rlkit.place import PlacedFunction, is_user_frame, user_frames
from rlkit.rewards.functions import clip, import_function, is_async, label_of, normalise_result, parameters, signature
from rlkit.rollout.endpoint import Calls, Endpoint
from rlkit.rollout.engine import Aborted, Generates, Scores
from rlkit.rollout.episode import Chat, Context, Track
from rlkit.rollout.server import Serve, Server
from rlkit.samples import Prompt, Rollout, Sampling, last_of_episodes

HANDLES = ("chat", "context", "endpoint")
OFFERED = (*HANDLES, "rng", "prompt", "answer", "id")
WAITING, TOOLS = 512, 64  # turns, and tools that are not async, that are under way at the same time
# The event loop is taken for stuck when it has not moved for so long, or for an episode's time.
BEAT_SECONDS, STILL_SECONDS = 0.5, 60.0
SHOWN = 4_000  # characters of a transcript in a message


@dataclass(frozen=True)
class EpisodeSpec(Bounded):
    """An episode: ``fn`` is an ``async`` function, or where it is, ``my_file.py:play`` (:mod:`rlkit.rollout.episode`); with an ``endpoint``
    also a plain one.

    ``args`` are parameters with a fixed value. ``timeout`` is in seconds, per episode; ``name`` is what its rewards are called in metrics.
    """

    shorthand: ClassVar[str] = "fn"

    fn: PlacedFunction | Callable[..., Any]
    timeout: Positive = 600.0
    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or label_of(self.fn)

    def found(self, columns: Sequence[str]) -> Played:
        """The function, and the parameters that are filled.

        Raises:
            ConfigError: it cannot be imported, is not ``async`` where it has to be, takes no handle on the model, or has a parameter that
                nothing fills.
        """
        fn = import_function(self.fn, "rollout.episode") if isinstance(self.fn, str) else self.fn
        where, kind = f"episode {self.label!r}", "episode"
        takes = signature(fn, self.label, kind).parameters
        if not is_async(fn) and "endpoint" not in takes:
            raise ConfigError(f"{where} is not an async function. Write: async def {self.label}(chat): ...")
        unknown = [name for name in self.args if name not in takes]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise ConfigError(f"{where} has no parameter {unknown[0]!r} (args); it has {', '.join(takes)}.")
        names = parameters(fn, sorted({*OFFERED, *columns, *self.args}), self.label, kind)
        handles = [name for name in names if name in HANDLES]
        if len(handles) != 1:
            raise ConfigError(
                f"{where} takes {' and '.join(handles) or 'no handle on the model'}; it needs one of `chat` (messages, through the "
                "tokenizer's chat template), `context` (text and tokens) and `endpoint` (an address for an agent's own client)."
            )
        return Played(fn, tuple(names), handles[0])


def settle(future: Future[Any], fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Calls a function, whose result or exception is the ``future``'s if somebody still waits for it."""
    value: Any = None
    failed: BaseException | None = None
    try:
        value = fn(*args, **kwargs)
    except StopIteration as error:  # asyncio cannot hand it on
        failed = RuntimeError(f"StopIteration: {error}").with_traceback(error.__traceback__)
    except BaseException as error:
        failed = error
    with contextlib.suppress(InvalidStateError):
        future.set_result(value) if failed is None else future.set_exception(failed)


class Threads(ThreadPoolExecutor):
    """Where an event loop runs what is no coroutine (``asyncio.to_thread``): ``most`` calls at a time, each in a thread of its own.

    The end of the process does not wait for these threads, and a call that hangs makes place for others when its episode has ended.
    """

    def __init__(self, most: int) -> None:
        super().__init__(1)
        self._places = threading.Semaphore(most)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()

        def work() -> None:
            self._places.acquire()
            future.add_done_callback(lambda _: self._places.release())
            if not future.cancelled():
                settle(future, fn, *args, **kwargs)

        threading.Thread(target=work, name="tool", daemon=True).start()
        return future


@dataclass(frozen=True)
class Played:
    """A function of an episode, the names of what it is called with, and which of these is its handle on the model."""

    fn: Callable[..., Any]
    names: tuple[str, ...]
    handle: str

    async def called(self, named: Mapping[str, Any]) -> Any:
        """What it returns; a function that is no coroutine runs in a thread, which a time-out does not end but for its next call."""
        if is_async(self.fn):
            return await self.fn(**named)
        future = Future[Any]()
        threading.Thread(target=settle, args=(future, self.fn), kwargs=named, name="episode", daemon=True).start()
        return await asyncio.wrap_future(future)

    def check(self, label: str, prompts: Sequence[Prompt], serve: bool | Serve) -> None:
        """Raises ConfigError where it wants a chat and a prompt is none, or an endpoint and there is none, or the other way round."""
        if self.handle == "endpoint" and serve is False:
            raise ConfigError(
                f"episode {label!r} takes an `endpoint`, which opens a port of this machine's loopback address. Set rollout.serve: true."
            )
        if self.handle != "endpoint" and serve is not False:
            raise ConfigError(
                f"rollout.serve is set, but episode {label!r} takes a `{self.handle}` and not an `endpoint`: nobody would know the "
                "server's address and a key. Take an `endpoint`, or leave rollout.serve out."
            )
        bad = next((p for p in prompts if not p.chat), None) if self.handle == "chat" else None
        if bad is not None:
            raise ConfigError(
                f"episode {label!r} takes a `chat`, but the tokenizer's chat template has not written prompt {bad.id}. Set "
                "data.template: chat, or take a `context`."
            )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What an episode stands on: who answers, and how texts and messages become tokens. ``limit``: tokens of a context."""

    engine: Generates
    tokenizer: Any
    endings: Endings
    render: Renderer
    limit: int


class Player:
    """Plays episodes, and scores them: an engine and a scorer to the collector. Thread-safe.

    ``required``: an episode has to return rewards, because nothing else gives any. ``serve``: where the endpoint of those that take one
    listens.
    """

    def __init__(
        self,
        spec: EpisodeSpec,
        played: Played,
        stage: Stage,
        scorer: Scores,
        *,
        required: bool = True,
        on_error: Literal["mask", "raise", "zero"] = "mask",
        serve: Serve | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.spec, self.played, self.stage, self.scorer = spec, played, stage, scorer
        self.required, self.on_error, self.report = required, on_error, report
        self.counts = Counter[str]()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(WAITING, thread_name_prefix="turn")
        self._server = Server(serve or Serve()) if played.handle == "endpoint" else None
        self._beat = time.monotonic()
        self._closed = False

    # -- as an engine -----------------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """The rows of ``n`` episodes, one after the other; those of an episode that failed have an ``error`` and no reward."""
        playing = [self._begin(self._play(prompt, k, sampling)) for k in range(n)]
        try:
            return [r for future in playing for r in self._result(future)]
        except BaseException:
            for future in playing:
                future.cancel()
            raise

    async def _ask(self, prompt: Prompt, sampling: Sampling) -> Rollout:
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await loop.run_in_executor(self._pool, self.stage.engine.generate, prompt, 1, sampling)
                return found[0]
            except Aborted:  # by a weight update: what the episode has so far stays, and this turn is asked again
                self._count("aborted")

    async def _play(self, prompt: Prompt, number: int, sampling: Sampling) -> list[Rollout]:
        lost: list[BaseException] = []

        async def ask(p: Prompt, s: Sampling) -> Rollout:
            try:
                return await self._ask(p, s)
            except Exception as error:
                lost.append(error)  # the user's function may catch it
                raise

        stage, spec = self.stage, self.spec
        track = Track(ask, prompt, sampling, stage.tokenizer, stage.limit, number)
        given: dict[str, Any] = {
            **prompt.columns,
            "prompt": prompt.text,
            "answer": prompt.answer,
            "id": prompt.id,
            "rng": random.Random() if sampling.seed is None else random.Random(f"{sampling.seed}/{prompt.id}/{number}"),
            **spec.args,
        }
        value, failed = None, ""
        with self._handle(track) as handle:
            given[self.played.handle] = handle
            named = {name: given[name] for name in self.played.names if name in given}
            try:
                async with asyncio.timeout(spec.timeout) as limit:
                    value = await self.played.called(named)
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
                    raise  # by the player; else by the function itself
                # SystemExit would end the event loop, and all episodes with it.
                failed = (
                    f"it did not end within {spec.timeout:g} s{_place_of(error)}"
                    if limit.expired()
                    else _described(error)
                )
            if lost:
                raise lost[0]
            return self._ended(track, value, failed)

    @contextlib.contextmanager
    def _handle(self, track: Track) -> Iterator[Context | Chat | Endpoint]:
        """What the function is given of the model; a key of an endpoint is good within."""
        stage = self.stage
        if self.played.handle == "context":
            yield Context(track.beginning())
        elif self.played.handle == "chat":
            yield Chat(track.beginning(), stage.render, stage.endings)
        else:
            assert self._server is not None
            key = self._server.open(Calls(track, stage.render, stage.endings))
            try:
                yield Endpoint(self._server.url, key, track)
            finally:
                self._server.shut(key)

    def _ended(self, track: Track, value: Any, failed: str) -> list[Rollout]:
        """The rows of an episode whose function has returned, with its rewards, or with what is wrong."""
        unfinished = track.asking
        rows = track.end()
        try:
            if not failed and unfinished:
                failed = "it returned while an answer of the model was still under way. Await every generate()"
            if not failed and not track.turns:
                how = (
                    "Let the agent's client have the endpoint's url and key"
                    if self.played.handle == "endpoint"
                    else "Await generate() of its handle at least once"
                )
                failed = f"it never asked the model: there is nothing to train on. {how}"
            if not failed:
                reward(rows, value, track.turns, self.spec.label, required=self.required)
        except EpisodeError as error:
            failed = str(error)
        for r in rows if failed else ():
            r.error, r.reward = f"{self.spec.label}: {failed}", math.nan
        return rows

    # -- as a scorer ------------------------------------------------------------------------------------------------

    def score(self, rollouts: Sequence[Rollout]) -> None:
        """Adds what the section ``rewards`` says of each episode's last answer to what the episode gave; all its rows have the sum.

        Raises:
            EpisodeError: an episode failed, under ``on_reward_error: raise``.
        """
        last = last_of_episodes(rollouts)
        good = [r for r in last if r.error is None]
        for r in last:
            if r.error is not None:
                self._failed(r)
        own = [r.reward for r in good]
        self.scorer.score(good)
        for r, given in zip(good, own, strict=True):
            r.reward += given
        by_number = {r.episode: r for r in last}
        for r in rollouts:
            whole = by_number[r.episode]
            r.reward, r.parts, r.error = whole.reward, whole.parts, whole.error

    def _failed(self, r: Rollout) -> None:
        self._count("failed")
        message = f"episode failed on prompt {r.prompt.id}: {r.error}"
        shown = clip(r.transcript, SHOWN)
        if self.on_error == "raise":
            raise EpisodeError(f"{message}. Mend it, or set on_reward_error: mask. The episode until then:\n{shown}")
        if self.on_error == "zero" and any(r.sampled):
            r.reward = 0.0
        if self.counts["failed"] <= 5:
            more = " Further failures are only counted (episode/failed)." if self.counts["failed"] == 5 else ""
            self.report(f"warning: {message}.{more} The episode until then:\n{shown}")

    # -- the event loop ---------------------------------------------------------------------------------------------

    def _begin(self, play: Coroutine[Any, Any, list[Rollout]]) -> Future[list[Rollout]]:
        with self._lock:
            if self._closed:
                play.close()
                raise RunError("the episodes were closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="episodes", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(play, self._loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.set_default_executor(Threads(TOOLS))

        def beat() -> None:
            self._beat = time.monotonic()
            loop.call_later(BEAT_SECONDS, beat)

        beat()
        loop.run_forever()
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    def _result(self, future: Future[list[Rollout]]) -> list[Rollout]:
        """Waits, and notices when the event loop stands still: a function that does not await stops all the others."""
        while True:
            try:
                return future.result(timeout=1.0)
            except Waited:
                if future.done():
                    raise
            if self._closed:
                raise RunError("the episodes were closed")
            still = time.monotonic() - self._beat
            if still > max(STILL_SECONDS, self.spec.timeout):
                raise EpisodeError(
                    f"episode {self.spec.label!r} has not awaited for {still:.0f} s{self._place()}, so that no other episode gets on. What "
                    "takes long and is no coroutine belongs in: await asyncio.to_thread(function, ...)."
                )

    def _place(self) -> str:
        """Where the event loop's thread is, in the user's code."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread is not None else None
        own = [f for f in traceback.extract_stack(frame) if is_user_frame(f.filename)] if frame is not None else []
        return f" (at {own[-1].filename}:{own[-1].lineno})" if own else ""

    # -- what they say ----------------------------------------------------------------------------------------------

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def metrics(self) -> dict[str, float]:
        return {"episode/failed": float(self.counts["failed"])}

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.counts.update(state)

    def close(self) -> None:
        """Ends what is under way. Turns that engines still answer end with these."""
        with self._lock:
            self._closed, loop = True, self._loop
        if self._server is not None:
            self._server.close()
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)


def reward(rows: Sequence[Rollout], value: Any, turns: int, label: str, *, required: bool) -> None:
    """Writes what an episode returned into its rows: the sum, its parts by name, and what single turns earned at their last tokens.

    Raises:
        EpisodeError: it is no reward, or a list that is not as long as there are turns; nothing, where it is ``required``.
    """
    if required and (value is None or (isinstance(value, Mapping) and not value)):
        raise EpisodeError("it returned nothing. Return a number, or numbers by name: {'solved': 1.0}")
    named = value if isinstance(value, Mapping) else {"": 0.0 if value is None else value}
    per_turn = {str(k): list(v) for k, v in named.items() if isinstance(v, list | tuple)}
    for name, given in per_turn.items():
        if len(given) != turns:
            raise EpisodeError(
                f"it returned {len(given)} rewards{f' for {name!r}' if name else ''}, and the model had {turns} turns; a list has one "
                "for each"
            )
    try:
        whole = normalise_result({k: v for k, v in named.items() if not isinstance(v, list | tuple)}) or {}
        each = {k: [(normalise_result(x) or {})[""] for x in v] for k, v in per_turn.items()}
    except (RunError, KeyError) as error:
        raise EpisodeError(
            f"it {error}" if isinstance(error, RunError) else "it returned a turn's reward that is no number"
        ) from None
    earned = [sum(x) for x in zip(*each.values(), strict=True)] if each else []
    parts = whole | {k: sum(v) for k, v in each.items()}
    if not math.isfinite(sum(parts.values())):
        raise EpisodeError("the sum of its rewards is not finite")
    for r in rows:
        r.reward = sum(parts.values())
        if value is not None:
            r.parts = {f"{label}/{k}" if k else label: v for k, v in parts.items()}
        if earned and r.turn is not None:
            last = {t: i for i, t in enumerate(r.turn) if t >= 0}
            r.earned = [0.0] * len(r.tokens)
            for t, i in last.items():
                r.earned[i] = earned[t]


def _described(error: BaseException) -> str:
    """One line about an exception of the user's function, with the place in the user's code; of a group, about its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, EpisodeError):
        return str(error).rstrip(".")
    return f"{clip(error, 500)}{_place_of(error)}"


def _place_of(error: BaseException) -> str:
    """Where in the user's code it was raised, or what a time-out has interrupted."""
    if isinstance(error, TimeoutError) and isinstance(error.__cause__, asyncio.CancelledError):
        error = error.__cause__
    frames = [f for f in user_frames(error) if is_user_frame(f.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
