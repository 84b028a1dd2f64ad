"""Cleans up after a Ray that rlkit has started: run as a process of its own, which outlives whatever happens to the driver.

It waits until its standard input closes, which the death of the driver does too, then kills every process that has a file of the
session's folder open, and removes the folder. Ray's own processes end with their driver on most machines, its agents do not.

A script without imports of rlkit, so that it takes 10 MB and not 300.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time


def users(folder: str, driver: int) -> list[int]:
    """Processes that have a file below ``folder`` open, which all of Ray's have: their logs. So has the ``driver``, which is left out.

    Empty where there is no ``/proc``.
    """
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not name.isdigit() or int(name) in (os.getpid(), driver):
            continue
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{fd}").startswith(folder + os.sep):
                    found.append(int(name))
                    break
    return found


def clean(folder: str, driver: int, patience: float = 20.0) -> None:
    """Kills until nobody is left, because what is being killed may still start others; then removes ``folder``."""
    end = time.monotonic() + patience
    while (left := users(folder, driver)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the driver decides, and the pipe says when
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    clean(sys.argv[1], int(sys.argv[2]))
