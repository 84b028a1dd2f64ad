"""When a run ends before its last step: signals, a time limit, and held-out scores that no longer improve.

A run that is told to stop writes a checkpoint first. While it starts or waits for responses and rewards it stops at once, at the state of
the last finished step; an optimizer step and a weight sync are finished first. A second signal ends it without a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

TIME_LIMIT = 3  # the exit code
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)


class Stopped(KeyboardInterrupt):
    """The run was told to end before its last step. ``code``: the exit code of the command line."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.why, self.code = why, code
        self.kept = ""  # what a resumed run continues from, once that is known


class Stopper:
    """Handlers of SIGINT, SIGTERM, SIGHUP, SIGXCPU and SIGUSR1, and of the time limit, while it is entered; in another thread than the
    main one it does nothing.

    ``minutes``: the run's time, from when this object is made; None: no limit. Slurm's end of the job (``SLURM_JOB_END_TIME``) counts too.
    The run is told to stop before that: by twice the longest time in which it could not be stopped so far, saving included, and at least
    by a tenth of the limit or a minute, whichever is less.
    """

    def __init__(self, minutes: float | None = None) -> None:
        ends = [] if minutes is None else [time.time() + 60 * minutes]
        slurm = os.environ.get("SLURM_JOB_END_TIME", "")
        if slurm.isdigit():
            ends.append(float(slurm))
        self.end = min(ends, default=None)
        self.finished = False  # a program said that the run has made its last step
        self._start = time.time()
        self._request: Stopped | None = None
        self._save_wanted = False
        self._open = True  # a signal raises Stopped at once: nothing is lost while the run starts
        self._before: dict[int, Any] = {}
        self._closed_since: float | None = None  # the start of the run cannot be stopped either, but it comes only once
        self._longest = 0.0

    def __enter__(self) -> Stopper:
        self.install()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers; again after a library (Ray) has set its own. A signal that is ignored, as `nohup` does, stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*STOPS, signal.SIGUSR1, signal.SIGALRM):
            if number == signal.SIGALRM and self.end is None:
                continue
            before = signal.getsignal(number)
            if number in STOPS and before == signal.SIG_IGN:
                continue
            signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)
        self._set_timer()

    def _set_timer(self) -> None:
        if self.end is None or not self._before:
            return
        margin = max(2 * self._longest, min(60.0, (self.end - self._start) / 10))
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - margin - time.time()))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._save_wanted = True
            return
        if number == signal.SIGALRM:
            if self._request is None:
                self._request = Stopped("the time limit is near", TIME_LIMIT)
        elif self._request is not None and self._request.code != TIME_LIMIT:
            raise KeyboardInterrupt  # the second one: nothing is kept
        else:
            name = signal.Signals(number).name
            self._request = Stopped("interrupted" if number == signal.SIGINT else f"stopped by {name}", 128 + number)
            text = f"\n{self._request.why}: a checkpoint is written, then the run ends. Once more ends it at once.\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())  # print is not safe in a handler that may have interrupted a print
        if self._open:
            self._open = False
            raise self._request

    def start(self) -> None:
        """The run starts, again after a worker was lost: until :meth:`begin` a signal ends it at once, and so does one that came before."""
        self._open = True
        if self._request is not None:
            raise self._request

    def begin(self) -> None:
        """The run has started: from here on, work is finished before the run stops, but for what is :meth:`interruptible`."""
        self._open = False

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: for work that can be thrown away."""
        if self._closed_since is not None:
            self._longest = max(self._longest, time.monotonic() - self._closed_since)
        self._set_timer()
        self._open = True
        try:
            if self._request is not None:
                raise self._request
            yield
        finally:
            self._open = False
            self._closed_since = time.monotonic()

    def take_save(self) -> bool:
        """Whether SIGUSR1 asked for a checkpoint since the last call."""
        wanted, self._save_wanted = self._save_wanted, False
        return wanted


@dataclass
class Best:
    """The best held-out score so far, the step that had it, and how many evaluations since did not exceed it."""

    score: float | None = None
    step: int = -1
    stalled: int = 0
    seen: int = -1  # the last step that was evaluated

    def observe(self, step: int, score: float | None) -> bool:
        """Whether this is the best score so far. An evaluation without a score is one without a better score; each step counts once."""
        if step <= self.seen:
            return False
        self.seen = step
        if score is not None and (self.score is None or score > self.score):
            self.score, self.step, self.stalled = score, step, 0
            return True
        self.stalled += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.stalled, self.seen = (state[k] for k in ("score", "step", "stalled", "seen"))
