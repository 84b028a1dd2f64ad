"""Rewards that the tests use from files."""

import asyncio
import os
import time


def length(response):
    return float(len(response))


def correct(response, answer):
    return {"correct": float(response == answer), "short": 0.1 * (len(response) < 4)}


def no_verdict(response):
    return None


async def slowly(response):
    await asyncio.sleep(0.01)
    return 1.0


_BEGUN = 0


async def meets(response, calls):
    global _BEGUN
    _BEGUN += 1
    while calls > _BEGUN:
        await asyncio.sleep(0.01)
    return 1.0


async def waits_for(response, path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    return 1.0


def leaves(response, path):
    with open(path, "w"):
        return 1.0


async def most_at_once(response):
    global _BEGUN
    _BEGUN += 1
    await asyncio.sleep(0.1)
    now = _BEGUN
    await asyncio.sleep(0.1)
    _BEGUN -= 1
    return float(now)


async def first_hangs(response):
    await asyncio.sleep(60 if response == "a" else 0)
    return 1.0


async def first_kills(response):
    if response == "a":
        os._exit(3)
    return 1.0


async def first_blocks(response):
    if response == "a":
        time.sleep(60)
    return 1.0


def broken(response, answer):
    return 1 / 0


def hangs(response):
    time.sleep(60)


def unknown_column(response, no_such_column):
    return 0.0


def not_a_number(response):
    return float("nan")


def varied(response):
    """Differs between almost any two responses, so that every group has an advantage."""
    return sum((i + 1) * ord(c) for i, c in enumerate(response)) % 17 / 17


def constant(response):
    return 0.5


def often(response, id):
    """Never solved for some prompts, sometimes for others."""
    return 0.0 if sum(map(ord, id)) % 5 == 0 else float(sum(map(ord, response)) % 3 == 0)


def some_hang(response):
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(3)
    return 1.0


def hangs_on_long(response):
    if len(response) > 1000:
        time.sleep(60)
    return 1.0


_CALLS = 0


def fading(response):
    """Right for the first 18 responses that its process sees (two of them on trial), then never."""
    global _CALLS
    _CALLS += 1
    return 1.0 if _CALLS <= 18 else 0.4 * varied(response)


def breaks_later(response):
    """Right while it is on trial."""
    global _CALLS
    _CALLS += 1
    return 1.0 if _CALLS <= 2 else 1 / 0


def fails_at_times(response):
    """Has no verdict where it is odd, and says so by an error; which responses these are depends on nothing else."""
    if len(response) > 1 and ord(response[0]) % 5 == 0:
        raise LookupError("no verdict")
    return varied(response)


def late(response):
    time.sleep(0.03)
    return varied(response)


def by_prompt(response, answer):
    """As ``varied``; one response is good for some prompts and bad for others."""
    return varied(response + answer)
