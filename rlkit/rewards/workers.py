"""Processes that call reward functions: one that hangs or crashes costs its process, not the run.

A plain function is called for one response after the other, in as many processes as the scorer has workers. Calls of an ``async`` function,
which waits for something else (a sandbox, a judge), wait side by side in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlkit.rewards.functions import import_function, normalise_result

Call = tuple[int, Mapping[str, Any]]  # index of the reward, its arguments
Answer = tuple[str, Any]  # ("ok", parts), ("error", why) or ("timeout", why)
START_SECONDS = 120.0
BEAT_SECONDS, GRACE_SECONDS = 1.0, 5.0


class _Process:
    """A process that runs ``target(connection, payload)``, and our end of the pipe. Its first message is ``"ready"``."""

    def __init__(self, target: Callable[[Any, bytes], None], payload: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=target, args=(child, payload), daemon=True)
        with _MAIN, _main_not_reimported():
            self.process.start()
        child.close()

    def died(self) -> str:
        self.process.join(1)
        return f"the reward's process died (exit code {self.process.exitcode})"

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5)
        with contextlib.suppress(OSError):
            self.connection.close()
        with contextlib.suppress(ValueError):
            self.process.close()


_MAIN = threading.Lock()  # one process starts at a time: starting one changes __main__ for a moment


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


def _functions(payload: bytes) -> list[Callable[..., Any]]:
    import cloudpickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the run ends its workers itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return [import_function(f) if isinstance(f, str) else f for f in cloudpickle.loads(payload)]


def _failure(error: BaseException) -> Answer:
    tail = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(tail[-1].filename).name}:{tail[-1].lineno}" if tail else ""
    return "error", f"{type(error).__name__}: {error}{place}"


def _one_by_one(connection: Any, payload: bytes) -> None:
    """Receives lists of calls and answers each as soon as it is done."""
    functions, loop = _functions(payload), asyncio.new_event_loop()
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
                answer: Answer = ("ok", normalise_result(value))
            except BaseException as error:
                answer = _failure(error)
            connection.send(answer)


class Worker(_Process):
    """One process for plain functions."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(_one_by_one, payload)
        self.ready, self.healthy = False, True

    def call(self, calls: Sequence[Call], timeouts: Sequence[float]) -> Iterator[Answer]:
        """The answers in order. If a call takes longer than its time, its answer is the last one and the process has to be killed.

        Raises:
            EOFError, OSError: the process died.
        """
        self.healthy = False
        if not self.ready:
            if not self.connection.poll(START_SECONDS):
                yield "error", f"the reward process did not start within {START_SECONDS:g} s"
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


def _side_by_side(connection: Any, payload: bytes) -> None:
    """Receives single calls with their numbers; answers each as soon as it is done, and says now and then that it is alive."""
    functions = _functions(payload)
    connection.send("ready")
    asyncio.run(_serve(connection, functions))


async def _serve(connection: Any, functions: Sequence[Callable[..., Any]]) -> None:
    loop, closed, tasks, gates = asyncio.get_running_loop(), asyncio.Event(), set[Any](), dict[int, asyncio.Semaphore]()

    async def one(index: int, arguments: Mapping[str, Any], timeout: float) -> Answer:
        try:
            task = asyncio.ensure_future(functions[index](**arguments))
            done, _ = await asyncio.wait({task}, timeout=timeout)
            if not done:
                task.cancel()
                return "timeout", f"no answer within {timeout:g} s"
            return "ok", normalise_result(task.result())
        except BaseException as error:
            return _failure(error)

    async def reply(number: int, call: Call, timeout: float, most: int) -> None:
        async with gates.setdefault(call[0], asyncio.Semaphore(most)):
            answer = await one(*call, timeout)
        connection.send((number, answer))

    def receive() -> None:
        try:
            tasks.add(task := loop.create_task(reply(*connection.recv())))
            task.add_done_callback(tasks.discard)
        except (EOFError, OSError):
            loop.remove_reader(connection.fileno())
            closed.set()

    loop.add_reader(connection.fileno(), receive)
    while not closed.is_set():
        connection.send(None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), BEAT_SECONDS)


class AsyncWorker:
    """One process for ``async`` functions. Calls come from any thread; ``most`` of them wait at the same time, the others for their turn.

    A function that blocks its event loop for longer than ``timeout``, the longest of a call, or ends the process, takes other calls with
    it: all that were under way are made once more in a new process.
    """

    def __init__(self, payload: bytes, timeout: float) -> None:
        self.payload, self.patience = payload, timeout + GRACE_SECONDS
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._open: dict[
            int, tuple[Future[Answer], tuple[Call, float, int], bool]
        ] = {}  # ..., whether it is the second attempt
        self._process: _Process | None = None
        self._closed = False

    def submit(self, call: Call, timeout: float, most: int) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._send(future, (call, timeout, most), again=False)
        return future

    def _send(self, future: Future[Answer], message: tuple[Call, float, int], again: bool) -> None:
        with self._lock:
            if self._closed:
                future.set_result(("error", "the scorer was closed"))
                return
            if self._process is None:
                self._process = _Process(_side_by_side, self.payload)
                threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
            self._open[number := next(self._numbers)] = (future, message, again)
            with contextlib.suppress(OSError):  # it died: the listener makes the call again
                self._process.connection.send((number, *message))

    def _listen(self, process: _Process) -> None:
        """Until ``process`` ends, each answer goes to who waits for it."""
        patience = START_SECONDS
        try:
            while process.connection.poll(patience):
                message, patience = process.connection.recv(), self.patience
                if isinstance(message, tuple):
                    number, answer = message
                    self._open.pop(number)[0].set_result(answer)
            lost: Answer = (
                "timeout",
                f"its process did not answer for {patience:g} s: an async reward has to await what it waits for; "
                "one that does not should be a plain function",
            )
        except (EOFError, OSError):
            lost = ("error", process.died())
        process.kill()
        with self._lock:
            calls, self._open, self._process = self._open, {}, None
        for future, message, again in calls.values():
            if again:
                future.set_result(lost)
            else:
                self._send(future, message, again=True)

    def close(self) -> None:
        with self._lock:
            self._closed, process = True, self._process
        if process is not None:
            process.process.kill()  # its listener ends, and with it the calls that are under way
