"""Rewards of whole groups: majorities, ranks, tournaments. Their order changes nothing, and one that fails costs no other."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.groups import Tournament, majority, pairs, ranked, strengths, win_rates
from rlkit.rewards.judge import Judge
from rlkit.samples import Prompt, Rollout
from tests.rewards.judges import judging

LENGTHS = "rlkit.rewards.text:similar"


def rollouts(*texts: str, prompt: str = "p") -> list[Rollout]:
    return [Rollout.given(Prompt(prompt, (1,), "q", answer="x"), [1], text=text) for text in texts]


def scored(spec: RewardSpec | list[RewardSpec], rows: list[Rollout], on_error: Any = "mask") -> list[str]:
    said = list[str]()
    scorer = Scorer(spec if isinstance(spec, list) else [spec], on_error=on_error, report=said.append)
    try:
        scorer.check([])
        said += scorer.trial(rows[0].prompt)
        scorer.score(rows)
    finally:
        scorer.close()
    return said


# -- what a group function is ------------------------------------------------------------------------------------------


def lengths(responses: list[str]) -> list[float | None]:
    """Longest first; the empty one has no verdict."""
    return [None if not r else float(sum(len(r) >= len(x) for x in responses)) for r in responses]


async def together(responses: list[str], answer: str) -> list[dict[str, float]]:
    return [{"n": float(len(responses)), "has": float(answer in r)} for r in responses]


def one_for_all(responses: list[str]) -> float:
    return float(len(set(responses)))


def too_few(responses: list[str]) -> list[float]:
    return [1.0]


def alone(response: str, responses: list[str]) -> float:
    return float(responses.index(response))


@pytest.mark.slow
def test_a_function_of_responses_alone_is_called_once_for_a_group() -> None:
    rows = [*rollouts("x", "yyy", ""), *rollouts("xx", prompt="other")]
    said = scored(
        [RewardSpec(lengths, weight=2.0), RewardSpec(together), RewardSpec(one_for_all), RewardSpec(alone)], rows
    )
    assert [r.parts.get("lengths") for r in rows] == [2.0, 3.0, None, 1.0]
    assert [r.parts["together/n"] for r in rows] == [3.0, 3.0, 3.0, 1.0]
    assert [r.parts["together/has"] for r in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [r.parts["one_for_all"] for r in rows] == [3.0, 3.0, 3.0, 1.0]
    assert [r.parts["alone"] for r in rows] == [0.0, 1.0, 2.0, 0.0], (
        "one that takes `response`, too, is called for each"
    )
    assert [math.isnan(r.reward) for r in rows] == [False, False, True, False], "one without a verdict is masked alone"
    assert rows[0].reward == 2 * 2.0 + 4.0 + 3.0 and "on an empty response, it returned None" in said[0]


@pytest.mark.slow
def test_a_list_of_another_length_is_an_error() -> None:
    with pytest.raises(rk.ConfigError, match="returned 1 rewards for 2 responses; a list has one for each"):
        scored(RewardSpec(too_few), rollouts("x", "y"))


# -- majority and ranks --------------------------------------------------------------------------------------------------


def in_any_order(give: Any, texts: list[str]) -> None:
    """What each text gets is the same in every order."""
    known = dict(zip(texts, give(texts), strict=True))
    for k in range(6):
        other = random.Random(k).sample(texts, len(texts))
        for text, x in zip(other, give(other), strict=True):
            assert x == pytest.approx(known[text], abs=1e-9), (text, other)


def test_the_majority_is_right() -> None:
    texts = [r"\boxed{2}", "The answer is 2.", r"\boxed{3}", "no idea", r"\boxed{\frac{4}{2}}"]
    assert majority(texts) == [1, 1, 0, 0, 1]
    assert majority(["a", "b", "b ", "a", "c"], by="text") == [1, 1, 1, 1, 0], (
        "answers given equally often are all the majority"
    )
    assert majority(["no", "idea"]) == [0, 0]
    in_any_order(majority, texts)


def test_ranks_count_those_below_and_half_of_the_equal_ones() -> None:
    texts = ["abcd", "ab", "zz", "abc", "ab"]
    assert ranked(LENGTHS, texts, answer="abcd") == pytest.approx([1.0, 0.375, 0.0, 0.75, 0.375])
    assert ranked(LENGTHS, ["one"], answer="abcd") == [0.5]
    assert ranked(f"{Path(__file__)}:even", ["a", "bb", "c", "ddd"]) == [0.25, None, 0.25, 1.0]
    in_any_order(lambda t: ranked(LENGTHS, t, answer="abcd"), texts)


def even(response: str) -> float | None:
    return None if len(response) % 2 == 0 else float(len(response))


# -- tournaments -----------------------------------------------------------------------------------------------------------


def longer(first: str, second: str) -> float:
    return 0.5 + 0.5 * ((len(first) > len(second)) - (len(first) < len(second)))


async def first_of_all(first: str, second: str) -> float:
    """A judge that cares for places alone."""
    return 1.0


async def fails_on_b(first: str, second: str) -> float | None:
    if "b" in (first, second):
        raise RuntimeError("no connection")
    return None if "c" in (first, second) else longer(first, second)


def play(texts: list[str], **keys: Any) -> list[float | None]:
    return asyncio.run(Tournament(**keys)(texts))


def test_the_share_of_games_that_are_won() -> None:
    assert play(["a", "bb", "ccc"], of=longer) == [0.0, 0.5, 1.0]
    assert play(["a", "bb", "bb", "ccc"], of=longer) == pytest.approx([0, 0.5, 0.5, 1]), (
        "equal texts are as good as each other"
    )
    assert play(["a", "b", "c"], of=first_of_all) == [0.5] * 3, "in both orders, places cancel"
    assert play(["a", "a"], of=longer) == [0.5, 0.5] and play(["a"], of=longer) == [0.5]


@pytest.mark.parametrize(
    "keys", [{}, {"score": "bradley_terry"}, {"opponents": 2}, {"both": False}, {"both": False, "opponents": 1}]
)
def test_a_tournament_does_not_depend_on_the_order(keys: dict[str, Any]) -> None:
    texts = ["a", "bb", "ccc", "dd", "eeeee", "a"]
    in_any_order(lambda t: play(t, of=longer, **keys), texts)


def test_a_response_whose_comparisons_fail_has_no_reward_and_the_others_have() -> None:
    assert play(["a", "b", "aaa", "aa"], of=fails_on_b) == [0.0, None, 1.0, 0.5]
    assert play(["a", "c", "aaa", "aa"], of=fails_on_b, score="bradley_terry")[1] is None
    with pytest.raises(RuntimeError, match="no connection"):
        play(["a", "b"], of=fails_on_b)


def test_everybody_meets_as_many_as_asked_and_is_not_always_the_first() -> None:
    for n, opponents in itertools.product(range(2, 9), (1, 2, 3, None)):
        met = pairs(n, opponents)
        most = n - 1 if opponents is None else min(opponents, n - 1)
        assert len({frozenset(p) for p in met}) == len(met) and all(i != j for i, j in met)
        assert all(sum(i in p for p in met) >= most for i in range(n))
    assert sorted(pairs(4, None)) == [(0, 1), (0, 3), (1, 2), (2, 0), (2, 3), (3, 1)]


def test_strengths_make_the_games_most_likely() -> None:
    """Against a fit by gradient descent of the likelihood as it is written, in which every copy of a text plays for itself."""
    rng, count, prior = random.Random(3), [1, 2, 1, 1], 0.7
    won: dict[tuple[int, int], float] = {}
    for i, j in [(0, 1), (0, 2), (1, 2), (2, 3)]:
        won[i, j] = rng.random()
        won[j, i] = 1 - won[i, j]
    of = [i for i, n in enumerate(count) for _ in range(n)]
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def unlikely() -> torch.Tensor:
        optimizer.zero_grad()
        s = theta.exp()
        loss = torch.zeros((), dtype=torch.float64)
        for a, b in itertools.permutations(range(len(of)), 2):
            i, j = of[a], of[b]
            loss = loss - won.get((i, j), 0.0) * (s[i] / (s[i] + s[j])).log()
        for i in of:
            loss = loss - prior / 2 * ((s[i] / (s[i] + 1)).log() + (1 / (s[i] + 1)).log())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(unlikely)  # type: ignore[no-untyped-call]
    found = strengths(won, count, prior)
    assert found == pytest.approx(theta.detach().sigmoid().tolist(), abs=1e-7)
    always = {(0, 1): 1.0, (1, 0): 0.0}
    high, low = strengths(always, [1, 1], 1.0)
    assert high is not None and low is not None and 0.5 < high < 1 and high == pytest.approx(1 - low), (
        "finite, whoever wins all"
    )
    assert win_rates(won, count)[3] == won[3, 2], "it met one other"


def test_what_compares_takes_two(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("{response}")
    judge = Judge(url="http://127.0.0.1:1/v1", prompt=str(tmp_path / "one.txt"))
    for of in (even, judge):
        with pytest.raises(rk.ConfigError, match="must take `first` and `second`; it has response"):
            Scorer([RewardSpec(Tournament(of=of))]).check([])


@pytest.mark.slow
def test_a_judge_of_pairs_in_a_run(tmp_path: Path) -> None:
    """In its process: it sees fields of the row, its use is counted under the tournament's name, and a comparison that fails is left out."""
    (tmp_path / "pair.txt").write_text("{answer}|{first}|{second}")

    def say(text: str, number: int) -> Any:
        _, first, second = text.split("|")
        if first == "bad":
            return (400, {})
        return f"[[{'A' if len(first) > len(second) else 'B'}]]"

    with judging(say) as server:
        judge = Judge(
            url=server.url, prompt=str(tmp_path / "pair.txt"), verdict=r"\[\[(\w)\]\]", values={"A": 1.0, "B": 0.0}
        )
        scorer = Scorer([RewardSpec(Tournament(of=judge), name="duel")])
        rows = rollouts("aa", "aaaaa", "bad", "aa")
        try:
            scorer.check([])
            scorer.score(rows)
            told = scorer.metrics()
        finally:
            scorer.close()
    assert [r.reward for r in rows] == pytest.approx([1 / 6, 1, 2 / 3, 1 / 6])
    assert set(server.asked) == {f"x|{a}|{b}" for a, b in itertools.permutations(("aa", "aaaaa", "bad"), 2)}
    assert told["reward/duel/asked"] == 6 and told["reward/errors"] == 0
