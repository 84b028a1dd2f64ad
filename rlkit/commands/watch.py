"""``rlkit watch``: a run in the terminal, while it goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlkit.looking.runs import see
from rlkit.looking.terminal import frame


def watch(folder: str | Path, every: float = 2.0, *, pause: Callable[[float], object] = time.sleep) -> Iterator[str]:
    """The run as a text of the terminal's width, again every so many seconds, until it has come to its end.

    It reads nothing but the run's files, so it may run anywhere where they can be read. Where reading takes long it is done less often: at
    most a tenth of the time.

    Raises:
        ConfigError: the folder is no run's.
    """
    while True:
        start = time.perf_counter()
        run = see(folder)
        text = frame(run, max(60, shutil.get_terminal_size().columns - 1))
        took = time.perf_counter() - start
        yield text
        if run.ended:
            return
        pause(max(every, 9 * took))
