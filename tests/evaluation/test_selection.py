"""Best of n and rejection sampling, against exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlkit.evaluation.selection import (
    acceptance,
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_bound,
    frontier,
    moment_multipliers,
    rejection_sample,
    tilt_weights,
)
from rlkit.types import Prompt, Rollout
from tests.objective.world import World


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def best_of_n_distribution(p: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
    """``pi_n(y) = F(y)^n - F^-(y)^n``: how often each of finitely many responses is chosen, ``[Y]``.

    ``F`` is the CDF of the reward under ``p``. Ties are broken by a fixed order: of equal rewards the earlier entry wins.
    """
    order = np.lexsort((-np.arange(len(p)), reward))  # worst first; of equal ones the later entry is the worse
    upto = p[order].cumsum() / p.sum()
    out = np.empty_like(p)
    out[order] = upto**n - np.r_[0.0, upto[:-1]] ** n
    return out


PROMPTS = (Prompt("p", (3, 4, 5), "abc"), Prompt("q", (6,), "d"))


# -- best of n ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("L", "exact", "estimate"),
    [
        (10, (0.6288, 1.7331, 2.2935, 2.3026), (0.6349, 1.7561, 2.2946, 2.3026)),
        (100, (0.6362, 1.8340, 3.1576, 4.3137), (0.6363, 1.8349, 3.1667, 4.3320)),
    ],
)
def test_best_of_n_kl_of_uniform_outcomes(L: int, exact: tuple[float, ...], estimate: tuple[float, ...]) -> None:
    p = np.full(L, 1 / L)
    for n, true, guess, bound in zip((4, 16, 64, 256), exact, estimate, (0.6363, 1.8351, 3.1745, 4.5491), strict=True):
        assert kl(best_of_n_distribution(p, np.arange(L), n), p) == pytest.approx(true, abs=5e-5)
        assert float(best_of_n_kl(-math.log(L), n)) == pytest.approx(guess, abs=5e-5) and best_of_n_kl_bound(
            n
        ) == pytest.approx(bound, abs=5e-5)


def test_best_of_n_estimator_at_its_ends() -> None:
    assert best_of_n_kl(np.log([0.05, 0.3]), 4) == pytest.approx([0.636112, 0.602116], abs=5e-7)
    assert best_of_n_kl([-2000.0, -40.0], 16) == pytest.approx(best_of_n_kl_bound(16)) and best_of_n_kl(
        [0.0, -1e-12], 16
    ) == pytest.approx(0, abs=1e-10)
    assert best_of_n_kl([-3.0, 0.0], 1) == pytest.approx(0, abs=1e-15) and best_of_n_kl_bound(1) == 0
    with pytest.raises(ValueError, match="at most 0"):
        best_of_n_kl([0.5], 4)
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n_kl_bound(0)


def test_the_chosen_distribution_by_enumeration() -> None:
    rng = np.random.default_rng(0)
    p, reward, n = rng.dirichlet(np.ones(4)), np.array([0.5, 1.0, 0.5, -1.0]), 3
    want = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        # Of equal rewards the lower index is first.
        rollouts = [
            Rollout(PROMPTS[0], [i], [True], [0.0], [0], "stop", reward=reward[i], group=i) for i in sorted(draw)
        ]
        want[best_of_n(rollouts)[0].group] += p[list(draw)].prod()
    got = best_of_n_distribution(p, reward, n)
    assert (
        got == pytest.approx(want)
        and kl(got, p) <= best_of_n_kl_bound(n) <= kl(got, p) + 2 * n * (n - 1) * (p**2).sum()
    )


def test_one_response_for_each_prompt() -> None:
    def r(prompt: int, reward: float) -> Rollout:
        return Rollout(PROMPTS[prompt], [1], [True], [0.0], [0], "stop", reward=reward)

    rollouts = [r(1, 0.1), r(0, math.nan), r(0, -3), r(1, 0.2), r(1, 0.2), r(0, -5)]
    assert best_of_n(rollouts) == [rollouts[3], rollouts[2]] and best_of_n(rollouts)[0] is rollouts[3]
    assert (
        best_of_n(rollouts, [5, 0, 0, 0, 0, 1])[0] is rollouts[0]
        and best_of_n(rollouts, lambda x: -x.reward)[1] is rollouts[5]
    )
    with pytest.raises(ValueError, match="prompt p has no response with a reward"):
        best_of_n([r(1, 1), r(0, math.nan)])
    with pytest.raises(ValueError, match="6 rollouts and 1 rewards"):
        best_of_n(rollouts, [1])


# -- tilting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_accepted_samples_follow_the_tilted_policy(beta: float) -> None:
    w = World(1)
    p, r = w.of_sequence(w.anchor).exp().numpy(), w.reward.numpy()
    optimum = p * np.exp((r - r.max()) / beta)
    z, optimum = optimum.sum(), optimum / optimum.sum()
    accepted = p * acceptance(r, beta, r_max=float(r.max()) + 0.3)
    assert accepted / accepted.sum() == pytest.approx(optimum) and accepted.sum() == pytest.approx(
        z * math.exp(-0.3 / beta)
    )
    assert tilt_weights(r, beta) * p / (tilt_weights(r, beta) * p).sum() == pytest.approx(optimum)


def test_rejection_draws_as_it_says() -> None:
    reward = np.array([0.0, 1.0, 2.0] * 20_000)
    chance = np.exp([-1.0, -0.5, 0.0])
    kept = rejection_sample(reward, 2.0, r_max=2.0)
    share = np.bincount(reward[kept].astype(int)) / len(kept)
    assert share == pytest.approx(chance / chance.sum(), abs=0.01)
    assert len(rejection_sample(reward, 2.0)) == pytest.approx(20_000 * chance.sum(), rel=0.02)
    with pytest.raises(ValueError, match=r"a reward is 2.0, above r_max = 1.5"):
        acceptance(reward, 1.0, 1.5)
    for beta in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="beta is"):
            tilt_weights([1.0], beta)
    with pytest.raises(ValueError, match="rewards must be finite"):
        acceptance([math.nan], 1.0)


def test_the_frontier() -> None:
    one, four = frontier([0, 0.5, 1, 1], [1.0, 0.25])
    assert (one.reward, one.kl, four.reward, four.kl) == pytest.approx(
        (0.774360, 0.070609, 0.960076, 0.459432), abs=1e-6
    )
    assert one.valid == 0 and one.ess == pytest.approx(3.534301, abs=1e-6)
    p, r = np.array([1, 2, 4, 3]) / 10, np.array([3.0, -1.0, 0.5, 100.0])
    samples = np.repeat(r, (p * 1000).astype(int))
    for beta in (0.1, 1.0, 50.0):
        best = p * np.exp((r - r.max()) / beta)
        best /= best.sum()
        f = frontier(samples, [beta])[0]
        assert (f.reward, f.kl) == pytest.approx((best @ r, kl(best, p)), rel=1e-9, abs=1e-12) and f.valid == 1
        # `best` underflows for a small beta.
        for other in (p, np.full(4, 0.25), best_of_n_distribution(p, r, 4)) if (best > 0).all() else ():
            # How far any policy is below.
            assert other @ r - beta * kl(other, p) == pytest.approx(beta * f.log_z - beta * kl(other, best), rel=1e-9)
    both = frontier([samples, -samples], [1.0])[0]
    parts = [frontier(s, [1.0])[0] for s in (samples, -samples)]
    assert both.kl == pytest.approx((parts[0].kl + parts[1].kl) / 2) and both.ess == min(x.ess for x in parts)
    sharp = frontier(np.arange(64.0), [0.01])[0]
    assert sharp.valid == 0 and sharp.kl == pytest.approx(math.log(64)) and sharp.reward == pytest.approx(63)


def test_multipliers_give_the_means_that_were_asked_for() -> None:
    """One binary feature that holds in 3 of 10 samples: ``lambda = log(0.8 / 0.2) - log(0.3 / 0.7)``. Two features: means by enumeration."""
    binary = np.array([[1.0]] * 3 + [[0.0]] * 7)
    assert moment_multipliers(binary, [0.8])[0] == pytest.approx(math.log(4) - math.log(3 / 7))
    phi = np.random.default_rng(0).normal(size=(200, 2))
    lam = moment_multipliers(phi, [0.4, -0.3])
    w = np.exp(phi @ lam)
    assert (w @ phi / w.sum()).tolist() == pytest.approx([0.4, -0.3])
    with pytest.raises(
        ValueError, match=r"no weights on these 10 samples give the means 1\.2: their own are from 0 to 1"
    ):
        moment_multipliers(binary, [1.2])
    with pytest.raises(ValueError, match="1 targets"):
        moment_multipliers(phi, [0.4])
