"""Rewards that the tests use from files."""
import asyncio
import time


def length(response):
    return float(len(response))


def correct(response, answer):
    return {"correct": float(response == answer), "short": 0.1 * (len(response) < 4)}


async def slowly(response):
    await asyncio.sleep(0.01)
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
