"""Whose turn it is on devices that an engine and a learner share (``cluster.colocate``).

Nobody asks for a turn by name: a request to an engine, a pass of a learner and a publish of weights each need one, and whoever needs it
waits until the other side is at rest and moves the device over. There are three states and these moves:

====================  =============================================================================================
training, loading     learners move the optimizer's state to the host; engines wake their weights
loading, generating   learners give back what sending took; engines wake their cache
generating, training  engines sleep; learners take the optimizer's state back
====================  =============================================================================================

From training to generating without a publish (an evaluation after a probe), engines that have kept their weights wake whole; others get
those of the last publish once more. After a publish that was broken off learners get their turn back by way of generating, in which nobody
answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from rlkit.errors import RunError, first_line

State = Literal["training", "loading", "generating"]


class Sleeper(Protocol):
    """Engines, all of them at once."""

    def sleep(self, level: int) -> None:
        """1: weights go to the host, the cache is given up; 2: both are given up."""
        ...

    def wake(self, tags: Sequence[str] | None = None) -> None:
        """What was given up is there again, though not its values: ``weights``, ``kv_cache``, or all."""
        ...

    def abort(self) -> None:
        """Requests that are under way end now."""
        ...


class Offloader(Protocol):
    """Learners, all of them at once."""

    def offload(self) -> None: ...

    def onload(self) -> None: ...

    def release(self) -> None:
        """Gives back what was taken to send weights."""
        ...


class Turns:
    """Turns on devices that nobody shares: nobody waits.

    Attributes:
        refill: gives engines the weights of the last publish once more; called inside :meth:`loading`.
    """

    def __init__(self) -> None:
        self.refill: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, engines answer."""
        yield

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, learners pass micro-batches, step, and read and write their state."""
        yield

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Inside, weights go from learners to engines, which answer afterwards."""
        yield

    def end(self) -> None:
        """The run stops: learners need not wait for requests any more."""


class SharedTurns(Turns):
    """Turns on devices that each hold an engine and a learner. Learners start in their turn, beside engines that sleep.

    A move is made in a thread of its own, so that a signal ends somebody's wait for it and never leaves it half made. One that fails leaves
    nobody a turn.

    Args:
        level: how deep engines sleep. With 2 they lose their weights: right where every publish sends all of them. With 1 they keep them in
            host memory: what a publish that sends only what training changes builds on.
    """

    def __init__(self, engines: Sleeper, learners: Offloader, level: int) -> None:
        super().__init__()
        self.engines, self.learners, self.level = engines, learners, level
        self.state: State = "training"
        self._loaded = False  # whether engines have all of the last publish
        self._kept = False  # whether sleeping engines have, too
        self._requests = self._passes = 0
        self._moving = self._ended = False
        self._failed: BaseException | None = None
        self._changed = threading.Condition(threading.RLock())

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._passes)
            if self._ended:
                raise RunError("the run was told to stop, so nothing is generated any more.")
            if self.state == "training" and self._kept:
                self._move("generating", self.learners.offload, self.engines.wake)
            elif self.state != "generating" or not self._loaded:
                with self.loading():
                    self.refill()
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._requests)
            if self.state == "loading":  # a publish was broken off
                self._move("generating", lambda: self.engines.wake(["kv_cache"]))
            if self.state == "generating":
                self._move("training", lambda: self.engines.sleep(self.level), self.learners.onload)
                self._kept = self.level == 1 and self._loaded
            self._passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        with self._changed:  # held throughout: nobody else gets a turn
            self._wait(lambda: not self._passes and not self._requests)
            self._loaded = False
            if self.state == "training":
                self._move("loading", self.learners.offload, lambda: self.engines.wake(["weights"]))
            yield
            if self.state == "loading":
                self._move("generating", self.learners.release, lambda: self.engines.wake(["kv_cache"]))
            self._loaded = True

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, at_rest: Callable[[], bool]) -> None:
        """Until nobody moves anything, and the other side is at rest."""
        while not self._changed.wait_for(
            lambda: self._failed is not None or (not self._moving and at_rest()), 1.0 if self._ended else None
        ):
            if self._requests:
                self.engines.abort()  # again and again: one may have been on its way
        if self._failed is not None:
            raise RunError(f"engines and learners could not take turns: {first_line(self._failed)}") from self._failed

    def _move(self, to: State, *steps: Callable[[], object]) -> None:
        """Takes ``steps`` to the state ``to``. The lock is held, and let go meanwhile, but nobody else gets a turn."""
        self._moving, done, left = True, list[BaseException | None](), list[bool]()

        def work() -> None:
            failed: BaseException | None = None
            try:
                for step in steps:
                    step()
            except BaseException as error:  # told to whoever waits
                failed = error
            with self._changed:
                self._failed = failed
                if failed is None:
                    self.state = to
                done.append(failed)
                if left:  # nobody waits any more
                    self._moving = False
                self._changed.notify_all()

        threading.Thread(target=work, name="turn", daemon=True).start()
        try:
            self._changed.wait_for(lambda: bool(done))
        except BaseException:
            left.append(True)
            if done:
                self._moving = False
            raise
        self._moving = False
        self._changed.notify_all()
        if done[0] is not None:
            raise done[0]
