"""Rewards that do to their process what user code does. Most misbehave on the response "0" and are right on the others."""

import asyncio
import contextlib
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time


def number(response):
    return float(response)


def forks(response):
    """A child that returns like its parent, as after a forgotten ``os._exit``."""
    if os.fork() == 0:
        return -1.0
    return float(response)


def writes_everywhere(response):
    if response == "0":
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(fd, b"progress: 10 %\n" * 10)
    return float(response)


def closes_everything(response):
    if response == "0":
        os.closerange(0, 256)
    return float(response)


def closes_standard_streams(response):
    if response == "0":
        sys.stdin.close()
        sys.stdout.close()
        sys.stderr.close()
    return float(response)


def moves(response):
    if response == "0":
        os.chdir("/")
    return float(os.getcwd() == "/")


def leaves_an_alarm(response):
    if response == "0":
        signal.setitimer(signal.ITIMER_REAL, 0.2)
    else:
        time.sleep(0.3)
    return float(response)


def ignores_signals(response):
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    return float(response)


class Unusual(BaseException):
    pass


def leaves(response):
    """Every way out that is no exception of the usual kind; os._exit last."""
    if response == "0":
        sys.exit("no more")
    if response == "1":
        raise KeyboardInterrupt
    if response == "2":
        raise Unusual
    if response == "3":
        raise GeneratorExit
    if response == "4":
        os._exit(0)
    return float(response)


class Unprintable(Exception):
    def __str__(self):
        raise TypeError


def long_errors(response):
    if response == "0":
        raise Unprintable
    raise Exception("x" * 5_000_000)


class Strange:
    def __repr__(self):
        raise TypeError


STRANGE = [
    [0.5] * 1_000_000,
    {str(i): 1.0 for i in range(1_000_000)},
    {"x" * 1_000_000: 1.0},
    Strange(),
    "0.5",
    b"1",
    1j,
    10**400,
    {"a": float("nan")},
    (x for x in "a"),
    threading.Lock(),
]


def strange(response):
    return STRANGE[int(response)]


def loud(response):
    print(f"scoring {response}")
    for _ in range(100):
        print("y" * 9_999)
    os.write(1, b"to the descriptor\n")
    subprocess.run(["echo", "from a child"])
    threading.Thread(target=print, args=("from a thread",)).start()
    return float(response)


_KEPT = []


def leaks(response):
    _KEPT.append(bytearray(os.urandom(1)) * 4_000_000)
    return float(response)


def swallows(response):
    while response == "0":
        _KEPT.append(bytearray(os.urandom(1)) * 10_000_000)
        time.sleep(0.01)
    return float(response)


def forgets_to_close(response):
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for _ in range(10):
        _KEPT.append(open(os.devnull))  # noqa: SIM115
    return float(response)


def leaves_a_child(response, path):
    child = subprocess.Popen(["sleep", "600"])
    with open(path, "a") as f:
        f.write(f"{os.getpid()} {child.pid} ")
    return float(response)


def never_ends(response, path):
    """Holds the interpreter's lock, with a child beside it."""
    leaves_a_child("0", path)
    return float(bool(re.match(r"(a+)+$", "a" * 60 + "b")))


def uses_processes(response):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return float(pool.apply(abs, (int(response),)))


async def waits_for_ever(response):
    await asyncio.sleep(600)


def hangs(response):
    time.sleep(600)


def hangs_on_even(response):
    if int(response) % 2 == 0:
        time.sleep(600)
    return float(response)


async def leaves_async(response):
    """The other calls are under way when the first one leaves."""
    await asyncio.sleep(0.1 if response == "0" else 0.3)
    if response == "0":
        sys.exit("no more")
    return float(response)


async def forks_async(response):
    await asyncio.sleep(0.01)
    return forks(response)


async def swallows_async(response):
    while response == "0":
        _KEPT.append(bytearray(os.urandom(1)) * 10_000_000)
        await asyncio.sleep(0.01)
    return float(response)


def inner(value):
    return {"a": 1}[value]


def wrong_key(response):
    return inner(response)


def only_with_an_answer(response):
    return 1 / len(response)


def forgot_to_return(response):
    float(response)


def stops_answering(response, tokens):
    """Not on trial, where all tokens are 0."""
    if any(tokens):
        time.sleep(600)
    return 0.0


def says(response, tokens):
    print(f"so it says of {len(tokens)} tokens")
    return float(len(tokens))


def nothing_right(response, answer):
    return answer.no_such_method()
