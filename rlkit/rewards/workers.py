"""Processes that call reward functions: one that hangs or crashes costs its process, not the run.

A plain function is called for one response after the other, in as many processes as the scorer has workers. Calls of an ``async`` function,
which waits for something else (a sandbox, a judge), wait side by side in one process; a :class:`rlkit.rewards.grader.Grader` has one of
its own.

What a reward's code may do to its process, and what then happens:

- Every call has a number, and only the answer with this number counts. A forked child that returns into our code ends there.
- Standard output and error lead to :class:`Output`, which keeps the beginning; standard input is empty.
- A process leads a group of its own: Ctrl-C does not reach it, and all that it started ends with it. On Linux the kernel kills the group
  when the run's process is gone, however that ended and whatever the reward is doing; elsewhere a thread does.
- Memory beyond what the functions needed at import is bounded. After a call the working directory and alarms are as before.
- Answers travel as JSON in numbered frames. A process that writes something else into the pipe, or closes it, is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import inspect
import itertools
import json
import multiprocessing
import os
import pickle
import resource
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from rlkit.errors import RunError, WorkerError, WorkerTimeout
from rlkit.place import use, user_frames
from rlkit.rewards.functions import clip, import_function, normalise_group, normalise_result
from rlkit.rewards.grader import Grader

Call = tuple[int, Mapping[str, Any]]  # index of the reward, its arguments
# "ok" with parts (of a reward of whole groups: those of each response); "error", "timeout", or "lost" (its process is gone) with why;
# then the user's frames of an exception.
Answer = tuple[str, Any, str]
START_SECONDS = 120.0
BEAT_SECONDS, GRACE_SECONDS, LOOK_SECONDS = 1.0, 5.0, 0.5
GIB = 2**30
SHOWN_FRAMES, LAST_BYTES = 5, 300
SHOW_OUTPUT = "RLKIT_REWARD_OUTPUT"  # set: what rewards print goes where the run prints
HEAD = struct.Struct("<4sQI")  # mark, number of the call, length of the JSON that follows
MARK, LONGEST_ANSWER = b"rlk\x01", 2**20


@dataclass(frozen=True)
class Job:
    """What a process gets when it starts; ``texts`` are the user's files as the run's process executed them.

    ``memory``: bytes by which it may grow beyond what it holds once the functions are there. ``groups``: indices of the functions that are
    called once for all responses to a prompt.
    """

    functions: bytes
    texts: Mapping[str, bytes]
    memory: float
    groups: frozenset[int] = frozenset()

    def parts(self, call: Call, value: Any) -> Any:
        """What the function of a call returned, as it travels."""
        index, arguments = call
        return normalise_group(value, len(arguments["responses"])) if index in self.groups else normalise_result(value)

    @property
    def too_large(self) -> str:
        return (
            f"its process grew by more than {self.memory / GIB:g} GiB. If it needs that much (a model that it loads, a cache), "
            "raise the reward's `memory`"
        )


class Output:
    """What rewards print: the first lines, the beginning in a file once there is one, and how much there was. Thread-safe."""

    MOST_KEPT, MOST_WRITTEN, LINES = 2**16, 2**20, 3

    def __init__(self) -> None:
        self.captured = not os.environ.get(SHOW_OUTPUT)
        self.path: Path | None = None
        self.characters = self.lines = 0
        self._kept, self._written, self._lock = bytearray(), 0, threading.Lock()
        self._said = False

    def add(self, chunk: bytes) -> None:
        with self._lock:
            self.characters += len(chunk)
            self.lines += chunk.count(b"\n")
            if self.path is None:
                self._kept += chunk[: self.MOST_KEPT - len(self._kept)]
            else:
                self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        room = self.MOST_WRITTEN - self._written
        if self.path is not None and room > 0:
            self._written += len(chunk)
            text = chunk[:room] + (b"\n[rlkit: the rest is left out]\n" if len(chunk) >= room else b"")
            try:
                with self.path.open("ab") as f:
                    f.write(text)
            except OSError:  # a full disk is no reason to stop scoring, and others say it
                self._written = self.MOST_WRITTEN

    def write_to(self, path: Path) -> None:
        """From now on the output goes to this file, with what there was before."""
        with self._lock:
            self.path = path
            if self._kept:
                self._write(bytes(self._kept))

    def news(self) -> str | None:
        """One note, when there is something to tell for the first time."""
        with self._lock:
            if self._said or not self.characters:
                return None
            self._said = True
            if self.path is None:
                text, where = bytes(self._kept), f"set {SHOW_OUTPUT}=1 to see it"
            else:
                text, where = self.path.read_bytes() if self.path.exists() else b"", f"it is in {self.path}"
            first = [line.strip()[:200] for line in text.decode(errors="replace").splitlines() if line.strip()]
            shown = " | ".join(first[: self.LINES])
            return f"note: rewards print ({self.lines} lines, {self.characters} bytes until now; {where}). It begins: {shown}"


class _Process:
    """A process that runs ``target(ends, job)``, and our ends of its pipes. Its first answer, number 0, says that it is ready."""

    def __init__(self, target: Callable[[Any, Job], None], job: Job, output: Output) -> None:
        context = multiprocessing.get_context("spawn")
        self.requests, theirs = context.Pipe()
        self.answers, answer_end = context.Pipe(duplex=False)
        life_end, self._life = context.Pipe(duplex=False)  # never written to: it closes when the run's process is gone
        output_reader, output_end = context.Pipe(duplex=False)
        ends = (theirs, answer_end, life_end, output_end if output.captured else None)
        self.process = context.Process(target=target, args=(ends, job), daemon=True)
        with _MAIN, _main_not_reimported():
            self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        for end in (theirs, answer_end, life_end, output_end):
            end.close()
        self._poll = select.poll()
        self._poll.register(self.answers.fileno(), select.POLLIN)
        self._buffer = bytearray()
        self._last = bytearray()  # the end of what it printed
        self._listener = threading.Thread(target=self._listen, args=(output_reader, output), daemon=True)
        self._listener.start()

    def answer(self, timeout: float, check: Callable[[], None] | None = None) -> tuple[int, list[Any]] | None:
        """The next answer with its number, or None after ``timeout`` seconds. ``check`` is called now and then, and may raise.

        Raises:
            EOFError, OSError: the process is gone.
            WorkerError: what came is no answer.
        """
        end = time.monotonic() + timeout
        while True:
            if len(self._buffer) >= HEAD.size:
                mark, number, length = HEAD.unpack_from(self._buffer)
                if mark != MARK or length > LONGEST_ANSWER:
                    raise WorkerError("something else wrote into the pipe of its answers")
                if len(self._buffer) >= HEAD.size + length:
                    text = bytes(self._buffer[HEAD.size : HEAD.size + length])
                    del self._buffer[: HEAD.size + length]
                    return number, json.loads(text)
            left = end - time.monotonic()
            if left <= 0:
                return None
            if self._poll.poll(1000 * min(left, LOOK_SECONDS)):
                chunk = os.read(self.answers.fileno(), 2**16)
                if not chunk:
                    raise EOFError
                self._buffer += chunk
            else:
                if self.process.exitcode is not None:  # a child of it may still hold the pipe
                    raise EOFError
                if check is not None:
                    check()

    def _listen(self, reader: Connection, output: Output) -> None:
        with contextlib.suppress(OSError), reader:
            while chunk := os.read(reader.fileno(), 2**16):
                output.add(chunk)
                self._last = (self._last + chunk)[-LAST_BYTES:]

    def died(self, error: BaseException) -> str:
        if isinstance(error, WorkerError):
            return str(error)
        self.process.join(1)
        self._listener.join(0.2)
        lines = bytes(self._last).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"the reward's process died (exit code {self.process.exitcode})" + (
            f"; the last that it printed: {last}" if last else ""
        )

    def grown(self, since: int) -> int:
        """Bytes of memory that it holds now beyond ``since``."""
        return _resident(self.pid) - since

    def end(self) -> None:
        """Ends it and all that it started; who waits for its answers learns that it died."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):  # it is cleared away already
            self.process.kill()  # it may not have made its group yet

    def clear_away(self) -> None:
        """Ends it, reads what it printed to the end, and frees what belongs to it. Only for who reads its answers."""
        self.end()
        with contextlib.suppress(ValueError):
            self.process.join(5)
            self.process.close()
        self._listener.join(1)
        for connection in (self.requests, self.answers, self._life):
            connection.close()


def _resident(pid: int | str) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


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


# -- in the process -----------------------------------------------------------------------------------------------------


class _Replies:
    """The writing end of the answers."""

    def __init__(self, end: Connection) -> None:
        self.end, self.pid, self.lock = end, os.getpid(), threading.Lock()

    def end_if_forked(self) -> None:
        if os.getpid() != self.pid:
            os._exit(0)

    def send(self, number: int, *answer: Any) -> None:
        text = json.dumps(answer).encode()
        data = memoryview(HEAD.pack(MARK, number, len(text)) + text)
        with self.lock:
            try:
                while data:
                    data = data[os.write(self.end.fileno(), data) :]
            except OSError:  # closed by a reward, or the run is gone
                os._exit(1)


def _begin(ends: Any, job: Job) -> tuple[list[Callable[..., Any]], Connection, _Replies]:
    """A group, standard streams and a life line of its own; then the functions, which may take long to import."""
    requests, answers, life, output = ends
    os.setsid()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # rewards may have children: they end with us
    if output is not None:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        output.close()
        sys.stdout, sys.stderr = (
            open(stream, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
            for stream in (1, 2)
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _end_with(life)
    replies = _Replies(answers)
    use(job.texts)
    try:
        functions = [import_function(f) if isinstance(f, str) else f for f in pickle.loads(job.functions)]
        for grader in functions:
            if isinstance(grader, Grader):
                grader.start()
    except BaseException as error:
        replies.send(0, "failed", clip(error))
        raise SystemExit(1) from None
    replies.send(0, "ready", _resident("self"))
    return functions, requests, replies


def _end_with(life: Connection) -> None:
    """SIGKILL to the whole group when the other end of ``life`` closes.

    The kernel does it, which works also while a reward holds the interpreter's lock (a regular expression that backtracks for ever). A
    parent's death signal (``PR_SET_PDEATHSIG``) would come when the *thread* that started us ends.
    """
    if sys.platform == "linux":
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | fcntl.FASYNC)
        # It may have closed before we asked for the signal.
        if select.select([life], [], [], 0)[0]:
            os.killpg(0, signal.SIGKILL)
        return

    def watch() -> None:
        select.select([life], [], [])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _failure(error: BaseException) -> list[Any]:
    """Status, one line, and the user's last frames as Python shows them."""
    if isinstance(error, WorkerTimeout):  # what it asked gave no answer
        return ["timeout", str(error), ""]
    if isinstance(error, RunError):
        return ["error", str(error), ""]
    frames = [f for f in user_frames(error) if f.filename != __file__]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    shown = "".join(traceback.format_list(frames[-SHOWN_FRAMES:]))
    return ["error", f"{clip(error)}{place}", clip(shown, 4000)]


def _is_spent(error: BaseException) -> bool:
    """Whether a process has run out of something that only a new one gets back."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENOMEM, errno.EAGAIN)
    )


def _one_by_one(ends: Any, job: Job) -> None:
    """Receives lists of numbered calls and answers each as soon as it is done."""
    functions, requests, replies = _begin(ends, job)
    loop, home, most = asyncio.new_event_loop(), os.getcwd(), _resident("self") + job.memory
    while True:
        try:
            calls = requests.recv()
        except (EOFError, OSError):
            return
        for number, index, arguments in calls:
            spent = ""
            try:
                value = functions[index](**arguments)
                if inspect.isawaitable(value):
                    value = loop.run_until_complete(value)
                answer: list[Any] = ["ok", job.parts((index, arguments), value), ""]
            except BaseException as error:
                answer = _failure(error)
                if _is_spent(error):
                    spent = f"its process ran out of something: {answer[1]}"
            replies.end_if_forked()
            signal.setitimer(signal.ITIMER_REAL, 0)
            with contextlib.suppress(OSError):
                os.chdir(home)
            # The peak costs a tenth of what the present size costs to know.
            if 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most and _resident("self") > most:
                spent = job.too_large
            replies.send(number, *answer, spent)


class Worker:
    """One process for plain functions. ``spent`` says why another one has to take its place although it lives."""

    def __init__(self, job: Job, output: Output) -> None:
        self._process, self._job = _Process(_one_by_one, job, output), job
        self._numbers, self._start = itertools.count(1), 0
        self.ready, self.healthy, self.spent = False, True, ""

    def _look(self) -> None:
        if self._process.grown(self._start) > self._job.memory:
            raise WorkerError(self._job.too_large)

    def call(self, calls: Sequence[Call], timeouts: Sequence[float]) -> Iterator[Answer]:
        """The answers in order: status, value, the user's frames. After a call that took longer than its time, or ended the process,
        no more come, and the process has to be killed."""
        self.healthy = False
        try:
            if not self.ready:
                first = self._process.answer(START_SECONDS)
                if first is None:
                    yield "lost", f"the reward process did not start within {START_SECONDS:g} s", ""
                    return
                if first[1][0] == "failed":
                    yield "lost", f"the reward process could not start: {first[1][1]}", ""
                    return
                self._start, self.ready = first[1][1], True
            numbered = [(next(self._numbers), index, arguments) for index, arguments in calls]
            self._process.requests.send(numbered)
            for (number, _, _), timeout in zip(numbered, timeouts, strict=True):
                end = time.monotonic() + timeout
                while (found := self._process.answer(end - time.monotonic(), self._look)) is not None:
                    if found[0] == number:
                        break
                if found is None:
                    yield "timeout", f"no answer within {timeout:g} s", ""
                    return
                status, value, frames, spent = found[1]
                yield status, value, frames
                if spent:
                    self.spent = spent
                    return
        except (EOFError, OSError, ValueError, WorkerError) as error:
            yield "lost", self._process.died(error), ""
            return
        self.healthy = True

    def end(self) -> None:
        self._process.end()

    def clear_away(self) -> None:
        self._process.clear_away()


def _side_by_side(ends: Any, job: Job) -> None:
    """Receives single calls with their numbers; answers each as soon as it is done, and says now and then that it is alive."""
    functions, requests, replies = _begin(ends, job)
    asyncio.run(_serve(requests, replies, functions, job))


async def _serve(requests: Connection, replies: _Replies, functions: Sequence[Callable[..., Any]], job: Job) -> None:
    loop, closed, tasks, gates = asyncio.get_running_loop(), asyncio.Event(), set[Any](), dict[int, asyncio.Semaphore]()

    async def reply(number: int, call: Call, timeout: float, most: int) -> None:
        async with gates.setdefault(call[0], asyncio.Semaphore(most)):
            answer = await answered(functions[call[0]], job, call, timeout, replies.end_if_forked)
        replies.send(number, *answer)

    def receive() -> None:
        replies.end_if_forked()
        try:
            tasks.add(task := loop.create_task(reply(*requests.recv())))
            task.add_done_callback(tasks.discard)
        except (EOFError, OSError):
            loop.remove_reader(requests.fileno())
            closed.set()

    loop.add_reader(requests.fileno(), receive)
    while not closed.is_set():
        replies.send(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), BEAT_SECONDS)


async def answered(
    fn: Callable[..., Any], job: Job, call: Call, timeout: float, ended: Callable[[], None] = lambda: None
) -> list[Any]:
    """What an ``async`` function makes of a call within so many seconds, and what it has used as a grader since it was asked last.

    ``ended`` is called as soon as it has.
    """

    async def guarded() -> list[Any]:
        try:
            return ["ok", job.parts(call, await fn(**call[1])), ""]
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # asyncio would end the loop on SystemExit, and all other calls with it
            return _failure(error)
        finally:
            ended()  # before a forked child takes part in the loop, which shares its descriptors with ours

    task = asyncio.ensure_future(guarded())
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        task.cancel()
        answer = ["timeout", f"no answer within {timeout:g} s", ""]
    else:
        answer = ["error", "its own code cancelled it", ""] if task.cancelled() else task.result()
    try:
        return [*answer, {str(k): int(n) for k, n in fn.taken().items()} if isinstance(fn, Grader) else {}]
    except Exception as error:  # of the user's own `taken`
        return [*_failure(error), {}]


class Waits(Protocol):
    """Where ``async`` calls go: a process, or an actor."""

    def submit(self, call: Call, timeout: float, most: int) -> Future[Answer]:
        """The answer when it is there; at most so many calls wait at the same time."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Open:
    """A call that is under way; ``again``: in its second process."""

    future: Future[Answer]
    call: Call
    timeout: float
    most: int
    again: bool


class AsyncWorker:
    """One process for ``async`` functions. Calls come from any thread; ``most`` of them wait at the same time, the others for their turn.

    A function that blocks its event loop for longer than ``timeout``, the longest of a call, or ends the process, takes other calls with
    it: all that were under way are made once more in a new process. ``starting``: seconds that a process may take until it is ready;
    ``used`` hears of what a grader has used.
    """

    def __init__(
        self,
        job: Job,
        output: Output,
        timeout: float,
        starting: float = START_SECONDS,
        used: Callable[[Mapping[str, int]], None] = lambda taken: None,
    ) -> None:
        self.job, self.output, self.patience = job, output, timeout + GRACE_SECONDS
        self.starting, self.used = starting, used
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self._open: dict[int, _Open] = {}
        self._process: _Process | None = None
        self._closed = False

    def submit(self, call: Call, timeout: float, most: int) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._send(_Open(future, call, timeout, most, again=False))
        return future

    def _send(self, what: _Open) -> None:
        with self._lock:
            if self._closed:
                what.future.set_result(("error", "the scorer was closed", ""))
                return
            if self._process is None:
                self._process = _Process(_side_by_side, self.job, self.output)
                threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
            self._open[number := next(self._numbers)] = what
            with contextlib.suppress(OSError):  # it died: the listener makes the call again
                self._process.requests.send((number, what.call, what.timeout, what.most))

    def _listen(self, process: _Process) -> None:
        """Until ``process`` ends, each answer goes to who waits for it."""
        patience, start, looked = self.starting, 0, time.monotonic()
        try:
            while (found := process.answer(patience)) is not None:
                number, message = found
                if message and message[0] == "failed":
                    raise WorkerError(f"the reward process could not start: {message[1]}")
                if message and message[0] == "ready":
                    start, patience = message[1], self.patience
                elif number:
                    *answer, taken = message
                    self.used(taken)  # before anybody goes on with the answer
                    if number in self._open:
                        self._open.pop(number).future.set_result(tuple(answer))
                if start and time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    if process.grown(start) > self.job.memory:
                        raise WorkerError(self.job.too_large)
            lost = (
                "timeout",
                f"its process did not answer for {patience:g} s: an async reward has to await what it waits for; "
                "one that does not should be a plain function",
                "",
            )
        except (EOFError, OSError, ValueError, WorkerError) as error:
            lost = ("lost", process.died(error), "")
        process.clear_away()
        with self._lock:
            calls, self._open, self._process = self._open, {}, None
        for what in calls.values():
            if what.again:
                what.future.set_result(lost)
            else:
                self._send(_Open(what.future, what.call, what.timeout, what.most, again=True))

    def close(self) -> None:
        with self._lock:
            self._closed, process = True, self._process
        if process is not None:
            process.end()  # its listener ends, and with it the calls that are under way
