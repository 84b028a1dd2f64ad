"""What the collector makes a batch of: how far it runs ahead, what is dropped, replaced and not admitted."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from rlkit.data.curriculum import AdmitRule, Shuffle, ZeroVariance
from rlkit.data.statistics import PromptStatistics
from rlkit.rollout.collector import Collector, Rules
from rlkit.rollout.section import RolloutSection
from rlkit.types import Prompt, Rollout, Sampling


class Engine:
    """Answers with the number of the prompt; remembers who asked when."""

    def __init__(self, rewards: dict[str, list[float]] | None = None) -> None:
        self.asked: list[str] = []
        self.rewards = rewards or {}
        self.lock = threading.Lock()

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        with self.lock:
            self.asked.append(prompt.id)
        rewards = self.rewards.get(prompt.id, [0.0, 1.0])
        return [Rollout(prompt, [1], [True], [0.0], [0], "stop", reward=x) for x in rewards]

    def score(self, rollouts: Any) -> None:
        pass


def collector(engine: Engine, n: int, rules: Rules | None = None, **options: Any) -> Collector:
    prompts = [Prompt(str(i), (3,), "") for i in range(n)]
    statistics = PromptStatistics(prompts)
    sampler = Shuffle().build(prompts, 0, statistics)
    return Collector(engine, engine, sampler, statistics, RolloutSection(prompts=2, n=2, **options), Sampling(), rules)


@pytest.mark.parametrize(("lag", "started"), [(0, 2), (1, 4), (3, 8)])
def test_generation_runs_ahead_by_max_lag_steps(lag: int, started: int) -> None:
    engine = Engine()
    c = collector(engine, 20, max_lag=lag)
    c.next(0)
    c.pool.shutdown(wait=True)
    assert len(engine.asked) == started


def test_dropped_groups_are_replaced_counted_and_bounded() -> None:
    prompts = [Prompt(str(i), (3,), "") for i in range(6)]
    order = [next(state).id for state in [Shuffle().build(prompts, 0, PromptStatistics(prompts))] for _ in range(6)]
    c = collector(Engine({order[0]: [1.0, 1.0], order[2]: [math.nan, math.nan]}), 6, Rules((ZeroVariance(),)))
    got = c.next(0)
    assert [r.prompt.id for r in got[::2]] == [order[1], order[3]] and [r.group for r in got] == [0, 0, 1, 1]
    assert c.metrics()["rollout/dropped"] == 2 and c.metrics()["rollout/dropped_no_reward"] == 1
    hopeless = collector(Engine({str(i): [1.0, 1.0] for i in range(6)}), 6, Rules((ZeroVariance(),)), max_waste=3)
    with pytest.raises(RuntimeError, match=r"7 groups were dropped in one step to find 0 of 2.*zero_variance: 7"):
        hopeless.next(0)


def test_without_refill_a_batch_is_smaller_but_never_empty() -> None:
    prompts = [Prompt(str(i), (3,), "") for i in range(8)]
    order = [next(state).id for state in [Shuffle().build(prompts, 0, PromptStatistics(prompts))] for _ in range(8)]
    engine = Engine({order[i]: [1.0, 1.0] for i in (0, 2, 3)})
    c = collector(engine, 8, Rules((ZeroVariance(),), refill=False))
    steps = [[r.prompt.id for r in c.next(k)[::2]] for k in range(3)]
    assert steps == [[order[1]], [order[4]], [order[5], order[6]]]  # step 1 lost both of its groups and got one more
    assert c.metrics()["rollout/dropped"] == 3 and len(engine.asked) == 7


@pytest.mark.parametrize("lag", [0, 1])
def test_refill_ahead_asks_in_one_round_for_what_the_share_that_is_kept_lets_expect(lag: int) -> None:
    known: list[int] = []

    class Counting(Engine):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            known.append(c.started)
            return super().generate(prompt, n, sampling)

    engine = Counting({str(i): [1.0, 1.0] for i in range(200) if i % 4})  # one of four is kept
    c = collector(engine, 200, Rules((ZeroVariance(),), refill="ahead"), max_lag=lag, max_waste=50)
    for step in range(12):
        begun, share, asked = c.taken, c.kept / c.seen, len(known)
        kept = c.next(step)
        assert len({r.prompt.id for r in kept}) == 2 and all(int(r.prompt.id) % 4 == 0 for r in kept)
        assert len(c.pending) == 2 * lag, "what is not needed leaves"
        if not lag:
            assert known[asked] == begun + math.ceil(2 / share), "of the first round, by the share of the steps before"
    surplus = c.metrics()["rollout/dropped_surplus"]
    assert 0 < surplus < c.taken / 2
    assert c.metrics()["rollout/dropped"] == surplus + c.metrics()["rollout/dropped_zero_variance"]


def test_prompts_that_are_not_admitted_are_replaced() -> None:
    class Odd(AdmitRule):
        def __call__(self, prompt: Prompt, ask: Any) -> str | None:
            return "even" if int(prompt.id) % 2 == 0 and ask(1, True) else None

    c = collector(Engine(), 8, Rules(admit=Odd()))
    assert (
        all(int(r.prompt.id) % 2 for r in c.next(0))
        and c.metrics().get("rollout/dropped_even", 0) == c.metrics()["rollout/dropped"]
    )
