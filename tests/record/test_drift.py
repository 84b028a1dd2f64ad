"""The drift from the start model: exact in expectation, by enumeration; its rows survive a checkpoint."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import rlkit as rk
from rlkit.record.drift import ROWS, TOKENS, Drift, ratio
from rlkit.types import Prompt, Rollout

pytestmark = pytest.mark.slow

V, T, END = 3, 3, 0


class Policy:
    """Distributions over 3 tokens after each prefix, up to 3 tokens or the end token."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.table: dict[tuple[int, ...], Tensor] = {}
        for n in range(T):
            for prefix in itertools.product(range(1, V), repeat=n):
                self.table[prefix] = torch.randn(V, generator=g, dtype=torch.float64).log_softmax(-1)

    def each(self, response: Sequence[int]) -> list[float]:
        return [float(self.table[tuple(response[:t])][x]) for t, x in enumerate(response)]

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return [self.each(r.tokens) for r in rollouts]


RESPONSES = [
    r
    for n in range(1, T + 1)
    for r in itertools.product(range(V), repeat=n)
    if END not in r[:-1] and (r[-1] == END or n == T)
]
START, POLICY = Policy(0), Policy(1)
PROBABILITY = {r: math.exp(sum(START.each(r))) for r in RESPONSES}


def rollout(response: Sequence[int], prompt: str) -> Rollout:
    n = len(response)
    return Rollout(Prompt(prompt, (7, 8), ""), list(response), [True] * n, [0.0] * n, [0] * n, "stop")


def measured(responses: Sequence[Sequence[int]]) -> dict[str, float]:
    drift = Drift(1)
    for i, r in enumerate(responses):
        drift.see([rollout(r, str(i))])
    drift.begin(START.logprobs)
    return drift.measure(POLICY.logprobs)


def test_its_expectation_is_the_kl_by_enumeration() -> None:
    """Over every pair of responses that the start model can give. The KL is by the chain rule, prefix by prefix."""
    assert math.fsum(PROBABILITY.values()) == pytest.approx(1)
    kl = length = 0.0
    for prefix, p in START.table.items():
        reach = math.exp(sum(START.each(prefix)))
        kl += reach * float((p.exp() * (p - POLICY.table[prefix])).sum())
        length += reach
    # The variance of one response.
    spread = sum(w * (sum(START.each(r)) - sum(POLICY.each(r)) - kl) ** 2 for r, w in PROBABILITY.items())
    value = square = 0.0
    for a, b in itertools.product(RESPONSES, repeat=2):
        found, weight = measured([a, b]), PROBABILITY[a] * PROBABILITY[b]
        value += weight * found["drift/start_sequence"]
        square += weight * found["drift/start_sequence_error"] ** 2
    assert value == pytest.approx(kl, rel=1e-12)
    assert square == pytest.approx(spread / 2, rel=1e-12)
    # per token it is a ratio of means: that of the whole distribution, each response as often as it comes
    counts = [round(PROBABILITY[r] * 2000) for r in RESPONSES]
    rows = [r for r, n in zip(RESPONSES, counts, strict=True) for _ in range(n)]
    lost = [sum(START.each(r)) - sum(POLICY.each(r)) for r in rows]
    assert ratio(lost, [float(len(r)) for r in rows], list(map(str, range(len(rows)))))[0] == pytest.approx(
        kl / length, rel=5e-3
    )


def test_responses_of_one_prompt_count_as_one_for_the_error() -> None:
    assert ratio([1.0, 1.0, 0.0, 0.0], [1.0] * 4, ["a", "a", "b", "b"]) == (0.5, pytest.approx(0.5))
    assert ratio([1.0, 0.0, 1.0, 0.0], [1.0] * 4, ["a", "a", "b", "b"]) == (0.5, 0.0)
    assert math.isnan(ratio([1.0], [1.0], ["a"])[1])


def test_rows_are_spread_over_prompts_bounded_and_kept_in_a_checkpoint() -> None:
    drift = Drift(10)
    for g in range(ROWS // 2 + 8):
        drift.see([rollout((g % 2 + 1, END), f"p{g}"), rollout((END,), f"p{g}"), rollout((1, 1, 1), f"p{g}")])
    drift.begin(START.logprobs)
    drift.see([rollout((END,), "later")])
    assert len(drift.rows) == ROWS and len({r.prompt.id for r in drift.rows}) == ROWS // 2 + 8
    again = Drift(10)
    again.load_state_dict(json.loads(json.dumps(drift.state_dict())))
    again.see([rollout((END,), "later")])
    assert again.measure(POLICY.logprobs) == drift.measure(POLICY.logprobs)
    assert drift.measure(START.logprobs)["drift/start"] == 0
    assert [k for k in range(31) if again.due(k, 25)] == [0, 10, 20, 25, 30]
    long = Drift(1)
    for g in range(8):
        long.see([rollout([1] * (TOKENS // 4), f"p{g}")])
    long.begin(lambda rollouts: [[0.0] * len(r.tokens) for r in rollouts])
    assert len(long.rows) == 4
    never = Drift(0)
    never.see([rollout((END,), "p")])
    never.begin(START.logprobs)
    assert never.rows == [] and not never.due(10, 10)


def test_a_run_without_a_reference_measures_it_and_a_resumed_one_goes_on_with_the_same_rows(
    small: dict[str, Any],
) -> None:
    small |= {
        "name": "dapo",
        "steps": 4,
        "objective": [{"type": "PPOClip", "eps_high": 0.28}],
        "reference": None,
        "checkpoint": {"every": 2, "keep": 9},
        "log": {"tensorboard": False, "drift": 2},
        "learner": {"lr": 5e-3},
        "sampling": {"max_tokens": 4, "top_p": 0.8},
    }
    folder = rk.train(rk.load(small), quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "drift/start" in r] == [2, 4]
    assert 0 < rows[3]["drift/start"] < rows[3]["drift/start_sequence"] < 50
    assert rows[3]["drift/start_sequence_error"] > 0
    driver = json.loads((folder / "checkpoints" / "step_00000002" / "driver.json").read_text())
    assert 0 < len(driver["drift"]) <= 16 and driver["collector"]["taken"] == 8
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    assert rk.train(rk.load(small), resume=True, quiet=True) == folder
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The last digits of an engine's log-probs depend on which requests arrive together.
    timed = ("time/", "speed/", "memory/", "idle/", "sync/", "eval/", "rollout/dropped", "mismatch/")
    assert [{k: v for k, v in r.items() if not k.startswith(timed)} for r in again] == [
        {k: v for k, v in r.items() if not k.startswith(timed)} for r in rows
    ]
