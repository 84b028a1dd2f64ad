"""Losses of labelled responses: equations written out response by response, golden numbers, and where KLDO leads."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlkit.objective.labelled import KLDO, KTO
from rlkit.objective.world import World
from rlkit.types import SOURCES, Batch, New
from tests.objective.pairs import Ragged, marked, ragged

BETA = 0.4


def labelled(seed: int) -> Ragged:
    r = ragged(seed)
    good = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    mismatched = torch.randn(r.b.S, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    b = r.b.replace(
        pairs=None, reward=good, source=torch.full((r.b.S,), SOURCES.index("labelled")), cols={"mismatched": mismatched}
    )
    return dataclasses.replace(r, b=b)


@pytest.mark.parametrize("variant", ["kto", "s"])
@pytest.mark.parametrize("baseline", ["mismatched", "zero"])
def test_kto(variant: Any, baseline: Any) -> None:
    """Value minus utility: lambda - v(x, y), with the loss aversion of each class."""
    r = labelled(1)
    term = KTO(beta=BETA, desirable=1.3, undesirable=0.7, variant=variant, baseline=baseline)
    z0 = max(0.0, float(r.b.cols["mismatched"].mean())) if baseline == "mismatched" else 0.0
    assert baseline == "zero" or z0 > 0
    want = []
    for policy, ref, label in zip(r.policy, r.ref, r.b.reward.tolist(), strict=True):
        d = (policy - ref).sum()
        drift = -z0 if variant == "kto" else z0 * torch.sign(d.detach())
        v = torch.sigmoid(BETA * (d + drift))
        want.append(1.3 * (1 - v) if label else 0.7 * (1 - torch.sigmoid(-BETA * (d + drift))))
    got = term(r.new, marked(term, r.b))
    torch.testing.assert_close(got, torch.stack(want))
    torch.testing.assert_close(r.gradient(got.sum()), r.gradient(torch.stack(want).sum()))


def test_the_baseline_of_kto_is_never_below_zero() -> None:
    r, term = labelled(2), KTO()
    b = r.b.replace(cols={"mismatched": r.b.cols["mismatched"] - 9})
    assert not term.mark(b, torch.Generator()).any()


def test_kldo_has_the_gradient_of_its_bound() -> None:
    """``-mean r+ + log mean e^(r-)`` over the whole batch; what is logged shows 1 in place of the logarithm."""
    r, term = labelled(3), KLDO(beta=BETA)
    reward = [BETA * (p - q).sum() for p, q in zip(r.policy, r.ref, strict=True)]
    good = torch.stack([x for x, label in zip(reward, r.b.reward, strict=True) if label])
    bad = torch.stack([x for x, label in zip(reward, r.b.reward, strict=True) if not label])
    bound = -good.mean() + bad.exp().mean().log()
    got = term(r.new, marked(term, r.b)).mean()
    torch.testing.assert_close(r.gradient(got), r.gradient(bound), rtol=1e-5, atol=1e-8)
    assert float(got) == pytest.approx(float(-good.mean()) + 1, rel=1e-5)


def of_sums(moved: list[float]) -> tuple[New, Batch]:
    """Responses of one token each with these log-ratios; the first half is good."""
    n = len(moved)
    ref = torch.full((n,), -5.0, dtype=torch.float64)
    b = Batch(
        seq=torch.arange(n),
        group=torch.arange(n),
        source=torch.full((n,), SOURCES.index("labelled")),
        reward=torch.tensor([1.0] * (n // 2) + [0.0] * (n - n // 2), dtype=torch.float64),
        logp={"ref": ref, "old": ref + torch.tensor(moved, dtype=torch.float64)},
    )
    return New(b.logp["old"]), b


@pytest.mark.parametrize(("variant", "values"), [("kto", (0.485004, 0.477515)), ("s", (0.465057, 0.477515))])
def test_golden_values_of_kto(variant: Any, values: tuple[float, float]) -> None:
    new, b = of_sums([1.0, -0.5])
    b = b.replace(cols={"mismatched": torch.full((2,), 0.4, dtype=torch.float64)})
    term = KTO(variant=variant)
    assert term(new, marked(term, b)).tolist() == pytest.approx(values, abs=1e-6)


def test_the_golden_value_of_kldo() -> None:
    new, b = of_sums([3.0, -2.0, 5.0, 1.0])  # r = 0.3, -0.2; 0.5, 0.1
    term = KLDO()
    weight = term.mark(b, torch.Generator())
    log_mean = float((4 / 2 / weight[2]).log())  # the bad ones' weight is S / (their number * M)
    assert float(term(new, marked(term, b)).mean()) - 1 + log_mean == pytest.approx(0.269868, abs=1e-6)


@pytest.mark.parametrize("term", [KTO(), KTO(variant="s"), KLDO()], ids=str)
@pytest.mark.parametrize("apart", [-900.0, 900.0])
def test_a_policy_far_away_has_a_finite_gradient(term: Any, apart: float) -> None:
    new, b = of_sums([apart, -apart, apart, -apart])
    b = b.replace(cols={"mismatched": torch.full((4,), abs(apart))}).map(
        lambda t: t.float() if t.is_floating_point() else t
    )
    logp = new.logp.float().requires_grad_()
    value = term(New(logp), marked(term, b)).sum()
    (gradient,) = torch.autograd.grad(value, logp)
    assert bool(value.isfinite()) and bool(gradient.isfinite().all())


def test_kldo_leads_to_the_ratio_of_good_and_bad() -> None:
    """``pi ~ ref (p_good / p_bad)^(1 / beta)``: with Bradley-Terry labels ``P(good) = sigmoid(r)`` the tilted reference."""
    w, beta = World("from the reference"), 1.0
    share = w.whole(w.ref).exp()
    count = [(1000 * share * torch.sigmoid(sign * w.reward)).round().long().clamp(min=1) for sign in (1, -1)]
    rows = torch.cat([torch.repeat_interleave(torch.arange(len(share)), n) for n in count])
    good = torch.cat([torch.full((int(n.sum()),), 1.0 - k, dtype=torch.float64) for k, n in enumerate(count)])
    tokens = torch.cat([(w.seq == s).nonzero()[:, 0] for s in rows])
    seq = torch.repeat_interleave(torch.arange(len(rows)), w.length[rows])
    term, ref = KLDO(beta=beta), w.at(w.ref)[tokens]
    b = Batch(seq, torch.zeros_like(rows), torch.full_like(rows, SOURCES.index("labelled")), good, logp={"ref": ref})
    logits = w.ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 150)
    for _ in range(150):
        logp = w.at(logits.log_softmax(-1))[tokens]
        optimizer.zero_grad()
        term(New(logp), marked(term, b.with_logp(old=logp.detach()))).mean().backward()
        optimizer.step()
        schedule.step()
    want = (w.whole(w.ref) + (count[0] / count[1]).log() / beta).softmax(0)
    got = w.whole(logits.detach().log_softmax(-1)).exp()
    assert float(0.5 * (got - want).abs().sum()) < 1e-2
    tilted = (w.whole(w.ref) + w.reward / beta).softmax(0)
    assert float(0.5 * (got - tilted).abs().sum()) < 2e-2  # counts are whole numbers


def test_apo_zero_is_kto_without_a_baseline() -> None:
    r, term = labelled(4), KTO(beta=BETA, baseline="zero")
    d = torch.stack([BETA * (p - q).sum() for p, q in zip(r.policy, r.ref, strict=True)])
    want = torch.where(r.b.reward > 0.5, 1 - logsigmoid(d).exp(), logsigmoid(d).exp())
    torch.testing.assert_close(term(r.new, marked(term, r.b)), want)
    assert term.needs == {"ref"} and KTO().needs == {"ref", "mismatched"}


def test_what_is_good_is_said_by_the_score() -> None:
    b = of_sums([0.0, 0.0, 0.0])[1].replace(reward=torch.tensor([0.2, 0.7, -1.0]))
    assert KTO(above=0.1).good(b).tolist() == [True, True, False] and KTO().good(b).tolist() == [False, True, False]


def test_kto_s_weakens_what_has_drifted() -> None:
    """A good response that has risen far: its gradient falls with z0 under KTO-S and rises under KTO; of a bad one that fell, under both."""
    new, b = of_sums([20.0, -20.0])
    size: dict[tuple[str, float], list[float]] = {}
    for variant in ("kto", "s"):
        term = KTO(variant=variant)  # type: ignore[arg-type]
        for z0 in (0.0, 5.0):
            logp = new.logp.detach().requires_grad_()
            at = b.replace(cols={"mismatched": torch.full((2,), z0, dtype=torch.float64)})
            (gradient,) = torch.autograd.grad(term(New(logp), marked(term, at)).sum(), logp)
            size[variant, z0] = gradient.abs().tolist()
    assert size["kto", 5.0][0] > size["kto", 0.0][0] == size["s", 0.0][0] > size["s", 5.0][0]
    assert size["kto", 5.0][1] < size["kto", 0.0][1] and size["s", 5.0][1] < size["s", 0.0][1]


@pytest.mark.parametrize(
    ("desirable", "good", "bad", "told"),
    [
        (1.0, 50, 50, None),
        (1.33, 50, 50, None),
        (4.0, 20, 80, None),
        (1.0, 20, 80, "20 responses are good and 80 bad, .* is 0.25; .* `desirable` from 4.00 to 5.33"),
        (1.0, 80, 20, "is 4.00; .* `desirable` from 0.25 to 0.33"),
    ],
)
def test_kto_says_when_good_and_bad_responses_weigh_otherwise_than_the_paper_advises(
    desirable: float, good: int, bad: int, told: str | None
) -> None:
    said = KTO(desirable=desirable).advice(good, bad)
    assert said is None if told is None else re.search(told, said or "")
