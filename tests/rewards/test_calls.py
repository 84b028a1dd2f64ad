"""Similarity of calls of tools: by hand, and against the definition of its parts."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from rlkit.rewards.calls import rouge_l, similar_calls

THOUGHT = "<think>I look it up.</think>"
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"properties": {"what": {}, "limit": {}}}}},
    {"name": "now", "parameters": {}},
]


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


GOLD = THOUGHT + call("find", what="red cars", limit=3) + call("find", what="blue boats") + call("now")


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        (GOLD, 1.0),
        (THOUGHT + call("now"), 1 / 3),
        # the first takes the call that it is most like (both arguments), the second the other one (no word in common)
        (THOUGHT + call("find", what="red cars", limit=3) + call("find", what="green trees"), (1 + 0) / 3),
        (THOUGHT + call("find", what="red boats", limit=3), (0.5 + 1) / 2 / 3),
        (THOUGHT + call("find", what="red cars"), 1 / 2 / 3),
        (THOUGHT + call("find", what="blue boats", limit=9), 1 / 2 / 3),
        (THOUGHT + call("now") + call("now"), 1 / 4),
        (THOUGHT + "I do not know.", 0.0),
        (call("now"), -1.0),
        (THOUGHT + THOUGHT + call("now"), -1.0),
        (THOUGHT + "<tool_call>{now}</tool_call>", -1.0),
        (THOUGHT + call("later"), -1.0),
        (THOUGHT + call("find", where="here"), -1.0),
    ],
)
def test_calls_against_calls(said: str, reward: float) -> None:
    assert similar_calls(said, GOLD, TOOLS) == pytest.approx(reward)


def test_text_as_the_answer() -> None:
    gold = THOUGHT + "The sea is blue."
    assert similar_calls(THOUGHT + " The sea is blue. ", gold) == 1
    assert similar_calls(THOUGHT + "The sky is blue", gold) == pytest.approx(2 * 3 / 8)
    assert similar_calls(THOUGHT, gold) == 0 and similar_calls(THOUGHT + call("now"), gold) == 0
    assert similar_calls("12", "12", think=False) == 1 and similar_calls("12", "12") == -1
    assert (
        similar_calls(THOUGHT + call("any", x=True), THOUGHT + call("any", x=1.0)) == 1
    )  # no list of tools: none is looked up
    assert similar_calls(THOUGHT + call("any", x=[1]), THOUGHT + call("any", x=[2])) == 0


def test_the_longest_common_subsequence_by_enumeration() -> None:
    rng = random.Random(0)
    for _ in range(30):
        a, b = ([rng.choice("xyz") for _ in range(rng.randint(1, 6))] for _ in range(2))
        common = {s for n in range(len(b) + 1) for s in itertools.combinations(b, n)}
        longest = max(n for n in range(len(a) + 1) for s in itertools.combinations(a, n) if s in common)
        assert rouge_l(" ".join(a), " ".join(b) + ".") == pytest.approx(2 * longest / (len(a) + len(b)))
