"""Votes by enumeration of all subsets, and the stopping rule by numerical integration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlkit.evaluation import (
    maj_at_k,
    majority,
    majority_probability,
    should_stop,
    tally,
    temperature_vote,
    weighted_vote,
)

ANSWERS = ["4", "5", "4", None, "6", "5", "4", None]
CORRECT = [1, 0, 1, 0, 0, 0, 1, 0]


def test_ties_are_shared_and_none_forms_no_vote() -> None:
    assert maj_at_k(["a", "b"], [1, 0], 2) == 0.5 and maj_at_k(["a", "b", "c"], [0, 1, 1], 3) == pytest.approx(2 / 3)
    assert maj_at_k([None, None, None, "a"], [0, 0, 0, 1], 4) == 1 and maj_at_k([None, None], [0, 0], 2) == 0
    assert maj_at_k(ANSWERS, CORRECT, 8) == 1 and maj_at_k(ANSWERS, CORRECT, 1) == 3 / 8
    assert majority([None, "b", "a"]) == "b" and majority([None]) is None and tally(["a", None, "a"]) == {"a": 2}


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_subsets_are_drawn_without_replacement(k: int) -> None:
    exact = np.mean(
        [
            maj_at_k([ANSWERS[i] for i in draw], [CORRECT[i] for i in draw], k)
            for draw in itertools.combinations(range(8), k)
        ]
    )
    got = maj_at_k(ANSWERS, CORRECT, k, subsets=20_000)
    assert got == pytest.approx(exact, abs=0.012) and got == maj_at_k(ANSWERS, CORRECT, k, subsets=20_000)
    assert got != maj_at_k(ANSWERS, CORRECT, k, subsets=20_000, seed=1) or k == 7


def test_a_draw_without_an_answer_is_not_correct() -> None:
    assert maj_at_k(["a", *[None] * 7], [1] + [0] * 7, 2, subsets=20_000) == pytest.approx(2 / 8, abs=0.012)


def test_weights_can_overrule_numbers() -> None:
    assert (
        weighted_vote(["a", "a", "b"], [0, 0, 1], [0.2, 0.2, 0.5]) == 1
        and weighted_vote(["a", "a", "b"], [0, 0, 1], [1, 1, 2]) == 0.5
    )
    assert weighted_vote([None, None], [0, 0], [1, 1]) == 0
    with pytest.raises(ValueError, match="a weight is -1"):
        weighted_vote(["a"], [1], [-1])
    with pytest.raises(ValueError, match="2 answers and 1 weights"):
        tally(["a", "b"], [1])
    with pytest.raises(ValueError, match="k is 3, but there are 2 samples"):
        maj_at_k(["a", "b"], [1, 0], 3)


def test_temperatures_must_be_confident_and_agree() -> None:
    sure, other, unsure = ["a"] * 4 + ["b"], ["b"] * 5, ["a", "b", "c", "a", None]
    v = temperature_vote({0.2: sure, 0.6: sure, 1.0: unsure})
    assert v.stop and v.answer == "a" and v.confident == {0.2: "a", 0.6: "a"} and v.agreement == 1
    v = temperature_vote({0.2: sure, 0.6: other, 1.0: ["a"] * 5})
    assert not v.stop and v.agreement == pytest.approx(2 / 3) and v.answer == "a"
    assert temperature_vote({0.2: sure, 0.6: other, 1.0: ["a"] * 5}, cross=2 / 3).stop
    v = temperature_vote({1.0: unsure})
    assert not v.stop and v.confident == {} and v.agreement == 0 and v.answer == "a"


def test_sampling_stops_when_the_majority_is_settled() -> None:
    assert [should_stop(["a"] * n) for n in (0, 1, 2, 3, 4, 9)] == [False, False, False, False, True, True]
    assert (
        majority_probability(["a"] * 4) == 1 - 0.5**5
        and majority_probability(["a", "b"]) == 0.5
        and majority_probability([None]) == 0
    )
    x = np.linspace(0.5, 1, 200_001)  # 1 - I_half(7, 3): density of Beta(7, 3)
    assert majority_probability(["a"] * 6 + ["b"] * 2 + ["c"]) == pytest.approx(
        np.trapezoid(252 * x**6 * (1 - x) ** 2, x), abs=1e-9
    )


@pytest.mark.parametrize("votes", [(4,), (3, 1), (5, 5), (6, 2, 1), (40, 30, 20, 20), (500, 450)])
def test_dirichlet_against_sampling(votes: tuple[int, ...]) -> None:
    draws = np.random.default_rng(0).dirichlet([v + 1 for v in (votes if len(votes) > 1 else (*votes, 0))], 200_000)
    answers = [a for i, v in enumerate(votes) for a in [str(i)] * v]
    got = majority_probability(answers, "dirichlet")
    assert got == pytest.approx((draws.argmax(1) == 0).mean(), abs=0.004)
    if len(votes) <= 2:
        assert got == pytest.approx(majority_probability(answers), abs=1e-9)  # one rival: the same question
