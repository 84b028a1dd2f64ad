"""Checkpoints, the collector, metrics that merge, and cutting of batches."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.data.curriculum import AdmitRule, Shuffle, ZeroVariance
from rlkit.data.statistics import PromptStatistics
from rlkit.learner.plan import minibatches, pack
from rlkit.record.checkpoint import Checkpoints
from rlkit.rollout.collector import Collector, Rules
from rlkit.rollout.interrupt import Interrupt, Interruption
from rlkit.rollout.lengths import Lengths, LengthState
from rlkit.rollout.section import RolloutSection
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats


def test_a_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        c.save(step, {"step": step}, lambda folder: (Path(folder) / "learner.pt").write_bytes(b"x" * 9))
    assert [p.name for p in c.complete()] == ["step_00000002", "step_00000003"]

    def dies(folder: str) -> None:
        (Path(folder) / "learner.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        c.save(4, {}, dies)
    latest = c.complete()[-1]
    assert Checkpoints.read(latest) == (3, {"step": 3})
    (latest / "learner.pt").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"learner.pt should have 9 bytes, found 5"):
        Checkpoints.read(latest)


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


class Typist:
    """Writes the numbers 0, 1, 2, ... after what it was given, up to 9, which ends the text."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.calls.append((prompt.token_ids, sampling.max_tokens))
        tokens = list(range(prompt.token_ids[-1] + 1, 10))[: sampling.max_tokens]
        done = tokens[-1] == 9
        return [
            Rollout(
                prompt,
                list(tokens),
                [True] * len(tokens),
                [-1.0] * len(tokens),
                [3] * len(tokens),
                "stop" if done else "length",
                text="".join(map(str, tokens)),
            )
            for _ in range(n)
        ]


def test_interrupted_responses_are_told_so_and_answer() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(c) for c in text]}

    typist = Typist()
    told = Interruption(Interrupt(low=3, high=3, text="77", until="x"), tokenizer, 8)
    group = told.generate(typist, Prompt("p", (0,), "0"), 2, Sampling(max_tokens=8))
    for r in group:
        assert r.tokens == [1, 2, 3, 7, 7, 8, 9] and r.text == "1237789" and r.finish == "stop" and r.prompt.id == "p"
        assert r.sampled == [True] * 3 + [False] * 2 + [True] * 2 and r.logp[3:5] == [0.0, 0.0] and r.version == [3] * 7
    assert sorted(typist.calls) == [((0,), 3), ((0, 1, 2, 3, 7, 7), 3), ((0, 1, 2, 3, 7, 7), 3)]
    simply = Interruption(Interrupt(low=3, high=3, text="77", until="23"), tokenizer, 8).generate(
        typist, Prompt("p", (0,), "0"), 1, Sampling(max_tokens=8)
    )
    assert simply[0].tokens == [1, 2, 3, 4, 5, 6, 7, 8] and simply[0].finish == "length" and all(simply[0].sampled)
    assert (
        Interruption(Interrupt(low=9, high=9, text="7"), tokenizer, 11)
        .generate(typist, Prompt("p", (0,), "0"), 1, Sampling(max_tokens=11))[0]
        .finish
        == "stop"
    )
    with pytest.raises(ValueError, match="no room for an answer"):
        Interruption(Interrupt(low=3, high=6, text="77"), tokenizer, 8)


def test_prompts_that_are_not_admitted_are_replaced() -> None:
    class Odd(AdmitRule):
        def __call__(self, prompt: Prompt, ask: Any) -> str | None:
            return "even" if int(prompt.id) % 2 == 0 and ask(1, True) else None

    c = collector(Engine(), 8, Rules(admit=Odd()))
    assert (
        all(int(r.prompt.id) % 2 for r in c.next(0))
        and c.metrics().get("rollout/dropped_even", 0) == c.metrics()["rollout/dropped"]
    )


def test_the_response_limit_grows_while_there_is_entropy() -> None:
    state, seen = LengthState(Lengths(limits=(8, 16, 32), every=2)), []
    for step in range(1, 7):
        seen.append(state.limit)
        state.observe(step, 1.0)
    assert seen == [8, 8, 16, 16, 32, 32]


def test_the_response_limit_stops_for_good_when_entropy_is_gone() -> None:
    state = LengthState(Lengths(limits=(8, 16), every=4, min_entropy=0.5))
    for step in range(1, 30):
        state.observe(step, 0.4 if step < 9 else 3.0)
    assert state.limit == 8 and state.stopped
    again = LengthState(state.spec)
    again.load_state_dict(state.state_dict())
    assert again.stopped and again.metrics()["length/limit"] == 8
    with pytest.raises(ValueError, match="ascending"):
        Lengths(limits=(16, 8))


def test_metrics_do_not_depend_on_how_they_were_cut() -> None:
    def stats(values: list[float]) -> Stats:
        s = Stats()
        for v in values:
            s.add("mean", v, "mean", 2.0)
            s.add("sum", v, "sum")
            s.add("max", v, "max")
        return s

    whole, cut = stats([1.0, 2.0, 6.0]), stats([1.0]).merge(stats([2.0, 6.0]))
    assert whole.as_dict() == cut.as_dict() == {"mean": 3.0, "sum": 9.0, "max": 6.0}


def test_cutting_keeps_groups_whole_and_respects_the_token_limit() -> None:
    g = torch.Generator().manual_seed(0)
    length = torch.randint(1, 50, (40,), generator=g)
    for ranks in (1, 2, 3):
        plan = pack(length, ranks, max_tokens=100)
        assert sorted(r for rank in plan for micro in rank for r in micro) == list(range(40))
        assert len({len(rank) for rank in plan}) == 1
        assert all(int(length[m].max()) * len(m) <= 100 for rank in plan for m in rank if m)
    b = Batch(
        seq=torch.arange(12),
        group=torch.arange(12) // 3,
        source=torch.zeros(12, dtype=torch.long),
        reward=torch.zeros(12),
    )
    parts = minibatches(b, epochs=2, count=2, seed=1)
    assert len(parts) == 4 and sorted(torch.cat(parts[:2]).tolist()) == list(range(12))
    assert all(set(b.group[p].tolist()).isdisjoint(b.group[q].tolist()) for p, q in (parts[:2], parts[2:]))
    assert len(minibatches(b, 1, 5, 0)) == 4  # groups are never split


def test_rows_of_a_batch_are_what_a_mask_would_keep() -> None:
    g = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(
            Prompt(str(i), tuple(range(3, 4 + i)), ""),
            list(range(10, 11 + i % 4)),
            [i != 2] + [True] * (i % 4) if i % 4 else [i != 4],
            [-0.1 * i] * (i % 4 + 1),
            [0] * (i % 4 + 1),
            "stop",
            group=i // 2,
            reward=float(i),
        )
        for i in range(7)
    ]  # one of them without a sampled token
    b = Batch.from_rollouts(rollouts)
    b = b.replace(norm=torch.rand(2, b.S, generator=g))
    assert int((b.seq == 4).sum()) == 0
    for _ in range(20):
        keep = torch.rand(b.S, generator=g) < 0.5
        part, tok, ids = b.rows(keep), keep[b.seq], keep[torch.repeat_interleave(torch.arange(b.S), b.length)]
        assert (
            torch.equal(part.seq, (keep.cumsum(0) - 1)[b.seq][tok])
            and torch.equal(part.logp["behav"], b.logp["behav"][tok])
            and torch.equal(part.norm, b.norm[:, keep])
        )
        assert (
            torch.equal(part.ids, b.ids[ids])
            and torch.equal(part.ids[part.action], b.ids[b.action[tok]])
            and torch.equal(part.length, b.length[keep])
        )
