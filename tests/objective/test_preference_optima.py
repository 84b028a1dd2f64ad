"""Where losses of pairs lead, in a world small enough to enumerate all comparisons: known optima, within 1e-2 of total variation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.objective.comparisons import Comparisons
from rlkit.objective.divergences import TABLE, generator
from rlkit.objective.preference import DPO, IPO, SPPO, SimPO
from rlkit.objective.world import World
from rlkit.types import Batch, New

pytestmark = pytest.mark.slow


def comparisons(flipped: float = 0.0) -> Comparisons:
    """All pairs of the responses of a small world, drawn from its reference and labelled by a Bradley-Terry reward."""
    return Comparisons(World("from the reference"), flipped=flipped)


def pairs_of(c: Comparisons) -> tuple[Tensor, Tensor]:
    assert c.batch.pairs is not None
    return c.batch.pairs[:, 0], c.batch.pairs[:, 1]


def lead(c: Comparisons, term: Any) -> Tensor:
    found = c.lead(term)
    assert found is not None
    return found


def tv(log_p: Tensor, log_q: Tensor) -> float:
    return float(0.5 * (log_p.exp() - log_q.exp()).abs().sum())


def tilted(log_p: Tensor) -> Tensor:
    return log_p - log_p.logsumexp(0)


def normalised(log_u: Callable[[float], Tensor], log_q: Tensor, low: float, high: float) -> Tensor:
    """``q u(lam)`` for the ``lam`` at which it sums to 1, by bisection (``u`` falls with ``lam``)."""
    for _ in range(100):
        lam = (low + high) / 2
        low, high = (lam, high) if float((log_q + log_u(lam)).logsumexp(0)) > 0 else (low, lam)
    return log_q + log_u(low)


@pytest.mark.parametrize("link", ["logistic", "savage", "exponential"])
def test_a_proper_link_finds_the_tilted_reference(link: Any) -> None:
    c = comparisons()
    beta = 0.5 if link == "exponential" else 1.0  # its Bradley-Terry margin is half of the reward's
    assert tv(lead(c, DPO(beta=beta, link=link)), tilted(c.mu + c.reward)) < 1e-2


def test_robust_dpo_sees_through_flipped_labels_and_plain_dpo_does_not() -> None:
    c = comparisons(flipped=0.2)
    want = tilted(c.mu + c.reward)
    assert tv(lead(c, DPO(beta=1.0, flip=0.2, unbiased=True)), want) < 1e-2 < 5e-2 < tv(lead(c, DPO(beta=1.0)), want)


def test_conservative_dpo_holds_back_as_if_labels_were_flipped() -> None:
    """The optimum of cDPO on right labels is that of DPO on labels of which the share is wrong: it is not the tilted reference."""
    assert tv(lead(comparisons(), DPO(beta=1.0, flip=0.2)), lead(comparisons(flipped=0.2), DPO(beta=1.0))) < 1e-4


F_DPO = [
    ("reverse_kl", None),
    ("forward_kl", None),
    ("js", None),
    ("jeffreys", None),
    ("hellinger", None),
    ("reverse_chi2", None),
    ("alpha", 0.5),
    ("alpha", -0.5),
    ("tsallis", 0.5),
    ("generalised_js", 0.3),
    ("skew_reverse", 0.2),
]


@pytest.mark.parametrize(("f", "parameter"), F_DPO, ids=str)
def test_f_dpo_finds_the_optimum_under_its_divergence(f: str, parameter: float | None) -> None:
    """Where ``E r - beta D_f(pi‖ref)`` is largest, ``beta f'(u) = r - lam``: u by bisection from the slope, lam from the sum."""
    c, beta, slope = comparisons(), 1.0, generator(f, parameter).slope

    def log_u(lam: float) -> Tensor:
        low, high = torch.full_like(c.reward, -25.0), torch.full_like(c.reward, 25.0)
        for _ in range(100):
            a = (low + high) / 2
            below = beta * slope(a) < c.reward - lam
            low, high = torch.where(below, a, low), torch.where(below, high, a)
        return low

    want = normalised(log_u, c.mu, -20.0, 20.0)
    assert float(want.logsumexp(0)) == pytest.approx(0, abs=1e-9)
    assert tv(lead(c, DPO(beta=beta, f=f, parameter=parameter)), want) < 1e-2


def test_every_divergence_of_the_table_is_either_of_these_or_refused() -> None:
    for f in TABLE:
        if f in dict(F_DPO) or f.endswith("_ukl"):
            DPO(f=f)
        else:
            with pytest.raises(ValueError, match="bounded"):
                DPO(f=f)


@pytest.mark.parametrize("alpha", [0.7, 1.4])
def test_h_dpo_finds_its_own_optimum(alpha: float) -> None:
    c, beta = comparisons(), 1.0
    assert tv(lead(c, DPO(beta=beta, entropy=alpha)), tilted(c.mu / alpha + c.reward / (alpha * beta))) < 1e-2


def test_ipo_finds_the_reference_tilted_by_win_rates() -> None:
    c, tau = comparisons(), 0.5
    got = lead(c, IPO(tau=tau, over="sum"))
    assert tv(got, tilted(c.mu + c.wins() / tau)) < 1e-2
    assert tv(lead(c, DPO(beta=2 * tau, link="square")), got) < 1e-4  # GPO's name for it
    assert tv(got, tilted(c.mu + c.reward / tau)) > 5e-2


def test_simpo_without_gamma_finds_rewards_per_token() -> None:
    """``beta log pi / T = r + const``: no trace of the reference is left."""
    c, beta = comparisons(), 2.0
    length = c.w.length.double()
    want = normalised(lambda lam: length * (c.reward - lam) / beta - c.mu, c.mu, -20.0, 20.0)
    assert tv(lead(c, SimPO(beta=beta, gamma=0.0)), want) < 1e-2


def test_sppo_solves_its_regression() -> None:
    """``D - eta (P - 1/2) + lam u = 0``, u = pi / mu: least squares under the sum of probabilities, not the tilted policy that it is read as."""
    c, eta = comparisons(), 1.5
    better, worse = pairs_of(c)
    c.weight = (c.mu[better] + c.mu[worse]).exp()  # both halves from mu, whichever won
    c.batch = c.batch.replace(reward=c.reward)

    class Known(SPPO):
        def win_rate(self, b: Batch) -> Tensor:
            return c.wins()

    got = lead(c, Known(eta=eta, wins="sigmoid")) - c.mu
    residual = (1 - c.mu.exp()) * (got - eta * (c.wins() - 0.5))  # no response is paired with itself
    lam = -residual / got.exp()
    torch.testing.assert_close(lam, lam[0].expand_as(lam), rtol=1e-3, atol=1e-4)


def test_on_policy_pairs_stand_still_at_the_tilted_policy() -> None:
    """Online DPO: at ``ref exp(r / beta)`` the expected gradient is zero, whoever samples the pairs; at the reference it is not."""
    c, beta = comparisons(), 0.7
    for policy, still in ((tilted(c.mu + c.reward / beta), True), (c.mu, False)):
        logits = c.w.ref.clone()
        for prefix, i in c.w.row.items():
            for token in range(3):
                inside = [k for k, y in enumerate(c.w.responses) if y[: len(prefix) + 1] == (*prefix, token)]
                logits[i, token] = policy[inside].logsumexp(0)
        logits = logits.log_softmax(-1).requires_grad_()
        own = c.w.whole(logits).detach()
        torch.testing.assert_close(own, policy)
        better, worse = pairs_of(c)
        weight = (own[better] + own[worse]).exp() * torch.sigmoid(c.reward[better] - c.reward[worse])
        cost = (weight * DPO(beta=beta)(New(c.w.at(logits.log_softmax(-1))), c.batch)).sum()
        (gradient,) = torch.autograd.grad(cost, logits)
        assert (float(gradient.norm()) < 1e-6) == still
