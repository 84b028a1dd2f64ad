"""Training to the optimum of ``max E[r] - beta D`` on a policy small enough to know it: the terms, the loss and plain Adam, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.objective import loss
from rlkit.objective.advantages import Plain
from rlkit.objective.divergences import KL, Divergence
from rlkit.objective.full_vocab import FullDivergence
from rlkit.objective.losses import PMD, PPOClip, Reinforce
from rlkit.objective.penalties import DivergenceReward, KLReward, with_advantages
from rlkit.types import Batch, New
from tests.objective.test_divergences import CASES, P

pytestmark = pytest.mark.slow

V, BETA = 6, 0.3
G = torch.Generator().manual_seed(1)
REF = torch.randn(V, generator=G, dtype=torch.float64).log_softmax(0)
R = torch.tensor([1.0, 0.0, 0.2, 0.7, 0.1, 0.4], dtype=torch.float64)


def train(terms: list[Any], penalties: list[Any] = [], mu: Tensor | None = None, steps: int = 800) -> Tensor:  # noqa: B006
    """The policy after Adam on the exact expected loss; ``mu`` is the sampling policy, the current one unless given."""
    logits = REF.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        pi = logits.log_softmax(0)
        behav = pi.detach() if mu is None else mu
        b = Batch(
            seq=torch.arange(V),
            group=torch.zeros(V, dtype=torch.long),
            source=torch.zeros(V, dtype=torch.long),
            reward=R,
            logp={"behav": behav, "old": behav, "ref": REF},
        )
        b = with_advantages(b, Plain(), penalties, [BETA] * len(penalties))
        b = b.replace(adv=b.adv - (behav.exp() * b.adv).sum())
        b = b.replace(norm=behav.exp().expand(len(terms), V))
        full = {
            t.name: (pi.exp() * t.generator.value(pi - REF)).sum().expand(V)
            for t in terms
            if isinstance(t, FullDivergence)
        }
        value, _ = loss(terms, New(pi, full=full), b, [t.coef for t in terms])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(0)


def optimum(divergence: Callable[[Tensor, Tensor], Tensor], beta: float = BETA) -> Tensor:
    """By a convex optimiser on the simplex, from the textbook definition."""
    logits = REF.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits], lr=1, max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        p = logits.softmax(0)
        value = -(p * R).sum() + beta * divergence(p, REF.exp())
        value.backward()
        return value

    solver.step(closure)
    return logits.detach().softmax(0)


def normalised(u: Callable[[float], Tensor], low: float, high: float) -> Tensor:
    """``ref * u(lam)`` for the ``lam`` at which it sums to 1, by bisection (``u`` falls with ``lam``)."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((REF.exp() * u(middle)).sum()) > 1 else (low, middle)
    return REF.exp() * u(low)


def tv(p: Tensor, q: Tensor) -> float:
    return float(0.5 * (p - q).abs().sum())


CLOSED = {
    "reverse_kl": lambda: (REF + R / BETA).softmax(0),
    "forward_kl": lambda: normalised(lambda lam: BETA / (lam - R), float(R.max()) + 1e-9, 100.0),
    "chi2": lambda: normalised(lambda lam: (1 + (R - lam) / (2 * BETA)).clamp(min=0), -10.0, 10.0),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_the_optimum(name: str) -> None:
    assert tv(optimum(P[name]), CLOSED[name]()) < 1e-4


@pytest.mark.parametrize("key", [c for c in CASES if c[0] != "tv"], ids=str)
def test_every_divergence_trains_to_its_own_optimum(key: tuple[str, float | None]) -> None:
    got = train([Reinforce(reduce="sum"), Divergence(f=key[0], parameter=key[1], coef=BETA, reduce="sum")])
    assert tv(got, optimum(P[key[0] if key[1] is None else key])) < 1e-2


@pytest.mark.parametrize(
    ("regularizer", "penalty", "target"),
    [
        (KL(estimator="k2", coef=BETA, reduce="sum"), None, "reverse_kl"),
        (KL(estimator="k3+", coef=BETA, reduce="sum"), None, "reverse_kl"),
        (KL(estimator="k3", importance="token", coef=BETA, reduce="sum"), None, "reverse_kl"),
        (FullDivergence(f="js", coef=BETA, reduce="sum"), None, "js"),
        (FullDivergence(f="forward_kl", coef=BETA, reduce="sum"), None, "forward_kl"),
        (None, KLReward(), "reverse_kl"),
        (None, DivergenceReward(f="hellinger"), "hellinger"),
        (None, DivergenceReward(f="chi2", credit="sequence"), "chi2"),
    ],
    ids=str,
)
def test_placements_and_estimators_train_to_the_optimum(regularizer: Any, penalty: Any, target: str) -> None:
    got = train([Reinforce(reduce="sum"), *([regularizer] if regularizer else [])], [penalty] if penalty else [])
    assert tv(got, optimum(P[target])) < 1e-2


def test_grpos_k3_trains_to_the_forward_optimum_and_not_to_the_reverse_one() -> None:
    got = train([PPOClip(reduce="sum"), KL(estimator="k3", coef=BETA, reduce="sum")])
    assert tv(got, CLOSED["forward_kl"]()) < 1e-2 < 2e-2 < tv(got, CLOSED["reverse_kl"]())


def test_pmd_mean_trains_to_its_lambert_w_fixed_point() -> None:
    """On fixed samples of the old policy: ``log u + lam u = A / tau`` with ``sum old u = 1``."""
    tau, old = 0.3, REF
    a = (R - (old.exp() * R).sum()) / tau
    got = train([PMD(tau=tau, reduce="sum")], mu=old, steps=2000)

    def u(lam: float) -> Tensor:
        x = torch.ones(V, dtype=torch.float64)
        for _ in range(200):  # Newton on the logarithm: g(log x) = log x + lam x - a, increasing for lam > 0
            y = x.log()
            y = y - (y + lam * x - a) / (1 + lam * x)
            x = y.exp()
        return x

    want = normalised(u, 0.0, 10.0)
    assert float(want.sum()) == pytest.approx(1) and tv(got, want) < 1e-2
    assert tv(got, (REF + R / tau).softmax(0)) > 1e-2  # it is not the exponential tilt
