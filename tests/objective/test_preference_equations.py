"""Losses of pairs: equations written out response by response, and golden numbers. Their optima: test_preference_optima.py."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rlkit.objective.anchors import Mixture
from rlkit.objective.full_vocab import Head, full_divergence
from rlkit.objective.preference import DPO, IPO, ORPO, RRPO, SPPO, TDPO, WPO, Anchored, Pairwise, SamPO, SimPO
from rlkit.types import Batch, New
from tests.objective.pairs import LENGTHS, Oracle, by_pairs, marked, ragged, two

BETA = 0.4

# -- equations, response by response -----------------------------------------------------------------------------------


def margin(lw: Tensor, rw: Tensor, ll: Tensor, rl: Tensor) -> Tensor:
    """beta h of DPO."""
    return BETA * ((lw.sum() - rw.sum()) - (ll.sum() - rl.sum()))


def through(score: Callable[[Tensor], Tensor]) -> Oracle:
    """f-DPO with the score as its paper (or its released code) writes it."""

    def cost(lw: Tensor, rw: Tensor, ll: Tensor, rl: Tensor) -> Tensor:
        return -logsigmoid(BETA * (score(lw.sum() - rw.sum()) - score(ll.sum() - rl.sum())))

    return cost


def ipo(lw: Tensor, rw: Tensor, ll: Tensor, rl: Tensor) -> Tensor:
    return ((lw - rw).mean() - (ll - rl).mean() - 1 / (2 * BETA)) ** 2


def odds_ratio(lw: Tensor, rw: Tensor, ll: Tensor, rl: Tensor) -> Tensor:
    p, q = lw.mean().exp(), ll.mean().exp()
    return -logsigmoid(((p / (1 - p)) / (q / (1 - q))).log())


def sppo(lw: Tensor, rw: Tensor, ll: Tensor, rl: Tensor) -> Tensor:
    return ((lw - rw).sum() - 3.0 * 0.5) ** 2 / 2 + ((ll - rl).sum() + 3.0 * 0.5) ** 2 / 2


CASES: dict[str, tuple[Any, Oracle]] = {
    "dpo": (DPO(beta=BETA), lambda *y: -logsigmoid(margin(*y))),
    "cdpo": (DPO(beta=BETA, flip=0.2), lambda *y: -0.8 * logsigmoid(margin(*y)) - 0.2 * logsigmoid(-margin(*y))),
    "robust": (
        DPO(beta=BETA, flip=0.2, unbiased=True),
        lambda *y: (-0.8 * logsigmoid(margin(*y)) + 0.2 * logsigmoid(-margin(*y))) / 0.6,
    ),
    "hinge": (DPO(beta=BETA, link="hinge"), lambda *y: torch.relu(1 - margin(*y))),
    "square": (DPO(beta=BETA, link="square"), lambda *y: (1 - margin(*y)) ** 2),
    "exponential": (DPO(beta=BETA, link="exponential"), lambda *y: torch.exp(-margin(*y))),
    "truncated_square": (DPO(beta=BETA, link="truncated_square"), lambda *y: torch.relu(1 - margin(*y)) ** 2),
    "savage": (DPO(beta=BETA, link="savage"), lambda *y: 1 / (1 + torch.exp(margin(*y))) ** 2),
    "discopop": (
        DPO(beta=BETA, link="discopop"),
        lambda *y: (
            -logsigmoid(margin(*y)) * (1 - torch.sigmoid(margin(*y) / 0.05))
            + torch.exp(-margin(*y)) * torch.sigmoid(margin(*y) / 0.05)
        ),
    ),
    "forward_kl": (DPO(beta=BETA, f="forward_kl"), through(lambda d: -torch.exp(-d))),
    "js": (DPO(beta=2 * BETA, f="js"), through(lambda d: torch.log(2 * d.exp() / (1 + d.exp())))),
    "alpha": (DPO(beta=BETA, f="alpha", parameter=0.7), through(lambda d: (1 - torch.exp(-0.3 * d)) / 0.3)),
    "hellinger": (DPO(beta=BETA, f="hellinger"), through(lambda d: 1 - torch.exp(-d / 2))),
    "jeffreys": (DPO(beta=BETA, f="jeffreys"), through(lambda d: d - torch.exp(-d))),
    "h-dpo": (
        DPO(beta=BETA, entropy=0.8),
        lambda lw, rw, ll, rl: -logsigmoid(BETA * (0.8 * (lw.sum() - ll.sum()) - (rw.sum() - rl.sum()))),
    ),
    "per token": (
        DPO(beta=BETA, over="mean"),
        lambda lw, rw, ll, rl: -logsigmoid(BETA * ((lw - rw).mean() - (ll - rl).mean())),
    ),
    "nca": (
        Anchored(beta=BETA, kind="nca"),
        lambda lw, rw, ll, rl: (
            -logsigmoid(d := BETA * (lw - rw).sum()) - 0.5 * logsigmoid(-d) - 0.5 * logsigmoid(-BETA * (ll - rl).sum())
        ),
    ),
    "bco": (
        Anchored(beta=BETA, kind="bco"),
        lambda lw, rw, ll, rl: -logsigmoid(BETA * (lw - rw).sum()) - logsigmoid(-BETA * (ll - rl).sum()),
    ),
    "apo_zero": (
        Anchored(beta=BETA, kind="apo_zero"),
        lambda lw, rw, ll, rl: 1 - torch.sigmoid(BETA * (lw - rw).sum()) + torch.sigmoid(BETA * (ll - rl).sum()),
    ),
    "apo_down": (
        Anchored(beta=BETA, kind="apo_down"),
        lambda lw, rw, ll, rl: torch.sigmoid(BETA * (lw - rw).sum()) + 1 - torch.sigmoid(margin(lw, rw, ll, rl)),
    ),
    "ipo": (IPO(tau=BETA), ipo),
    "ipo, sums": (IPO(tau=BETA, over="sum"), lambda *y: (margin(*y) / BETA - 1 / (2 * BETA)) ** 2),
    "simpo": (SimPO(), lambda lw, rw, ll, rl: -logsigmoid(2.0 * lw.mean() - 2.0 * ll.mean() - 1.0)),
    "simpo, flipped": (
        SimPO(flip=0.1),
        lambda lw, rw, ll, rl: (
            -0.9 * logsigmoid(2.0 * lw.mean() - 2.0 * ll.mean() - 1.0)
            - 0.1 * logsigmoid(2.0 * ll.mean() - 2.0 * lw.mean() - 1.0)
        ),
    ),
    "plad": (SimPO(link="hinge", beta=1, gamma=0), lambda lw, rw, ll, rl: torch.relu(1 - lw.mean() + ll.mean())),
    "orpo": (ORPO(), odds_ratio),
    "sppo": (SPPO(eta=3.0), sppo),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_equation(name: str) -> None:
    term, oracle = CASES[name]
    r = ragged(seed=len(name))
    got, want = term(r.new, r.b), by_pairs(r, oracle)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weight = torch.arange(1.0, len(want) + 1, dtype=torch.float64)  # each pair for itself
    torch.testing.assert_close(
        r.gradient((weight * got).sum()), r.gradient((weight * want).sum()), rtol=1e-8, atol=1e-11
    )


def test_a_reference_of_two_policies() -> None:
    """alpha-SPIN: the geometric mixture, whose normaliser cancels in the difference."""
    r = ragged(3)
    other = torch.randn(r.b.N, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) - 2
    b = r.b.with_logp(teacher=other)
    term = DPO(beta=BETA, anchor=Mixture(of=("ref", "teacher"), weights=(3.0, 1.0), mean="geometric"))
    mixed = [0.75 * x + 0.25 * y for x, y in zip(r.ref, r.of(other), strict=True)]
    want = torch.stack([-logsigmoid(margin(r.policy[i], mixed[i], r.policy[j], mixed[j])) for i, j in r.pairs])
    torch.testing.assert_close(term(r.new, b), want)
    assert term.needs == {"ref", "teacher"} and term.name == "DPO(ref+teacher)"


def test_sampo_compares_equally_many_tokens() -> None:
    r, term = ragged(4), SamPO(beta=BETA)
    draws = set()
    for seed in range(40):
        b = marked(term, r.b, seed)
        marks = r.of(b.marks["SamPO"])
        for i, j in r.pairs:
            assert marks[i].sum() == marks[j].sum() == min(LENGTHS[i], LENGTHS[j])
        draws.add(tuple(b.marks["SamPO"].tolist()))
        kept = [(x[m > 0], y[m > 0]) for x, y, m in zip(r.policy, r.ref, marks, strict=True)]
        want = torch.stack([-logsigmoid(margin(*kept[i], *kept[j])) for i, j in r.pairs])
        got = term(r.new, b)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(r.gradient(got.sum()), r.gradient(want.sum()))
    assert len(draws) > 20  # another draw in every step
    mean = torch.stack([torch.tensor(d) for d in draws]).mean(0)
    assert float(mean.min()) > 0  # and every token has its turn


def test_rrpo_compares_the_tokens_that_differ() -> None:
    r, term = ragged(5), RRPO(beta=BETA)
    assert r.b.ids is not None and r.b.action is not None
    tokens = [x.tolist() for x in r.of(r.b.ids[r.b.action])]
    b = marked(term, r.b)
    marks = r.of(b.marks["RRPO"])
    for i, j in r.pairs:
        same = [[t for t, m in zip(tokens[s], marks[s], strict=True) if not m] for s in (i, j)]
        assert same[0] == same[1]  # what is left out is common to both
        matcher = difflib.SequenceMatcher(None, tokens[i], tokens[j], autojunk=False)
        assert len(same[0]) == sum(block.size for block in matcher.get_matching_blocks())
    kept = [(x[m > 0], y[m > 0]) for x, y, m in zip(r.policy, r.ref, marks, strict=True)]
    want = torch.stack([-logsigmoid(margin(*kept[i], *kept[j])) for i, j in r.pairs])
    got = term(r.new, b)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(r.gradient(got.sum()), r.gradient(want.sum()))


def cvar(log_p: Tensor, log_q: Tensor, level: float) -> Tensor:
    """Rockafellar and Uryasev: ``min_t t + E[(Z - t)+] / (1 - level)``; one of the values of Z is the minimum."""
    z, q = log_q - log_p, log_q.exp()
    return torch.stack([t + (q * (z - t).clamp(min=0)).sum() / (1 - level) for t in z]).min()


def mean_risk(log_p: Tensor, log_q: Tensor, level: float) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum()


def entropic(log_p: Tensor, log_q: Tensor, level: float) -> Tensor:
    return (log_q.exp() * torch.exp(level * (log_q - log_p))).sum().log() / level


@pytest.mark.parametrize(
    ("risk", "level", "oracle"),
    [
        ("mean", 0.0, mean_risk),
        ("cvar", 0.0, mean_risk),
        ("cvar", 0.6, cvar),
        ("cvar", 0.95, cvar),
        ("entropic", 0.7, entropic),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_tdpo_and_its_risks(
    risk: Any, level: float, oracle: Callable[[Tensor, Tensor, float], Tensor], version: Any
) -> None:
    r, term = ragged(6), TDPO(beta=BETA, risk=risk, level=level, version=version, alpha=0.5)
    log_p, log_q = r.logits.log_softmax(-1), r.ref_logits.log_softmax(-1)
    per_token = torch.stack([oracle(p, q, level) for p, q in zip(log_p, log_q, strict=True)])
    risks = [x.sum() for x in r.of(per_token)]
    want = torch.stack(
        [
            -logsigmoid(
                margin(r.policy[i], r.ref[i], r.policy[j], r.ref[j])
                - BETA * (risks[j] - risks[i] if version == 1 else 0.5 * (risks[j] - risks[i].detach()))
            )
            for i, j in r.pairs
        ]
    )
    eye = torch.eye(r.logits.shape[1])
    found = full_divergence(Head(r.logits.float(), eye), Head(r.ref_logits.float(), eye), term.generator)
    got = term(New(r.new.logp, full={term.name: found}), r.b)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r.gradient(got.sum()), r.gradient(want.sum()), rtol=1e-4, atol=1e-6)


def test_wpo_weighs_pairs_by_how_likely_the_policy_would_sample_them() -> None:
    r, term = ragged(7), WPO(beta=BETA)
    pi = r.logits.softmax(-1)
    w = [(x - y).mean().exp().detach() for x, y in zip(r.policy, r.of((pi**2).sum(-1).log()), strict=True)]
    weight = torch.stack([(w[i] * w[j]).clamp(max=1) for i, j in r.pairs])
    want = weight * by_pairs(r, lambda *y: -logsigmoid(margin(*y)))
    assert 0 < float(weight.min()) < float(weight.max()) <= 1
    eye = torch.eye(r.logits.shape[1])
    found = full_divergence(Head(r.logits.float(), eye), Head(r.ref_logits.float(), eye), term.generator)
    got = term(New(r.new.logp, full={term.name: found}), r.b)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r.gradient(got.sum()), r.gradient(want.sum()), rtol=1e-4, atol=1e-6)


def test_sppo_counts_wins_within_the_group() -> None:
    new, b = two((-12, -13, -15, -14.5), (3, 4))
    three = b.replace(group=torch.tensor([0, 0]), reward=torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert SPPO(wins="order").win_rate(b).tolist() == [0.75, 0.25]  # a tie with itself, and one win or loss
    assert SPPO(wins="order").win_rate(three).tolist() == [0.5, 0.5]
    beats = 1 / (1 + math.exp(-1.0))
    assert SPPO(wins="sigmoid").win_rate(b).tolist() == pytest.approx([(0.5 + beats) / 2, (1.5 - beats) / 2])
    apart = b.replace(group=torch.tensor([0, 1]))
    assert SPPO(wins="order").win_rate(apart).tolist() == [0.5, 0.5]  # of different prompts
    zeros = torch.zeros(40, dtype=torch.long)
    many = Batch(seq=torch.arange(40), group=torch.randint(5, (40,)), source=zeros, reward=torch.randn(40))
    same = (many.group[:, None] == many.group[None]).float()
    table = ((many.reward[:, None] - many.reward[None]).sigmoid() * same).sum(1) / same.sum(1)
    torch.testing.assert_close(SPPO(wins="sigmoid").win_rate(many), table)
    want = 0.5 * (1 - 10 * 0.25) ** 2 + 0.5 * (-0.5 + 10 * 0.25) ** 2
    assert SPPO(eta=10.0, wins="order")(new, b).item() == pytest.approx(want)


# -- golden numbers ----------------------------------------------------------------------------------------------------

GOLDEN = [  # one pair: log-probs of -12 and -15, of the reference -13 and -14.5; 10 and 20 tokens; beta 0.1
    (DPO(), 0.620957),
    (DPO(flip=0.1), 0.635957),
    (DPO(flip=0.1, unbiased=True), 0.602207),
    (DPO(link="hinge"), 0.85),
    (IPO(over="sum"), 12.25),
    (IPO(), 23.765625),
    (DPO(link="exponential"), 0.860708),
    (DPO(link="truncated_square"), 0.7225),
    (DPO(link="savage"), 0.213971),
    (DPO(link="discopop"), 0.849338),
    (DPO(f="forward_kl"), 0.631154),
    (DPO(f="js", beta=0.2), 0.660652),
    (DPO(f="alpha", parameter=0.5), 0.627691),
    (DPO(entropy=0.9), 0.634946),
    (DPO(over="mean"), 0.686917),
    (Anchored(kind="nca"), 1.350825),
    (Anchored(kind="bco"), 1.312856),
    (Anchored(kind="apo_zero"), 0.962523),
    (Anchored(kind="apo_down"), 0.987549),
    (SPPO(eta=10.0), 36.25 / 2),  # the golden number is TRL's, without the half
]


@pytest.mark.parametrize(("term", "value"), GOLDEN, ids=lambda x: str(x))
def test_golden_values(term: Any, value: float) -> None:
    new, b = two((-12, -13, -15, -14.5), (10, 20))
    assert term(new, b).item() == pytest.approx(value, abs=1e-6)


def test_golden_values_with_distributions_and_phrases() -> None:
    new, b = two((-12, -13, -15, -14.5), (10, 20))
    risk = torch.cat([torch.full((10,), 0.4 / 10), torch.full((20,), 0.9 / 20)]).double()
    for version, value in ((1, 0.644397), (2, 0.632599)):
        term = TDPO(version=version)
        assert term(New(new.logp, full={term.name: risk}), b).item() == pytest.approx(value, abs=1e-6)
    kept = torch.tensor([1.0] + [0.0] * 9 + [1.0] + [0.0] * 19)  # D of these tokens: 0.1 and -0.025
    value = RRPO(beta=0.1 * 1.1 / 0.125)(new, b.replace(marks={"RRPO": kept})).item()
    assert value + 0.01 * (0.02 + 0.05 + 0.03) == pytest.approx(0.640659, abs=1e-6)  # u = 1.1


# -- numbers that are far away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", [c[0] for c in CASES.values()], ids=list(CASES))
@pytest.mark.parametrize("apart", [-300.0, 300.0])
def test_a_policy_far_away_has_a_finite_gradient(term: Any, apart: float) -> None:
    new, b = two((-400.0 + apart, -400.0, -400.0 - apart, -400.0), (10, 20))
    logp = new.logp.float().clamp(max=0.0).requires_grad_()
    value = term(New(logp), b.replace(logp={"ref": b.logp["ref"].float()}, reward=b.reward.float())).sum()
    (gradient,) = torch.autograd.grad(value, logp)
    assert bool(value.isfinite()) and bool(gradient.isfinite().all())


def test_a_score_beyond_the_bound_keeps_its_gradient() -> None:
    """The chosen response has become e^-30 times as likely: forward KL's slope is that at the bound, not 0 and not e^30."""
    new, b = two((-60.0, -30.0, -15.0, -15.0), (2, 2))
    logp = new.logp.requires_grad_()
    score = DPO(f="forward_kl", beta=1.0).score(New(logp), b)
    assert score.detach().tolist() == pytest.approx([-math.exp(10), -1.0])
    assert torch.autograd.grad(score[0], logp)[0][:2].tolist() == pytest.approx([math.exp(10)] * 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DPO(f="chi2"), "DPO: the slope of 'chi2' is bounded where the policy vanishes"),
        (lambda: DPO(f="tv"), "bounded where the policy vanishes"),
        (lambda: DPO(f="alpha", parameter=1.5), "bounded where the policy vanishes"),
        (lambda: DPO(f="skew_forward", parameter=0.5), "bounded where the policy vanishes"),
        (lambda: DPO(f="js", entropy=0.9), r"entropy \(H-DPO\) and f \(f-DPO\) are two objectives"),
        (
            lambda: DPO(f="js", anchor=Mixture(of=("ref", "old"), mean="geometric")),
            "a geometric mixture is not normalised",
        ),
        (lambda: DPO(flip=0.5), "DPO.flip is 0.5; it must be in"),
        (lambda: TDPO(risk="cvar", level=1.0), "TDPO.level is 1; it must be below 1 for cvar"),
        (lambda: TDPO(risk="entropic"), "TDPO.level is 0; it must be below 1 for cvar and positive for entropic"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_the_second_order_of_a_link() -> None:
    """``link''(0) / |link'(0)|`` of the docstring: how hard the reference holds at equal beta."""
    for link, want in {
        "logistic": 0.5,
        "savage": 0.5,
        "square": 1,
        "exponential": 1,
        "truncated_square": 1,
        "hinge": 0,
    }.items():
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(DPO(link=link).cost(x), x, create_graph=True)  # type: ignore[arg-type]
        second = torch.autograd.grad(slope, x)[0] if slope.requires_grad else torch.zeros(1)
        assert float(second) / abs(float(slope)) == pytest.approx(want), link


class Mine(Pairwise):
    """A loss of five lines: log-ratios per token."""

    def score(self, new: New, b: Batch) -> Tensor:
        return b.seq_mean(new.logp)


def test_a_loss_of_ones_own_is_a_score() -> None:
    r = ragged(8)
    want = by_pairs(r, lambda lw, rw, ll, rl: softplus(ll.mean() - lw.mean()))
    torch.testing.assert_close(Mine()(r.new, r.b), want)
