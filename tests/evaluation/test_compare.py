"""Paired tests by enumeration of all signs, and the forward KL by enumeration of all responses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.data.tasks import Sorting
from rlkit.evaluation import compare, forgetting, forgetting_fit, forgetting_of, mcnemar, permutation_test
from rlkit.model.tiny import make_tiny
from rlkit.rollout.hf import HFEngine
from rlkit.types import Prompt, Sampling
from tests.objective.world import T, V, World


def samples(table: dict[str, list[float]], dataset: str = "d") -> list[dict[str, Any]]:
    return [{"prompt_id": p, "correct": c, "dataset": dataset} for p, row in table.items() for c in row]


@pytest.mark.parametrize(
    ("difference", "denominator"),
    [
        ([0.25, -0.5, 0.75, 0.25, 0, 0.5], [4] * 6),
        ([1, 1, 1, 1, -1], None),
        ([1 / 3, 1 / 2, -1 / 6, 1 / 3], [3, 2, 6, 3]),
        ([0.5, -0.5], [2, 2]),
        ([1], [1]),
    ],
)
def test_all_signs_are_counted(difference: list[float], denominator: list[int] | None) -> None:
    d = np.array(difference)
    all_signs = np.array(list(itertools.product((1, -1), repeat=len(d)))) @ d
    want = (np.abs(all_signs) >= abs(d.sum()) - 1e-9).mean()
    assert permutation_test(difference, denominator) == (pytest.approx(want), True)


def test_random_signs_where_values_are_not_counts() -> None:
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    all_signs = np.array(list(itertools.product((1, -1), repeat=12))) @ d
    p, exact = permutation_test(d, [1] * 12, resamples=40_000)
    assert not exact and p == pytest.approx((np.abs(all_signs) >= abs(d.sum())).mean(), abs=0.01)
    assert permutation_test([0, 0]) == (1.0, True)


def test_mcnemar_is_the_binomial_tail() -> None:
    assert (
        mcnemar(0, 0) == mcnemar(3, 3) == 1
        and mcnemar(5, 0) == 2 / 32
        and mcnemar(1, 6) == mcnemar(6, 1) == 2 * (1 + 7) / 128
    )


def test_what_changed_even_if_the_mean_did_not() -> None:
    a = samples({"p": [1, 1], "q": [0, 0], "r": [1, 0], "s": [0, 0]})
    b = samples({"q": [1, 1], "p": [0, 0], "r": [1, 1], "s": [0, 1]})
    c = compare(a, b)
    assert (
        (c.mean_a, c.mean_b, c.difference) == (0.375, 0.625, 0.25)
        and c.gained == ("q", "s")
        and c.lost == ("p",)
        and c.flips == 0.75
    )
    assert c.low <= -0.25 and c.high >= 0.75 and c.exact and c.p_mcnemar == 1
    many = {str(i): [float(i % 3 > 0)] for i in range(300)}
    worse = {p: [0.0] if int(p) % 5 == 0 else row for p, row in many.items()}
    c = compare(samples(many), samples(worse))
    assert (
        not c.gained
        and len(c.lost) == 40
        and c.difference == pytest.approx(-40 / 300)
        and c.p_permutation == pytest.approx(2 * 0.5**40) == c.p_mcnemar
    )
    half = 1.96 * math.sqrt(40 / 300 * (1 - 40 / 300) / 300)
    assert (c.low, c.high) == pytest.approx((c.difference - half, c.difference + half), abs=0.006)


def test_data_sets_apart_and_together() -> None:
    a = samples({"p": [1.0]}, "math") + samples({"p": [0.0], "q": [1.0]}, "code")
    b = samples({"p": [1.0]}, "math") + samples({"p": [1.0], "q": [1.0]}, "code")
    c = compare(a, b)
    assert c.prompts == 3 and c.datasets["math"].flips == 0 and c.datasets["code"].gained == ("p",)
    assert [line.split()[0] for line in c.table().splitlines()] == ["data", "math", "code", "all"]
    with pytest.raises(
        ValueError,
        match=r"1 of 3 prompts of the first are missing from the second, and 2 of 4 of the second from the first \(e.g. 'code/q'\)",
    ):
        compare(a, [*b[:2], *samples({"x": [1.0], "y": [1.0]}, "code")])


# -- forgetting -----------------------------------------------------------------------------------------------------


def test_the_forward_kl_of_all_responses() -> None:
    w = World(3)
    base, tuned = w.anchor, w.pi().detach()
    rows, _ = w._tokens()
    exact = (w.of_sequence(base).exp() * (w.of_sequence(base) - w.of_sequence(tuned))).sum()
    sampled = forgetting(list(w.at(base).view(-1, T)), list(w.at(tuned).view(-1, T)))
    full = forgetting(list(base[rows].view(-1, T, V)), list(tuned[rows].view(-1, T, V)))
    p = w.of_sequence(base).exp().numpy()
    assert p @ np.array(sampled.values) == pytest.approx(float(exact)) == p @ np.array(full.values)
    assert (
        full.exact
        and not sampled.exact
        and min(full.values) >= 0 > min(sampled.values)
        and sampled.tokens == 2 * len(p)
    )
    assert full.per_sequence == pytest.approx(np.mean(full.values)) and full.per_token == pytest.approx(
        full.per_sequence / T
    )
    assert full.per_sequence_error == pytest.approx(
        np.std(full.values, ddof=1) / 3
    ) and full.per_token_error == pytest.approx(full.per_sequence_error / T)


def test_impossible_tokens_and_wrong_shapes() -> None:
    half = [[math.log(0.5), math.log(0.5), -math.inf]]
    assert forgetting(
        [torch.tensor(half)], [torch.tensor([[math.log(0.25), math.log(0.5), math.log(0.25)]])]
    ).per_sequence == pytest.approx(0.5 * math.log(2))
    assert forgetting([torch.tensor(half)], [torch.tensor([[0.0, -math.inf, -math.inf]])]).per_sequence == math.inf
    with pytest.raises(ValueError, match=r"response 1 has log-probs of shape \[2\] from the base model and \[1\]"):
        forgetting([[-1.0], [-1.0, -2.0]], [[-1.0], [-1.0]])
    with pytest.raises(ValueError, match="response 0 has a log-prob that is nan"):
        forgetting([[math.nan]], [[-1.0]])
    with pytest.raises(ValueError, match="1 responses scored by the base model and 0"):
        forgetting([[-1.0]], [])


@pytest.mark.slow
def test_two_engines(tiny: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, seed=5)
    base, tuned = HFEngine(str(tiny)), HFEngine(str(other))
    try:
        prompt = Prompt("p", (3, 4, 5), "abc")
        rollouts = base.generate(prompt, 64, Sampling(max_tokens=6, seed=1))
        zero, f = forgetting_of(base, base, rollouts), forgetting_of(base, tuned, rollouts)
        assert zero.per_sequence == 0 and f.sequences == 64 and f.tokens == sum(len(r.tokens) for r in rollouts)
        logits = [
            e.lm(torch.tensor([[*prompt.token_ids, *r.tokens]]), logits_to_keep=len(r.tokens) + 1)
            .logits[0, :-1]
            .log_softmax(-1)
            for e in (base, tuned)
            for r in rollouts
        ]
        full = forgetting(logits[:64], logits[64:])
        assert (
            abs(f.per_sequence - full.per_sequence) < 4 * f.per_sequence_error
            and 0 < full.per_sequence_error < f.per_sequence_error
        )
        hot = base.generate(prompt, 8, Sampling(max_tokens=6, temperature=0.2, seed=1))
        with pytest.raises(ValueError, match="not sampled from it at temperature 1"):
            forgetting_of(base, tuned, hot)
        assert forgetting_of(base, tuned, hot, tolerance=None).sequences == 8
    finally:
        base.close()
        tuned.close()


def test_score_against_forgetting() -> None:
    kl = np.array([0.0, 0.1, 0.2, 0.5, 0.9])
    fit = forgetting_fit(kl, 0.6 - 0.1 * kl - 0.3 * kl**2)
    assert (
        fit.coefficients == pytest.approx((-0.3, -0.1, 0.6))
        and fit.r2 == pytest.approx(1)
        and fit.predict(2) == pytest.approx(-0.8)
    )
    assert forgetting_fit(kl, [0, 1, 0, 1, 0], degree=1).r2 < 0.1
    with pytest.raises(ValueError, match="at least 4"):
        forgetting_fit([1, 2, 3], [1, 2, 3])
