"""The collector: who goes first, how old a group may get, and what a resumed run asks for again."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.curriculum import AdmitRule, Shuffle, ZeroVariance
from rlkit.data.statistics import PromptStatistics
from rlkit.rollout.collector import Collector, Rules, read_groups, version_metrics, write_groups
from rlkit.rollout.engine import request_seed
from rlkit.rollout.hf import _batches, _Request
from rlkit.rollout.section import RolloutSection
from rlkit.run import load
from rlkit.types import Prompt, Rollout, Sampling


class Engine:
    """Answers with its version; ``held`` prompts wait until they are let go, the others as long as ``seconds`` says."""

    def __init__(self, held: Sequence[str] = (), seconds: Any = lambda: 0.0) -> None:
        self.held = {i: threading.Event() for i in held}
        self.seconds, self.version = seconds, 0
        self.asked: list[str] = []
        self.rewards: dict[str, list[float]] = {}

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.asked.append(prompt.id)
        version = self.version
        if prompt.id in self.held:
            self.held[prompt.id].wait(30)
        time.sleep(self.seconds())
        return [
            Rollout(prompt, [1], [True], [0.0], [version], "stop", reward=x)
            for x in self.rewards.get(prompt.id, [0.0, 1.0])
        ]

    def score(self, rollouts: Any) -> None:
        pass


def collector(engine: Engine, size: int, prompts: int = 2, rules: Rules | None = None, **options: Any) -> Collector:
    rows = [Prompt(str(i), (3,), "") for i in range(size)]
    statistics = PromptStatistics(rows)
    section = RolloutSection(prompts=prompts, n=2, pause="continue", **options)
    return Collector(engine, engine, Shuffle().build(rows, 0, statistics), statistics, section, Sampling(), rules)


def order(size: int) -> list[str]:
    rows = [Prompt(str(i), (3,), "") for i in range(size)]
    state = Shuffle().build(rows, 0, PromptStatistics(rows))
    return [next(state).id for _ in range(size)]


def ids(group: Sequence[Rollout]) -> set[str]:
    return {r.prompt.id for r in group}


def test_a_straggler_is_overtaken_so_often_and_then_waited_for() -> None:
    first = order(20)
    engine = Engine(held=first[:1])
    c = collector(engine, 20, over=0.5, overtake=2)
    assert ids(c.next(0)) == set(first[1:3])  # the step did not wait
    engine.version = 1
    assert ids(c.next(1)) == set(first[3:5]) and [g.prompt.id for g in c.in_flight()] == [first[0]]
    with ThreadPoolExecutor(1) as thread:
        engine.version = 2
        third = thread.submit(c.next, 2)
        time.sleep(0.05)
        assert not third.done()  # four groups went before it
        engine.held[first[0]].set()
        assert ids(third.result(30)) == {first[0], first[5]}
    assert c.metrics()["rollout/lag_max"] == 2 and c.metrics()["rollout/lag_mean"] == 1
    assert sorted(engine.asked) == sorted(first[:7])  # asked once each


def test_without_over_groups_leave_in_start_order() -> None:
    first = order(20)
    engine = Engine(held=first[:1])
    c = collector(engine, 20, max_lag=1)
    with ThreadPoolExecutor(1) as thread:
        step = thread.submit(c.next, 0)
        time.sleep(0.05)
        assert not step.done()
        engine.held[first[0]].set()
        assert ids(step.result(30)) == set(first[:2])


@pytest.mark.parametrize(("max_lag", "over", "overtake"), [(0, 0.5, 1), (0, 1.0, 2), (1, 0.25, 1), (2, 0.0, 1)])
def test_age_is_bounded_and_every_group_is_trained_on_once(max_lag: int, over: float, overtake: int) -> None:
    rng = random.Random(0)
    engine = Engine(seconds=lambda: min(0.05, 0.001 * rng.paretovariate(0.7)))
    c = collector(engine, 400, prompts=4, max_lag=max_lag, over=over, overtake=overtake, rules=Rules((ZeroVariance(),)))
    engine.rewards = {str(i): [1.0, 1.0] for i in range(0, 400, 5)}  # these are dropped and replaced
    used: Counter[str] = Counter()
    oldest = 0.0
    for step in range(25):
        engine.version = step
        batch = c.next(step)
        assert len(ids(batch)) == 4 and sorted({r.group for r in batch}) == [0, 1, 2, 3]
        used.update(ids(batch))
        oldest = max(oldest, c.metrics()["rollout/lag_max"])
    assert oldest <= max_lag + (1 if over else 0) + (overtake if over else 0)
    assert max(used.values()) == 1 and sum(used.values()) == 100
    assert c.taken == 100 + c.dropped and len(c.pending) == 4 * max_lag + c.extra
    assert not set(used) & {g.prompt.id for g in c.in_flight()}


def test_prompts_and_those_that_replace_dropped_ones_are_asked_for_together() -> None:
    known: list[int] = []
    engine = Engine(seconds=lambda: known.append(c.started) or 0.0)  # type: ignore[func-returns-value]
    c = collector(engine, 60, prompts=4, max_lag=1, rules=Rules((ZeroVariance(),)))
    engine.rewards = {i: [1.0, 1.0] for i in order(60)[4:8]}
    c.next(0)
    wait([g.result for g in c.pending])
    # One less while the driver takes a group.
    assert len(known) == 8 and set(known) <= {7, 8}, "the first one was asked when all were chosen"
    c.next(1)
    assert set(known[8:16]) <= {15, 16}, "four for the next step, and four in the place of those that the step dropped"


def continued(c: Collector, new: Collector, path: Path) -> Collector:
    """``new`` goes on where ``c`` is, by what a checkpoint holds."""
    write_groups(path, c.in_flight())
    new.sampler.load_state_dict(c.sampler.state_dict())
    new.load_state_dict(json.loads(json.dumps(c.state_dict())), read_groups(path, {p.id: p for p in c.sampler.prompts}))
    return new


def test_what_was_in_flight_at_a_checkpoint_is_asked_again(tmp_path: Path) -> None:
    first = order(20)
    c = collector(Engine(held=first[1:2]), 20, over=0.5)
    assert ids(c.next(0)) == {first[0], first[2]} and [g.prompt.id for g in c.in_flight()] == [first[1]]
    resumed = continued(c, collector(Engine(), 20, over=0.5), tmp_path / "ahead.jsonl")
    assert [(g.number, g.prompt.id) for g in resumed.unasked] == [(1, first[1])] and not resumed.engine.asked  # type: ignore[attr-defined]
    assert first[1] in ids(resumed.next(1)) | ids(resumed.next(2))
    assert not {first[0], first[2]} & set(resumed.engine.asked)  # type: ignore[attr-defined]


def test_groups_that_had_finished_at_a_checkpoint_are_not_asked_again(tmp_path: Path) -> None:
    first = order(20)
    engine = Engine(held=first[3:4])

    class Solved(AdmitRule):
        def __call__(self, prompt: Prompt, ask: Any) -> str | None:
            return "solved" if ask(1, True) and prompt.id == first[2] else None

    c = collector(engine, 20, max_lag=1, rules=Rules(admit=Solved()))
    c.next(0)
    wait([c.pending[0].result])
    resumed = continued(c, collector(Engine(), 20, max_lag=1), tmp_path / "ahead.jsonl")
    engine.held[first[3]].set()
    assert [g.finished for g in resumed.pending] == [True, False]
    again: Any = resumed.engine
    again.version = 1
    batch = resumed.next(1)
    assert first[2] not in again.asked and resumed.reasons == {"solved": 1}, "its refusal is known"
    assert [r.prompt.id for r in batch] == [first[3]] * 2 + [first[4]] * 2
    assert resumed.metrics()["rollout/lag_max"] == 0, (
        "what is asked again is of the weights of the checkpoint, and says so"
    )

    c.finish_ahead()
    done = continued(c, collector(Engine(), 20, max_lag=1), tmp_path / "ahead.jsonl")
    assert not done.unasked and done.pending[1].result.result()[0] == c.pending[1].result.result()[0]
    assert done.next(1)[0].version == [0] and done.metrics()["rollout/lag_max"] == 1


@pytest.mark.parametrize("later", [0, 1, 2])
def test_another_lag_after_a_resume_loses_and_repeats_no_group(tmp_path: Path, later: int) -> None:
    first, c = order(40), collector(Engine(), 40, max_lag=1)
    c.next(0)
    c.finish_ahead()
    resumed = continued(c, collector(Engine(), 40, max_lag=later), tmp_path / "ahead.jsonl")
    taken = [[r.prompt.id for r in resumed.next(step)[::2]] for step in (1, 2, 3)]
    resumed.finish_ahead()
    assert taken == [first[2:4], first[4:6], first[6:8]] and len(resumed.pending) == 2 * later
    assert sorted(resumed.engine.asked) == sorted(first[4 : 8 + 2 * later])  # type: ignore[attr-defined]


def test_an_error_of_a_straggler_surfaces() -> None:
    first = order(20)

    class Fails(Engine):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            out = super().generate(prompt, n, sampling)
            if prompt.id in self.held:
                raise RuntimeError("the engine is lost")
            return out

    engine = Fails(held=first[:1])
    c = collector(engine, 20, over=0.5)
    c.next(0)
    engine.held[first[0]].set()
    with pytest.raises(RuntimeError, match="the engine is lost"):
        for step in (1, 2, 3):
            c.next(step)


def test_how_old_tokens_are() -> None:
    p = Prompt("p", (3,), "")
    rows = [
        Rollout(p, [1] * 4, [True] * 4, [0.0] * 4, [3, 4, 4, 5], "stop"),
        Rollout(p, [1] * 2, [True] * 2, [0.0] * 2, [5, 5], "stop"),
    ]
    assert version_metrics(rows, 5) == pytest.approx(
        {
            "rollout/lag_mean": 4 / 6,
            "rollout/lag_max": 2,
            "rollout/versions_mean": 2,
            "rollout/versions_max": 3,
            "rollout/continued": 1,
        }
    )


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        ({"over": 0.5}, "rollout.over is 0.5, but engine: vllm with pause: wait"),
        ({"over": 0.5, "engine": "hf", "pause": "continue"}, "engine: hf with pause: continue"),
        ({"over": 1.5, "pause": "continue"}, "rollout.over: is 1.5"),
        ({"overtake": 0}, "rollout.overtake: is 0"),
        ({"pause": "stop"}, "continue"),
    ],
)
def test_impossible_settings(small: dict[str, Any], rollout: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load({**small, "rollout": rollout})


class Draws(Engine):
    """Answers with what real engines seed their generators with."""

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        seed = request_seed(sampling, prompt, self.version)
        assert seed is not None
        return [Rollout(prompt, [seed + k], [True], [0.0], [self.version], "stop", reward=0.5) for k in range(n)]


def seeded(size: int, prompts: int, **options: Any) -> Collector:
    made = collector(Draws(), size, prompts, **options)
    made.sampling = Sampling(seed=7)
    return made


def draws(c: Collector, steps: range) -> list[list[int]]:
    out = []
    for step in steps:
        c.engine.version = step  # type: ignore[attr-defined]
        out.append([r.tokens[0] for r in c.next(step)])
    c.close()
    return out


def test_a_prompt_that_comes_twice_in_a_step_is_answered_anew_and_a_resumed_run_repeats_it(tmp_path: Path) -> None:
    c = seeded(size=2, prompts=6)  # every prompt comes three times in each step
    whole = draws(c, range(4))
    assert all(len(set(step)) == 12 for step in whole)
    assert len({x for step in whole for x in step}) == 48
    assert draws(seeded(size=2, prompts=6), range(4)) == whole

    begun = seeded(size=2, prompts=6)
    assert draws(begun, range(2)) == whole[:2]
    resumed = continued(begun, seeded(size=2, prompts=6), tmp_path / "ahead.jsonl")
    assert draws(resumed, range(2, 4)) == whole[2:]


def test_the_hugging_face_engine_batches_requests_whose_seeds_differ() -> None:
    def request(seed: int, max_tokens: int) -> _Request:
        return _Request(Prompt(str(seed), (3,), ""), 2, Sampling(seed=seed, max_tokens=max_tokens), Future())

    requests = [request(seed, 8 if seed < 4 else 9) for seed in range(6)]
    assert [[r.sampling.seed for r in batch] for batch in _batches(requests)] == [[0, 1, 2, 3], [4, 5]]
