"""Whose turn it is on devices that an engine and a learner share (``cluster.colocate``).

Nobody asks for a turn by name: a request to an engine, a pass of a learner and a publish of weights each need one, and whoever needs it
waits until the other side is at rest and moves the device over. There are three states and these moves:

===================  ==============================================================================================
training, loading    learners move the optimizer's state to the host; engines wake their weights
loading, generating  engines wake their cache
generating, training engines sleep; learners take the optimizer's state back
===================  ==============================================================================================

From training to generating without a publish (an evaluation after a probe), engines that have kept their weights wake whole; others get
those of the last publish once more.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

State = Literal["training", "loading", "generating"]


class Sleeper(Protocol):
    """Engines, all of them at once."""

    def sleep(self, level: int) -> None:
        """1: weights go to the host, the cache is given up; 2: both are given up."""
        ...

    def wake(self, tags: Sequence[str] | None = None) -> None:
        """What was given up is there again, though not its values: ``weights``, ``kv_cache``, or all."""
        ...


class Offloader(Protocol):
    """Learners, all of them at once."""

    def offload(self) -> None: ...

    def onload(self) -> None: ...


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


class SharedTurns(Turns):
    """Turns on devices that each hold an engine and a learner. Learners start in their turn, beside engines that sleep.

    Args:
        level: how deep engines sleep. With 2 they lose their weights: right where every publish sends all of them. With 1 they keep them in
            host memory: what a publish that sends only what training changes builds on.
    """

    def __init__(self, engines: Sleeper, learners: Offloader, level: int) -> None:
        super().__init__()
        self.engines, self.learners, self.level = engines, learners, level
        self.state: State = "training"
        self._kept = False  # whether sleeping engines have their weights
        self._requests = self._passes = 0
        self._changed = threading.Condition(threading.RLock())

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._passes)
            if self.state == "training" and self._kept:
                self.learners.offload()
                self.engines.wake()
                self.state = "generating"
            elif self.state == "training":
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
            self._changed.wait_for(lambda: not self._requests)
            if self.state == "generating":
                self.engines.sleep(self.level)
                self._kept = self.level == 1
                self.learners.onload()
                self.state = "training"
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
            self._changed.wait_for(lambda: not self._passes and not self._requests)
            if self.state == "training":
                self.learners.offload()
                self.engines.wake(["weights"])
                self.state = "loading"
            yield
            if self.state == "loading":
                self.engines.wake(["kv_cache"])
                self.state = "generating"
