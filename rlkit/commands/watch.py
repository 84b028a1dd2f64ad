"""``rlkit watch``: a run in the terminal, while it goes on."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlkit.cluster.jobs import Jobs, Picture
from rlkit.looking.runs import see
from rlkit.looking.terminal import frame


def watch(
    folder: str | Path, every: float = 2.0, *, address: str | None = None, pause: Callable[[float], object] = time.sleep
) -> Iterator[str]:
    """The run as a text of the terminal's width, again every so many seconds, until it has come to its end.

    It reads nothing but the run's files, so it may run anywhere where they can be read. Where reading takes long it is done less often: at
    most a tenth of the time. With the ``address`` of a cluster's dashboard, ``folder`` is the id of a job there, and the files are asked
    for over that address; the end is then that of the job.

    Raises:
        ConfigError: the folder is no run's.
        ClusterError: there is no such job, or no cluster.
    """
    if address is not None:
        yield from _of_job(Jobs(address), str(folder), every, pause)
        return
    while True:
        start = time.perf_counter()
        run = see(folder)
        text = frame(run, _width())
        took = time.perf_counter() - start
        yield text
        if run.ended:
            return
        pause(max(every, 9 * took))


def _of_job(jobs: Jobs, id: str, every: float, pause: Callable[[float], object]) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rlkit-watch-") as place:
        picture = Picture(jobs, id, Path(place))
        while True:
            start = time.perf_counter()
            folder = picture.update()
            state = f"job {id}: {picture.job.status.lower()}"
            text = f"{state}, no run folder yet" if folder is None else f"{frame(see(folder), _width())}\n\n{state}"
            took = time.perf_counter() - start
            yield text
            if picture.job.over:
                return
            pause(max(every, 9 * took))


def _width() -> int:
    return max(60, shutil.get_terminal_size().columns - 1)
