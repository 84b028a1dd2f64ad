"""The model guesses a number and is told whether it is higher or lower, in several turns.   rlkit train examples/guessing.yaml"""

import random
from typing import Any

import rlkit as rk


class Ranges(rk.Task):
    """Prompts such as ``2-8:``; the secret is a number in that range, another one in each episode."""

    alphabet = "0123456789-:<>"

    def question(self, rng: random.Random) -> dict[str, Any]:
        low, high = sorted(rng.sample(range(10), 2))
        return {"prompt": f"{low}-{high}:", "low": low, "high": high}


async def guess(
    context: rk.Context, low: int, high: int, rng: random.Random, guesses: int = 3
) -> dict[str, float | list[float]]:
    """One token a guess. ``sensible`` is earned by each guess that can be right after all that was said."""
    secret, sensible = rng.randint(low, high), list[float]()
    for _ in range(guesses):
        said = await context.generate(max_tokens=1)
        number = int(said.text) if said.text in list("0123456789") else -1
        sensible.append(0.2 if low <= number <= high else 0.0)
        if number == secret:
            return {"found": 1.0, "sensible": sensible}
        context.add(">" if secret > number else "<")
        if low <= number <= high:
            low, high = (number + 1, high) if secret > number else (low, number - 1)
    return {"found": 0.0, "sensible": sensible}
