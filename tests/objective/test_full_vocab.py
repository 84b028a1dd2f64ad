"""Whole-vocabulary divergences against plain autograd on full logits; the sequence form against enumeration."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rlkit.errors import ModelError
from rlkit.objective import loss
from rlkit.objective.divergences import PARAMETRIC, TABLE, generator
from rlkit.objective.full_vocab import (
    FullDivergence,
    Head,
    Mixed,
    TopK,
    Wasserstein,
    full_divergence,
    told_apart,
)
from rlkit.types import New
from tests.objective.gradients import assert_same_gradients
from tests.objective.world import T, World

ALL = [(name, None) for name in TABLE] + [
    ("alpha", 0.5),
    ("alpha", 2.0),
    ("tsallis", 1.5),
    ("generalised_js", 0.3),
    ("skew_forward", 0.1),
    ("skew_reverse", 0.1),
]
N, H, V = 7, 5, 11


def heads(scale: float = 1.0) -> tuple[Head, Head]:
    g = torch.Generator().manual_seed(0)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    return (
        Head(r(N, H).requires_grad_(), r(V, H).requires_grad_(), r(V).requires_grad_()),
        Head(r(N, H), r(V, H), r(V)),
    )


def plain(policy: Head, anchor: Head, f: object, temperature: float) -> Tensor:
    p = ((policy.hidden @ policy.weight.T + policy.bias) / temperature).double().log_softmax(-1)
    q = ((anchor.hidden @ anchor.weight.T + anchor.bias) / temperature).double().log_softmax(-1)
    return (p.exp() * f.value(p - q)).sum(-1)


@pytest.mark.parametrize(("name", "parameter"), ALL)
@pytest.mark.parametrize("chunk", [1 << 23, 2 * V])
@pytest.mark.parametrize("expected", ["none", "right", "wrong"])
def test_value_and_gradient_are_those_of_full_logits(
    name: str, parameter: float | None, chunk: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.objective.full_vocab.CHUNK_ELEMENTS", chunk)
    f, (policy, anchor) = generator(name, parameter), heads(0.7)
    upstream = torch.linspace(-1, 2, N)
    ahead = {"none": None, "right": upstream / 3, "wrong": torch.ones(N)}[expected]
    got = full_divergence(policy, anchor, f, temperature=0.8, expected=ahead)
    want = plain(policy, anchor, f, 0.8)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    leaves = (policy.hidden, policy.weight, policy.bias)
    assert_same_gradients(got, want, upstream, leaves, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "parameter"), ALL)
@pytest.mark.parametrize("top_k", [None, 4])
def test_a_few_tokens_at_a_time_are_all_of_them_at_once(
    name: str, parameter: float | None, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (1 << 19, 3 * V, 1):
        monkeypatch.setattr("rlkit.objective.full_vocab.CPU_ELEMENTS", at_once)
        policy, anchor = heads(0.7)
        value = full_divergence(policy, anchor, generator(name, parameter), top_k=top_k, of="either")
        found.append((value, *torch.autograd.grad(value.sum(), (policy.hidden, policy.weight, policy.bias))))
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("expected", [None, "right"])
@pytest.mark.parametrize("top_k", [None, 4])
def test_soft_caps_of_both_models(expected: str | None, top_k: int | None) -> None:
    """Gemma 2 bounds its logits: the divergence is of the bounded ones, and the gradient goes through the bound."""
    f, (policy, anchor) = generator("forward_kl", None), heads(0.7)
    policy, anchor = dataclasses.replace(policy, cap=2.0), dataclasses.replace(anchor, cap=3.0)
    upstream = torch.linspace(-1, 2, N)
    got = full_divergence(
        policy, anchor, f, temperature=0.8, top_k=top_k, expected=None if expected is None else upstream / 3
    )

    def bounded(head: Head) -> Tensor:
        z = head.hidden @ head.weight.T + head.bias
        return (head.cap * torch.tanh(z / head.cap) / 0.8).double().log_softmax(-1)

    p, q = bounded(policy), bounded(anchor)
    if top_k is not None:
        ids = q.topk(top_k).indices
        p, q = (
            torch.cat([k, torch.log1p(-k.exp().sum(-1, keepdim=True))], -1) for k in (x.gather(-1, ids) for x in (p, q))
        )
    want = (p.exp() * f.value(p - q)).sum(-1)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    leaves = (policy.hidden, policy.weight, policy.bias)
    assert_same_gradients(got, want, upstream, leaves, rtol=1e-3, atol=1e-5)


def test_closed_forms() -> None:
    policy, anchor = heads()
    p = (policy.hidden @ policy.weight.T + policy.bias).log_softmax(-1)
    q = (anchor.hidden @ anchor.weight.T + anchor.bias).log_softmax(-1)
    kl = torch.nn.functional.kl_div
    torch.testing.assert_close(
        full_divergence(policy, anchor, TABLE["reverse_kl"]), kl(q, p, log_target=True, reduction="none").sum(-1)
    )
    torch.testing.assert_close(
        full_divergence(policy, anchor, TABLE["forward_kl"]), kl(p, q, log_target=True, reduction="none").sum(-1)
    )
    torch.testing.assert_close(full_divergence(policy, anchor, TABLE["tv"]), 0.5 * (p.exp() - q.exp()).abs().sum(-1))


@pytest.mark.parametrize("of", ["anchor", "policy"])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "hellinger"])
def test_a_tail_bucket_is_the_divergence_of_the_coarser_distributions(name: str, of: str) -> None:
    f, (policy, anchor) = generator(name, None), heads()
    whole = full_divergence(policy, anchor, f)
    before = torch.zeros(N)
    for k in (1, 3, 7):
        got = full_divergence(policy, anchor, f, top_k=k, of=of)
        p = (policy.hidden @ policy.weight.T + policy.bias).log_softmax(-1)
        q = (anchor.hidden @ anchor.weight.T + anchor.bias).log_softmax(-1)
        ids = (q if of == "anchor" else p).topk(k).indices
        coarse = [
            torch.cat([x.gather(-1, ids), torch.log1p(-x.gather(-1, ids).exp().sum(-1, keepdim=True))], -1)
            for x in (p, q)
        ]
        want = (coarse[0].exp() * f.value(coarse[0] - coarse[1])).sum(-1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        leaves = (policy.hidden, policy.weight, policy.bias)
        for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert bool((got <= whole + 1e-5).all()) and bool((got >= before - 1e-5).all())
        before = got.detach()
    torch.testing.assert_close(full_divergence(policy, anchor, f, top_k=V), whole)


@pytest.mark.parametrize(("name", "parameter"), ALL)
@pytest.mark.parametrize(("k", "kept"), [(3, 3), (3, 6), (V, V), (None, V)])
def test_an_anchor_s_most_likely_tokens_say_as_much_as_its_head(
    name: str, parameter: float | None, k: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient of a term that tells ``k`` tokens apart, by an anchor that gives ``kept`` of them."""
    monkeypatch.setattr("rlkit.objective.full_vocab.CHUNK_ELEMENTS", 2 * V)
    f, (policy, anchor) = generator(name, parameter), heads(0.7)
    few = TopK.of(anchor, N, kept, V, temperature=0.8)
    assert few.ids.shape == few.logp.shape == (N, kept) and bool((few.logp.diff(dim=-1) <= 0).all())
    got, want = (full_divergence(policy, a, f, top_k=k, temperature=0.8) for a in (few, anchor))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    leaves, upstream = (policy.hidden, policy.weight, policy.bias), torch.linspace(-1, 2, N)
    assert_same_gradients(got, want, upstream, leaves, rtol=1e-5, atol=1e-6)


def test_most_likely_tokens_know_what_they_do_not_say() -> None:
    policy, anchor = heads()
    few = TopK.of(anchor, N, 3, V, temperature=0.8)
    spread = few.log_probs(slice(0, N), V, 0.8, False)
    torch.testing.assert_close(spread.logsumexp(-1), torch.zeros(N), rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="tells the 4 most likely tokens apart, but the anchor gives 3"):
        full_divergence(policy, few, TABLE["js"], top_k=4, temperature=0.8)
    with pytest.raises(ModelError, match=r"of temperature 0.8, and the policy's of 1: set sampling.temperature: 0.8"):
        full_divergence(policy, few, TABLE["js"], top_k=3)
    with pytest.raises(ModelError, match="distances of tokens in the anchor's output layer"):
        full_divergence(policy, few, Wasserstein().generator, top_k=3, temperature=0.8)
    terms = [
        FullDivergence(top_k=4, anchor="teacher"),
        FullDivergence(f="js", top_k=9, anchor="teacher"),
        FullDivergence(),
    ]
    assert (told_apart(terms, "teacher"), told_apart(terms, "ref"), told_apart(terms[:1], "ref")) == (9, 0, 0)


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_mixture_of_anchors_is_the_sum_of_their_probabilities(
    top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two teachers, of which the second knows prefixes 2, 3 and 6 alone, and the first all but 6."""
    monkeypatch.setattr("rlkit.objective.full_vocab.CHUNK_ELEMENTS", 2 * V)
    policy, one = heads(0.7)
    g, places = torch.Generator().manual_seed(5), (torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([2, 3, 6]))
    two = Head(torch.randn(N, H, generator=g), torch.randn(V, H, generator=g), None)
    share = torch.tensor([0.0, 0.0, 0.3, 0.8, 0.0, 0.0, 1.0])
    parts = tuple(
        (dataclasses.replace(head, hidden=head.hidden[at]), at, w[at])
        for head, at, w in zip((one, two), places, (1 - share, share), strict=True)
    )
    p, q1, q2 = (
        ((h.hidden @ h.weight.T + (0 if h.bias is None else h.bias)) / 0.8).double().softmax(-1)
        for h in (policy, one, two)
    )
    q = (1 - share[:, None]) * q1 + share[:, None] * q2
    if top_k is not None:
        ids = q.topk(top_k).indices
        p, q = (torch.cat([x.gather(-1, ids), 1 - x.gather(-1, ids).sum(-1, keepdim=True)], -1) for x in (p, q))
    f = TABLE["reverse_kl"]
    got = full_divergence(policy, Mixed(parts), f, top_k=top_k, temperature=0.8)
    want = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    leaves = (policy.hidden, policy.weight, policy.bias)
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "parameter"), ALL)
def test_distributions_that_are_far_apart_keep_their_gradient(name: str, parameter: float | None) -> None:
    """Log-ratios up to 100: finite everywhere, and the forward KL still pulls with full strength."""
    f = generator(name, parameter)
    policy = Head(torch.tensor([[100.0, 0.0]], requires_grad=True), torch.eye(2), None)
    anchor = Head(torch.tensor([[0.0, 0.0]]), torch.eye(2), None)
    d = full_divergence(policy, anchor, f)
    (g,) = torch.autograd.grad(d.sum(), policy.hidden)
    assert bool(d.isfinite().all()) and bool(g.isfinite().all())
    if name in ("forward_kl", "forward_ukl"):
        assert g[0].tolist() == pytest.approx([0.5, -0.5], abs=1e-3)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "chi2", "tv"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_direct_and_prefix_terms(name: str, level: str) -> None:
    """``token`` is the gradient with frozen prefixes; ``sequence`` that of ``E[sum_t D_t]``, the KL of responses for the reverse KL."""
    w, f = World(seed=3), generator(name, None)

    def per_prefix(pi: Tensor) -> Tensor:
        return (pi.exp() * f.value(pi - w.anchor)).sum(-1)

    term = FullDivergence(f=name, level=level, reduce="sum")
    b, (rows, _) = w.batch(), w._tokens()
    d = per_prefix(w.pi())[rows]
    got = w.gradient(loss((term,), New(w.at(w.pi()), full={term.name: d}), b, (1.0,))[0])
    pi = w.pi()
    if level == "token":
        want = w.gradient(w.per_prefix(per_prefix(pi), pi))
    else:
        want = w.gradient((w.of_sequence(pi).exp() * per_prefix(pi)[rows].view(-1, T).sum(1)).sum())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    if name == "reverse_kl" and level == "sequence":
        pi = w.pi()
        kl = (w.of_sequence(pi).exp() * (w.of_sequence(pi) - w.of_sequence(w.anchor))).sum()
        torch.testing.assert_close(got, w.gradient(kl), rtol=1e-9, atol=1e-12)


def test_parameters_are_checked() -> None:
    for name in PARAMETRIC:
        with pytest.raises(ValueError, match="needs `parameter`"):
            FullDivergence(f=name)
    with pytest.raises(ValueError, match="top_k"):
        FullDivergence(top_k=0)
    assert (
        FullDivergence(f="alpha", parameter=0.5, top_k=64).name == "alpha0.5_top64(ref)"
        and dataclasses.replace(FullDivergence(), coef=2.0).coef == 2
    )
    assert math.isfinite(FullDivergence().coef)


def sinkhorn(a: torch.Tensor, b: torch.Tensor, cost: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Released code's scaling iteration, to its end: potentials ``eps log u`` and ``eps log v``."""
    kernel, u, v = (-cost / eps).exp(), torch.ones_like(a), torch.ones_like(b)
    for _ in range(20_000):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return eps * u.log(), eps * v.log()


@pytest.mark.parametrize("k", [None, 3])
def test_wasserstein_is_entropic_transport_between_tokens(k: int | None) -> None:
    """Value and potential of Sinkhorn's scaling, and by differences the slope of ``min <P, C> + eps sum P log P``."""
    g = torch.Generator().manual_seed(3)
    logits, other = (torch.randn(2, 6, generator=g, dtype=torch.float64) for _ in range(2))
    table, term = torch.randn(6, 4, generator=g), Wasserstein(eps=0.3, rounds=400)
    eye = torch.eye(6)

    def value(z: torch.Tensor) -> torch.Tensor:
        return full_divergence(Head(z.float(), eye), Head(other.float(), eye), term.generator, top_k=k, of=term.of)

    # The heads' rows are what costs are made of; here they are unit vectors, so a table of our own goes in by hand.
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    if k is None:
        f = term.generator.among(None, table).at(log_p, log_q)
        cost = torch.cdist(table, table).double()
        for n in range(2):
            left, right = sinkhorn(log_p[n].exp(), log_q[n].exp(), cost, 0.3)
            a = log_p[n] - log_q[n]
            row = term.generator.among(None, table).at(log_p[n : n + 1], log_q[n : n + 1])
            shift = (row.slope(a)[0] - left).mean()  # potentials are known up to a constant
            torch.testing.assert_close(row.slope(a)[0], left + shift, rtol=1e-5, atol=1e-6)
            want = (log_p[n].exp() * left).sum() + (log_q[n].exp() * right).sum()
            torch.testing.assert_close((log_p[n].exp() * f.value((log_p - log_q))[n]).sum(), want, rtol=1e-5, atol=1e-6)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
    h = 1e-2
    for n in range(2):
        for j in range(6):
            step = torch.zeros_like(logits)
            step[n, j] = h
            slope = (value(logits + step)[n] - value(logits - step)[n]) / (2 * h)
            assert float(gradient[n, j]) == pytest.approx(float(slope), rel=2e-2, abs=2e-3)


def test_moving_probability_to_a_near_token_is_cheap() -> None:
    """What no f-divergence sees: the same probabilities, on a token that is near and on one that is far."""
    table = torch.tensor([[0.0], [0.1], [5.0]])
    ref = torch.tensor([[0.98, 0.01, 0.01]]).log()
    near, far = torch.tensor([[0.5, 0.49, 0.01]]).log(), torch.tensor([[0.5, 0.01, 0.49]]).log()
    f = Wasserstein(eps=0.02, rounds=200).generator.among(None, table)
    cost = [float((p.exp() * f.at(p, ref).value(p - ref)).sum()) for p in (near, far)]
    assert cost[0] < 0.1 < 2 < cost[1]
    with pytest.raises(ValueError, match=r"Wasserstein\.top_k is null"):
        Wasserstein(top_k=None)
