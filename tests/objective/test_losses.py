"""Losses and advantages: policy gradients by enumeration, closed forms by hand, invariance under cutting."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlkit.objective import Term, normalise
from rlkit.objective import losses as L
from rlkit.objective.advantages import GAE, RLOO, GroupMean, GroupNorm, LogMeanExp, Plain, ReinforcePlusPlus
from rlkit.objective.divergences import KL, Divergence, Mixture, generator
from rlkit.objective.penalties import DivergenceReward, KLReward, with_advantages
from rlkit.types import Batch, New
from tests.objective.test_divergences import CASES
from tests.objective.world import T, World


def advantages(w: World, b: Batch) -> Batch:
    b = b.replace(adv=w.reward.repeat_interleave(2))
    return b


@pytest.mark.parametrize(
    "term",
    [
        L.PPOClip(reduce="sum"),
        L.ISGradient(reduce="sum"),
        L.Reinforce(reduce="sum"),
        L.CISPO(reduce="sum"),
        L.SAPO(reduce="sum", tau_pos=2.0, tau_neg=2.0),
        L.DPPO(reduce="sum", quadratic=0.0),
        L.RPG(reduce="sum", beta=0.0),
    ],
    ids=lambda t: t.name,
)
def test_on_policy_every_surrogate_is_the_policy_gradient(term) -> None:
    w = World(1)
    b = advantages(w, w.batch(old=w.mu))
    got = w.gradient(w.expected(term, b))
    want = w.gradient(-(w.of_sequence(w.pi()).exp() * w.reward).sum())
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kl", ["forward_kl", "forward_ukl", "reverse_kl", "reverse_ukl"])
def test_rpg_without_clip_adds_the_kl_to_the_previous_policy(kl: str) -> None:
    """Off the sampling policy: E_old[w A score] plus beta times the KL's own gradient, token level."""
    w = World(2, off_policy=True)
    b = advantages(w, w.batch(old=w.mu))
    got = w.gradient(w.expected(L.RPG(kl=kl, beta=0.3, clip=False, reduce="sum"), b))
    surrogate = -(b.norm[0].repeat_interleave(2) * (w.at(w.pi()) - b.logp["old"]).exp() * b.adv).sum()
    p, q = w.pi().exp(), w.mu.exp()
    divergence = (q * (q / p).log()).sum(-1) if kl.startswith("forward") else (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(got, w.gradient(surrogate + 0.3 * w.per_prefix(divergence, w.mu)), rtol=1e-8, atol=1e-10)


def penalised(w: World, penalty: object) -> torch.Tensor:
    """The expected gradient that a penalty alone has through REINFORCE."""
    b = w.batch(old=w.mu)
    b = b.replace(reward=torch.zeros_like(b.reward))
    b = with_advantages(b, Plain(), (penalty,), (1.0,))
    return w.gradient(w.expected(L.Reinforce(reduce="sum"), b))


@pytest.mark.parametrize(
    "penalty", [KLReward(), KLReward(placement="advantage"), DivergenceReward(credit="sequence")], ids=str
)
def test_kl_with_credit_for_later_tokens_is_the_kl_of_responses(penalty: object) -> None:
    w = World(3)
    p = w.of_sequence(w.pi())
    want = w.gradient((p.exp() * (p - w.of_sequence(w.anchor))).sum())
    torch.testing.assert_close(penalised(w, penalty), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("key", CASES, ids=str)
@pytest.mark.parametrize("credit", ["token", "sequence"])
def test_divergences_in_the_advantage(key: tuple[str, float | None], credit: str) -> None:
    """``f'(u)`` is the right coefficient; with the values of later tokens it is the gradient of ``E[sum_t D_t]``."""
    w, f = World(4), generator(*key)
    got = penalised(w, DivergenceReward(f=key[0], parameter=key[1], credit=credit))
    pi = w.pi()
    per_prefix = (pi.exp() * f.value(pi - w.anchor)).sum(-1)
    rows, _ = w._tokens()
    frozen = w.per_prefix(per_prefix, pi)
    whole = (w.of_sequence(pi).exp() * per_prefix[rows].view(-1, T).sum(1)).sum()
    torch.testing.assert_close(got, w.gradient(frozen if credit == "token" else whole), rtol=1e-8, atol=1e-10)
    if key[0] == "reverse_kl" and credit == "token":
        torch.testing.assert_close(
            penalised(w, KLReward(placement="advantage", credit="token")), got, rtol=1e-8, atol=1e-10
        )


def test_anchors_that_are_mixtures() -> None:
    """Arithmetic: any divergence to the mean. Geometric: the reverse KL to the normalised geometric mean, constants aside."""
    w = World(5, off_policy=True)
    b = w.batch(old=w.anchor.roll(1, 0))
    pi, a, c = w.pi(), w.anchor, w.anchor.roll(1, 0)
    middle = (0.25 * a.exp() + 0.75 * c.exp()).log()
    anchor = Mixture(of=("ref", "old"), weights=(1.0, 3.0))
    got = w.gradient(w.expected(Divergence(f="forward_kl", anchor=anchor, reduce="sum"), b))
    torch.testing.assert_close(
        got, w.gradient(w.per_prefix((middle.exp() * (middle - w.pi())).sum(-1), w.mu)), rtol=1e-8, atol=1e-10
    )
    middle = (0.25 * a + 0.75 * c).log_softmax(-1)
    anchor = Mixture(of=("ref", "old"), weights=(1.0, 3.0), mean="geometric")
    want = w.gradient(w.per_prefix((pi.exp() * (pi - middle)).sum(-1), w.mu))
    for term in (
        Divergence(anchor=anchor, reduce="sum"),
        KL(estimator="k2", importance="token", anchor=anchor, reduce="sum"),
    ):
        torch.testing.assert_close(w.gradient(w.expected(term, b)), want, rtol=1e-8, atol=1e-10)
    for bad in (
        lambda: Divergence(f="js", anchor=anchor),
        lambda: KL(anchor=anchor),
        lambda: Mixture(of=("ref",)),
        lambda: Mixture(of=("ref", "old"), weights=(1.0, -1.0)),
    ):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_inexact_estimators_are_refused_in_the_reward(estimator: str) -> None:
    with pytest.raises(ValueError, match="k1"):
        KLReward(estimator=estimator)


def tokens(new: list[float], old: list[float], adv: list[float]) -> tuple[New, Batch]:
    n = len(new)
    b = Batch(
        seq=torch.arange(n),
        group=torch.zeros(n, dtype=torch.long),
        source=torch.zeros(n, dtype=torch.long),
        reward=torch.zeros(n),
        logp={"behav": torch.tensor(old), "old": torch.tensor(old)},
        adv=torch.tensor(adv),
    )
    return New(torch.tensor(new, requires_grad=True)), b


def gradients(term, ratios: list[float], adv: list[float]) -> list[float]:
    new, b = tokens([float(torch.tensor(r).log()) for r in ratios], [0.0] * len(ratios), adv)
    return torch.autograd.grad(term(new, b).sum(), new.logp)[0].tolist()


def test_which_tokens_clipping_silences() -> None:
    ratios, adv = [1.5, 0.5, 1.5, 0.5, 11.0], [1.0, 1.0, -1.0, -1.0, -1.0]
    assert gradients(L.PPOClip(), ratios, adv) == pytest.approx([0, -0.5, 1.5, 0, 11])
    assert gradients(L.PPOClip(dual_clip=3.0), ratios, adv) == pytest.approx([0, -0.5, 1.5, 0, 0])
    assert gradients(L.CISPO(eps_max=2.0), ratios, adv) == pytest.approx([-1.5, -0.5, 1.5, 0.5, 2])
    assert gradients(L.RPG(beta=0.0), ratios, adv) == pytest.approx([0, -0.5, 1.5, 0, 0])


def test_gspo_uses_the_ratio_of_the_whole_response() -> None:
    new = New(torch.tensor([0.1, 0.3, 0.2], requires_grad=True))
    b = Batch(
        seq=torch.tensor([0, 0, 1]),
        group=torch.zeros(2, dtype=torch.long),
        source=torch.zeros(2, dtype=torch.long),
        reward=torch.zeros(2),
        logp={"old": torch.zeros(3)},
        adv=torch.ones(3),
    )
    cost = L.GSPO(eps_low=0.5, eps_high=0.5)(new, b)
    torch.testing.assert_close(cost, -torch.tensor([0.2, 0.2, 0.2]).exp())


def groups(rewards: list[float], group: list[int]) -> Batch:
    S = len(rewards)
    return Batch(
        seq=torch.arange(S),
        group=torch.tensor(group),
        source=torch.zeros(S, dtype=torch.long),
        reward=torch.tensor(rewards),
    )


def test_advantages_by_hand() -> None:
    b = groups([1.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 1, 1])
    torch.testing.assert_close(GroupMean()(b), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0, 0]))
    std = torch.tensor([1.0, 0, 0]).std()
    torch.testing.assert_close(
        GroupNorm()(b), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0, 0]) / (torch.tensor([std, std, std, 1, 1]) + 1e-6)
    )
    torch.testing.assert_close(RLOO()(b), torch.tensor([1, -0.5, -0.5, 0, 0]))
    a = ReinforcePlusPlus()(b)
    assert abs(float(a.mean())) < 1e-6 and float(a.std(correction=0)) == pytest.approx(1)
    soft = LogMeanExp(tau=0.5)(groups([1.0, 0.0, 2.0], [0, 0, 0]))
    others = torch.tensor([[0.0, 2.0], [1.0, 2.0], [1.0, 0.0]])
    torch.testing.assert_close(soft, torch.tensor([1.0, 0.0, 2.0]) - 0.5 * (others / 0.5).exp().mean(1).log())


def test_gae_against_the_double_sum() -> None:
    torch.manual_seed(0)
    T, gamma, lam = 5, 0.9, 0.8
    value = torch.randn(T)
    b = Batch(
        seq=torch.zeros(T, dtype=torch.long),
        group=torch.zeros(1, dtype=torch.long),
        source=torch.zeros(1, dtype=torch.long),
        reward=torch.tensor([2.0]),
        value=value,
    )
    r = [0.0] * (T - 1) + [2.0]
    delta = [r[t] + gamma * (float(value[t + 1]) if t + 1 < T else 0) - float(value[t]) for t in range(T)]
    want = torch.tensor([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)])
    found = GAE(gamma=gamma, lam=lam, whiten=False)(b)
    torch.testing.assert_close(found.adv, want)
    torch.testing.assert_close(found.returns, want + value)
    assert b.returns is None and b.adv is None  # an advantage writes nothing into the batch


@pytest.mark.parametrize(
    ("reduce", "want"),
    [
        ("token", (1 + 2 + 3 + 4) / 4),
        ("seq", ((1 + 2 + 3) / 3 + 4) / 2),
        ("sum", (6 + 4) / 2),
        ("const", (6 + 4) / 2 / 10),
        ("prompt", (1 + 2 + 3 + 4) / 4),
    ],
)
def test_reductions(reduce: str, want: float) -> None:
    b = Batch(
        seq=torch.tensor([0, 0, 0, 1]),
        group=torch.zeros(2, dtype=torch.long),
        source=torch.zeros(2, dtype=torch.long),
        reward=torch.zeros(2),
    )
    term = dataclasses.replace(L.NLL(), reduce=reduce, const=10.0)
    b = b.replace(norm=normalise((term,), b))
    from rlkit.objective import loss

    total, _ = loss((term,), New(-torch.tensor([1.0, 2, 3, 4])), b, (1.0,))
    assert float(total) == pytest.approx(want)


@pytest.mark.parametrize("r", [-30.0, -19.0, 19.0, 30.0, 80.0])
@pytest.mark.parametrize(
    "term",
    [L.ISGradient(), L.PPOClip(), L.ClipCov(), L.KLCov(), L.DPPO(quadratic=0.0), L.DPPO(), L.GSPO(), L.RPG(clip=False)],
    ids=str,
)
def test_a_token_far_from_its_sampling_policy_keeps_its_gradient(term: Term, r: float) -> None:
    """In float32. A bad token that has become e^30 times as likely is what has to be undone; only a term's own clip may silence it."""
    old = torch.full((2,), -100.0)
    b = Batch(
        seq=torch.arange(2),
        group=torch.zeros(2, dtype=torch.long),
        source=torch.zeros(2, dtype=torch.long),
        reward=torch.zeros(2),
        logp={"behav": old, "old": old},
        adv=torch.tensor([1.0, -1.0]),
        marks={"ClipCov": torch.zeros(2), "KLCov": torch.ones(2)},
    )
    logp = (old + r).requires_grad_()
    cost = term(New(logp), b)
    (grad,) = torch.autograd.grad(cost.sum(), logp)
    assert bool(cost.isfinite().all()) and bool(grad.isfinite().all())
    clipped = not isinstance(term, L.ISGradient | L.KLCov | L.RPG | L.DPPO)
    if r > 0:  # the better the worse: up for the good one, if it is not clipped, down for the bad one always
        assert float(grad[1]) > 0 and (clipped or isinstance(term, L.DPPO) or float(grad[0]) < 0)
    if r < 0 and not clipped:
        assert float(grad[0]) != 0
