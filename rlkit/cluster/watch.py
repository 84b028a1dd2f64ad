"""Notices workers that are dead, silent or stuck, and tells everybody who waits for them.

A worker answers a small question (:class:`Pulse`) beside whatever it works on, so a long answer is never mistaken for a lost worker: what
counts is whether it gives signs of life, and whether what it was asked to do goes on at all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlkit.errors import WorkerError, WorkerTimeout, first_line

START = 60.0  # seconds that the first sign of life may take in any case: a process has to start and to import


class Pulse(NamedTuple):
    """What a worker says of itself. ``progress`` grows while it gets on with a call; ``doing`` is what it starts with."""

    asked: int
    answered: int
    progress: int
    doing: str = ""


@dataclass
class _Member:
    beat: Future[Pulse] | None = None
    pulse: Pulse | None = None
    silent: float = 0.0  # seconds since it last answered
    still: float = 0.0  # seconds without progress, though something was asked of it
    lost: Exception | None = None
    waiting: set[Future[Any]] = field(default_factory=set)


class Watch:
    """Watches ``size`` workers from a thread of its own.

    Args:
        what: what a worker is called in messages. timeout: seconds without a sign of life. stall: seconds without progress.
        ask: asks worker ``i`` for its pulse. ground: why nothing can work any more (Ray itself has ended), if so.
    """

    def __init__(
        self,
        size: int,
        what: str,
        timeout: float,
        stall: float,
        ask: Callable[[int], Future[Pulse]],
        ground: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.what, self.timeout, self.stall, self.ask, self.ground = what, timeout, stall, ask, ground
        self.period = min(5.0, timeout / 10)
        self._members = [_Member() for _ in range(size)]
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{what}", daemon=True)
        self._thread.start()

    def follow(self, index: int, future: Future[Any]) -> Future[Any]:
        """The same result, or the reason why worker ``index`` was lost, whichever comes first."""
        out: Future[Any] = Future()
        with self._lock:
            member = self._members[index]
            if member.lost is not None:
                out.set_exception(member.lost)
                return out
            member.waiting.add(out)

        def settle(done: Future[Any]) -> None:
            with self._lock:
                member.waiting.discard(out)
            error = done.exception()
            with contextlib.suppress(InvalidStateError):  # the worker was lost before
                if error is None:
                    out.set_result(done.result())
                else:
                    out.set_exception(error)

        future.add_done_callback(settle)
        return out

    def lost(self, index: int) -> Exception | None:
        """Why worker ``index`` is lost; None while it is not."""
        return self._members[index].lost

    def doing(self, index: int) -> str:
        """What worker ``index`` last said that it does, for people."""
        pulse = self._members[index].pulse
        return "starts its process" if pulse is None else pulse.doing

    def any_lost(self) -> Exception | None:
        return next((m.lost for m in self._members if m.lost is not None), None)

    def lose(self, index: int, error: Exception) -> None:
        """Worker ``index`` is lost; the first reason counts."""
        with self._lock:
            member = self._members[index]
            member.lost = member.lost or error
            waiting, member.waiting = member.waiting, set()
        for future in waiting:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(member.lost)

    def renew(self, index: int) -> None:
        """Another worker has taken the place of the lost one."""
        with self._lock:
            self._members[index] = _Member()

    def close(self, reason: Exception) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for i in range(len(self._members)):
            self.lose(i, reason)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(self.period):
            now = time.monotonic()
            # While the driver itself was stopped, nobody was silent.
            passed, last = min(now - last, 2 * self.period), now
            broken = self.ground()
            for i, member in enumerate(list(self._members)):
                if broken is not None:
                    self.lose(i, WorkerError(broken))
                elif member.lost is None:
                    self._look(i, member, passed)

    def _look(self, i: int, m: _Member, passed: float) -> None:
        if m.beat is not None and m.beat.done():
            error = m.beat.exception()
            if error is not None:
                self.lose(i, WorkerError(f"{self.what} {i} died: {one_line(error)}."))
                return
            pulse, m.beat, m.silent = m.beat.result(), None, 0.0
            m.still = m.still + passed if pulse == m.pulse and pulse.asked > pulse.answered else 0.0
            m.pulse = pulse
        elif m.beat is not None:
            m.silent += passed
        limit = self.timeout if m.pulse is not None else max(self.timeout, START)
        if m.silent > limit:
            self.lose(
                i,
                WorkerTimeout(
                    f"{self.what} {i} gave no sign of life for {limit:g} s (cluster.timeout): it is stopped, its machine "
                    "is gone, or it still waits for resources."
                ),
            )
        elif m.still > self.stall:
            self.lose(
                i,
                WorkerTimeout(
                    f"{self.what} {i} is alive, but got no further for {self.stall:g} s (cluster.stall) with what it was asked to do."
                ),
            )
        elif m.beat is None:
            m.beat = self.ask(i)


def one_line(error: BaseException) -> str:
    """The first line of a message that may be long, without the full stop."""
    return first_line(error).rstrip(".")
