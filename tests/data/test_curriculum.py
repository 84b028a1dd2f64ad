"""Samplers, and the rules that admit prompts and drop groups."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from rlkit.data.curriculum import (
    GaussianDifficulty,
    GreedyUnsolved,
    Learnability,
    Overlong,
    Pools,
    Proportions,
    Replay,
    Shuffle,
    Thompson,
    Together,
    ZeroVariance,
    replay_weights,
)
from rlkit.data.prompts import load_prompts
from rlkit.data.statistics import PromptStatistics
from rlkit.model.tiny import make_tokenizer
from rlkit.types import Prompt
from tests.data.groups import group, prompts
from tests.data.tables import beside


def test_shuffle_sees_every_prompt_once_an_epoch_and_resumes() -> None:
    ps = prompts(7)
    state = Shuffle().build(ps, 1, PromptStatistics(ps))
    first, second = [next(state).id for _ in range(7)], [next(state).id for _ in range(3)]
    assert sorted(first) == sorted(p.id for p in ps) and first[:3] != second
    again = Shuffle().build(ps, 1, PromptStatistics(ps))
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert [next(again).id for _ in range(9)] == [next(state).id for _ in range(9)]


def test_solved_prompts_retire_from_later_epochs() -> None:
    ps = prompts(6)
    known = PromptStatistics(ps)
    state = Shuffle(retire_above=0.9).build(ps, 0, known)
    for _ in range(6):
        p = next(state)
        known.observe(group(p, [1.0, 1.0] if p.id in ("p0", "p1") else [1.0, 0.0]))
    assert (
        sorted(next(state).id for _ in range(4)) == ["p2", "p3", "p4", "p5"] and state.metrics()["data/active"] == 4 / 6
    )
    for p in ps:
        known.observe(group(p, [1.0] * 40))
    assert len({next(state).id for _ in range(6)}) == 6  # none would be left: all come back


SAMPLERS = [
    GaussianDifficulty(center=0.5, width=0.15, decay=0.5),
    Learnability(decay=0.5),
    Thompson(candidates=3),
    Pools(column="level", order=(0, 1), after=4),
    Proportions(column="level", weights={"0": 1.0, "1": 3.0}),
    Replay(column="level", weights={"0": 1.0, "1": 3.0}, window=4),
    Together(column="level"),
]


@pytest.mark.parametrize("spec", SAMPLERS, ids=lambda s: type(s).__name__)
def test_samplers_resume(spec: object, tmp_path: Path) -> None:
    ps = [Prompt(f"p{i}", (3,), str(i), columns={"level": i % 2}) for i in range(6)]
    known = PromptStatistics(ps)
    state = spec.build(ps, 0, known)
    rng = random.Random(0)
    for _ in range(30):
        g = group(next(state), [float(rng.random() < 0.5) for _ in range(4)])
        known.observe(g)
        state.observe(g)
    known.save(tmp_path / "prompts.sqlite")
    again_known = PromptStatistics(ps)
    again = spec.build(ps, 5, again_known)
    again_known.load(tmp_path / "prompts.sqlite")
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert [next(again).id for _ in range(20)] == [next(state).id for _ in range(20)]


@pytest.mark.parametrize("spec", SAMPLERS[:2], ids=lambda s: type(s).__name__)
def test_difficulty_samplers_prefer_what_is_half_solved(spec: object) -> None:
    ps = prompts(3)
    known = PromptStatistics(ps)
    state = spec.build(ps, 0, known)
    for _ in range(12):
        for p, rewards in zip(ps, ([1.0, 1.0], [1.0, 0.0], [0.0, 0.0]), strict=True):
            known.observe(group(p, rewards))
            state.observe(group(p, rewards))
    drawn = Counter(next(state).id for _ in range(600))
    weights = [float(spec.weight(x)) for x in (1.0, 0.5, 0.0)]
    for p, w in zip(ps, weights, strict=True):
        assert drawn[p.id] / 600 == pytest.approx(w / sum(weights), abs=0.06)


def test_thompson_leaves_what_is_surely_too_easy_or_too_hard() -> None:
    ps = prompts(4)
    known = PromptStatistics(ps)
    for p, rate in zip(ps[:3], (1.0, 0.5, 0.0), strict=True):
        known.observe(group(p, [rate] * 200))
    drawn = Counter(next(state).id for state in [Thompson(candidates=4).build(ps, 0, known)] for _ in range(300))
    assert drawn["p1"] > 200 and drawn["p3"] > 5 and drawn["p0"] + drawn["p2"] == 0


def test_pools_open_by_pass_rate_and_keep_a_share_of_the_old() -> None:
    ps = [Prompt(f"p{i}", (3,), "", columns={"level": i % 3}) for i in range(30)]
    known = PromptStatistics(ps)
    state = Pools(column="level", order=(0, 1, 2), gate=0.8, keep=0.2).build(ps, 0, known)
    for _ in range(100):
        state.observe(group(next(state), [0.0, 1.0]))
    assert state.stage == 0  # half solved is not enough
    while state.stage < 2:
        state.observe(group(next(state), [1.0, 1.0]))
    drawn = Counter(next(state).columns["level"] for _ in range(1000))
    assert drawn[2] / 1000 == pytest.approx(0.8, abs=0.05) and drawn[0] > 50 and drawn[1] > 50
    with pytest.raises(ValueError, match="no prompt has level = 7; its values are 0, 1, 2"):
        Pools(column="level", order=(7,), after=1).build(ps, 0, known)
    with pytest.raises(ValueError, match="never leaves"):
        Pools(column="level", order=(0,))


def test_proportions_of_data_sets(tmp_path: Path) -> None:
    for name, n in (("a", 2), ("b", 8)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{name}{i}"}) for i in range(n)))
    ps = load_prompts(beside(tmp_path, train=["a.jsonl", "b.jsonl"]), "train", make_tokenizer("ab0123456789"))
    assert [p.columns["dataset"] for p in ps] == ["a"] * 2 + ["b"] * 8
    state = Proportions(weights={"a": 3.0, "b": 1.0}).build(ps, 0, PromptStatistics(ps))
    drawn = Counter(next(state).columns["dataset"] for _ in range(1000))
    assert drawn["a"] / 1000 == pytest.approx(0.75, abs=0.05)


def test_replay_weights_by_hand() -> None:
    """One objective is solved and steady, one stands still half way, one gets better, one swings."""
    solved, still, better, swings = [1.0] * 4, [0.5] * 4, [0.2, 0.2, 0.6, 0.6], [0.0, 1.0, 0.0, 1.0]
    scores = [0.0, 0.5 * 1.0, 0.4 * 0.5 + 0.2 / 0.41, 0.5 * 1.0 + 0.5 / 0.51]
    e = [math.exp(x / 0.5) for x in scores]
    want = [4 * x / sum(e) for x in e]
    assert replay_weights([solved, still, better, swings], 4, 0.5) == pytest.approx(want)
    assert replay_weights([solved, still[:3]], 4, 0.5) == [1.0, 1.0]  # not yet known
    worse = replay_weights([[1.0, 1.0, 0.9, 0.9], solved], 4, 1.0)  # from nothing left to gain to something: twice
    assert worse[0] / worse[1] == pytest.approx(math.exp(0.1 * 2.0 + 0.05 / 0.96))


def test_replay_draws_what_has_most_to_gain() -> None:
    ps = [Prompt(f"p{i}", (3,), "", columns={"dataset": "ab"[i % 2]}) for i in range(10)]
    state = Replay(weights={"a": 3.0, "b": 1.0}, window=4).build(ps, 0, PromptStatistics(ps))
    for rewards in ([1.0, 1.0], [1.0, 1.0], [math.nan, math.nan], [1.0, 1.0], [1.0, 1.0]):
        state.observe(group(ps[0], rewards))
        state.observe(group(ps[1], [0.0, 0.0]))
    state.observe(group(Prompt("q", (3,), "", columns={}), [1.0]))  # of neither
    share = 3.0 / (3.0 + math.e)  # b has everything to gain: weight e against 1
    assert state.metrics() == pytest.approx({"data/share_a": share, "data/share_b": 1 - share})
    drawn = Counter(next(state).columns["dataset"] for _ in range(1000))
    assert drawn["a"] / 1000 == pytest.approx(share, abs=0.05)


def test_a_data_set_that_is_never_drawn_would_never_be_known() -> None:
    with pytest.raises(ValueError, match=r"Replay.weights is 0.0; it must be positive"):
        Replay(weights={"a": 1.0, "b": 0.0})


def test_wordings_of_a_question_come_together() -> None:
    ps = [Prompt(f"p{i}", (3,), "", columns={"question_id": i % 4}) for i in range(12)]
    state = Together().build(ps, 0, PromptStatistics(ps))
    epochs = [[next(state) for _ in range(12)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(p.id for p in epoch) == sorted(p.id for p in ps)
        assert all(len({p.columns["question_id"] for p in epoch[k : k + 3]}) == 1 for k in range(0, 12, 3))
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="p0 has no column 'topic'"):
        Together(column="topic").build(ps, 0, PromptStatistics(ps))


def test_what_is_already_solved_greedily_is_not_admitted() -> None:
    p = prompts(1)[0]
    asked: list[tuple[int, bool]] = []

    def ask(reward: float) -> object:
        return lambda n, greedy: asked.append((n, greedy)) or group(p, [reward] * n)

    assert (
        GreedyUnsolved()(p, ask(1.0)) == "greedy_solved"
        and GreedyUnsolved()(p, ask(0.5)) is None
        and asked == [(1, True)] * 2
    )


def test_drop_rules() -> None:
    p = prompts(1)[0]
    assert ZeroVariance()(group(p, [1.0, 1.0])) and not ZeroVariance()(group(p, [1.0, 0.0]))
    shaped = group(p, [1.0, 0.7, math.nan])  # all right, one of them long
    for r, parts in zip(shaped, ({"math": 1.0, "overlong": 0.0}, {"math": 1.0, "overlong": -0.3}, {}), strict=True):
        r.parts = parts
    assert not ZeroVariance()(shaped) and ZeroVariance(of="math")(shaped) and not ZeroVariance(of="overlong")(shaped)
    assert ZeroVariance(of="math")(group(p, [math.nan] * 2))
    with pytest.raises(ValueError, match=r"of is 'maths', but the rewards of prompt p0 are math, overlong"):
        ZeroVariance(of="maths")(shaped)
    assert Overlong(share=0.5)(group(p, [0.0, 1.0], "length")) and not Overlong()(group(p, [0.0, 1.0]))
