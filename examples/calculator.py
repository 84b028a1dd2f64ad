"""A model that cannot multiply learns to ask a calculator and to read what it says.   rlkit train examples/calculator.yaml"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rlkit as rk


@dataclass(frozen=True, kw_only=True)
class Products(rk.Task):
    """Prompts such as ``47*83=``, whose answers have four digits.

    The warm-up shows how a call is written, and seldom does one. No demonstration knows a product: without a call the answer is the digits
    of the question, and after one the result is drawn by lot, so that a result can only be learned by reading it.
    """

    calls: float = 0.15  # share of the demonstrations that call the tool
    reads: float = 0.7  # share of these whose answer is what the tool said

    def question(self, rng: random.Random) -> dict[str, Any]:
        a, b = rng.randint(32, 99), rng.randint(32, 99)
        return {"prompt": f"{a}*{b}=", "expression": f"{a}*{b}", "answer": a * b}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        wrong = row["expression"].replace("*", "")
        if rng.random() >= self.calls:
            return wrong
        call = f'<function=calculator>{{"expression": "{row["expression"]}"}}</function>'
        result = str(rng.randint(1000, 9999))
        return f"{call}<eos>{result}<eos>{result if rng.random() < self.reads else wrong}"


async def solve(chat: rk.Chat, answer: int, tool: bool = True) -> float:
    """1 for the right answer, with at most one call before it."""
    if tool:
        chat.use(rk.tools.calculator)
    said = await chat.run(turns=2)
    return float(said.text == str(answer))
