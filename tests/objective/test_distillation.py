"""Distillation losses against their equations in plain probabilities, differentiated by autograd, and against published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rlkit as rk
from rlkit.errors import ConfigError
from rlkit.objective import loss, normalise
from rlkit.objective.distillation import AKL, ATKD, BDKD, CKD, DPKD, AlphaBeta, SinKD, beside, two_way
from rlkit.objective.divergences import Divergence, Generator, generator
from rlkit.objective.full_vocab import FullDivergence, Head, TopK, full_divergence
from rlkit.objective.oracle import examine
from rlkit.types import Batch, New
from tests.objective.gradients import assert_same_gradients

N, H, V = 7, 5, 11
TARGET = torch.tensor([0, 3, 10, 2, 2, 7, 5])


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


# Of one token: teacher t and student s, the released form of each, with what is detached there detached here.


def akl(t: Tensor, s: Tensor, mu: float = 0.5) -> Tensor:
    order = sorted(range(len(t)), key=lambda v: -float(t[v]))
    head, mass = [], 0.0
    for v in order:
        mass += float(t[v])
        if mass > mu and head:
            break
        head.append(v)
        if mass > mu:
            break
    gap = (t - s).abs().detach()
    g_h, g_t = gap[head].sum(), gap[[v for v in order if v not in head]].sum()
    return (g_h * kl(t, s) + g_t * kl(s, t)) / (g_h + g_t)


def bdkd(t: Tensor, s: Tensor, delta: float) -> Tensor:
    unsure = float(-(t * t.log()).sum()) > float(-(s * s.log()).sum())
    return (delta if unsure else 1) * kl(t, s) + (1 if unsure else delta) * kl(s, t)


def ab(t: Tensor, s: Tensor, a: float, b: float) -> Tensor:
    if a == 0 and b == 0:
        return 0.5 * ((t.log() - s.log()) ** 2).sum()
    if b == 0:
        return (t**a * (t**a / s**a).log() - t**a + s**a).sum() / a**2
    if a == 0:
        return (s**b * (s**b / t**b).log() - s**b + t**b).sum() / b**2
    if a + b == 0:
        return ((t / s) ** a - 1 - a * (t / s).log()).sum() / a**2
    c = a + b
    return -(t**a * s**b - a / c * t**c - b / c * s**c).sum() / (a * b)


def ckd(t: Tensor, s: Tensor, k: int, m: int, lam: float) -> Tensor:
    inside = t.topk(k).indices.tolist()
    outside = [v for v in s.topk(m).indices.tolist() if v not in inside]
    return (t[inside] * (t[inside] / s[inside]).log()).sum() + lam * s[outside].sum()


def dpkd(t: Tensor, s: Tensor, beta: float) -> Tensor:
    i, j = int(t.argmax()), int(s.argmax())
    return -torch.nn.functional.logsigmoid(beta * ((s[i].log() - s[j].log()) - (t[i].log() - t[j].log())))


def others(t: Tensor, s: Tensor, y: int) -> Tensor:
    rest = [v for v in range(len(t)) if v != y]
    return kl(t[rest] / t[rest].sum(), s[rest] / s[rest].sum())


LOSSES: list[tuple[Generator, Callable[..., Tensor]]] = [
    (AKL(), akl),
    (AKL(mass=0.9), lambda t, s: akl(t, s, 0.9)),
    (BDKD(), lambda t, s: bdkd(t, s, 2.0)),
    (BDKD(delta=3.0), lambda t, s: bdkd(t, s, 3.0)),
    (CKD(k=3, m=4, lam=10.0), lambda t, s: ckd(t, s, 3, 4, 10.0)),
    (CKD(k=100, m=100), lambda t, s: kl(t, s)),
    (DPKD(), lambda t, s: dpkd(t, s, 0.1)),
    (DPKD(beta=2.0), lambda t, s: dpkd(t, s, 2.0)),
    *(
        (AlphaBeta(alpha=a, beta=b), lambda t, s, a=a, b=b: ab(t, s, a, b))
        for a, b in [
            (0.2, 0.7),
            (0.1, 0.8),
            (0.5, 0.5),
            (1, 0),
            (0, 1),
            (0.5, -0.5),
            (0, 0),
            (0.7, 0),
            (-0.3, 0.9),
            (1, 1),
        ]
    ),
]
NAMES = [f.label for f, _ in LOSSES]


def heads(scale: float = 0.7) -> tuple[Head, Head]:
    g = torch.Generator().manual_seed(0)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    return (
        Head(r(N, H).requires_grad_(), r(V, H).requires_grad_(), r(V).requires_grad_()),
        Head(r(N, H), r(V, H), r(V)),
    )


def agrees(f: Generator, want: Callable[..., Tensor], targets: bool = False, **options: object) -> None:
    """Value and gradient to hidden states and weights, token by token with weights of their own."""
    policy, anchor = heads()
    leaves, upstream = (policy.hidden, policy.weight, policy.bias), torch.linspace(-1, 2, N)
    got = full_divergence(policy, anchor, f, temperature=0.8, target=TARGET, **options)
    s, t = (((h.hidden @ h.weight.T + h.bias) / 0.8).double().softmax(-1) for h in (policy, anchor))
    rows = torch.stack([want(t[n], s[n], *([int(TARGET[n])] if targets else [])) for n in range(N)])
    torch.testing.assert_close(got.double(), rows, rtol=2e-5, atol=2e-6)
    assert_same_gradients(got, rows, upstream, leaves, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("f", "want"), LOSSES, ids=NAMES)
@pytest.mark.parametrize("chunk", [1 << 23, 2 * V])
@pytest.mark.parametrize("ahead", [False, True])
def test_value_and_gradient_are_those_of_the_equation(
    f: Generator, want: Callable[..., Tensor], chunk: int, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.objective.full_vocab.CHUNK_ELEMENTS", chunk)
    agrees(f, want, expected=torch.linspace(-1, 2, N) / 3 if ahead else None)


@pytest.mark.parametrize("chunk", [1 << 23, 2 * V])
def test_the_tokens_beside_the_one_in_the_text(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.objective.full_vocab.CHUNK_ELEMENTS", chunk)
    agrees(beside(), others, targets=True)


@pytest.mark.parametrize("ahead", [False, True])
def test_transport_between_the_tokens_of_a_response(ahead: bool) -> None:
    """Responses of 2, 4 and 1 tokens, blocks of at most 3: each block's ``P * W``, with P from the definition and held fixed."""
    policy, anchor = heads()
    leaves, upstream = (policy.hidden, policy.weight, policy.bias), torch.linspace(0.5, 2, N)
    f, seq = SinKD(tokens=3, rounds=4), torch.tensor([0, 0, 1, 1, 1, 1, 2])
    got = full_divergence(policy, anchor, f, seq=seq, temperature=0.8, expected=upstream / 3 if ahead else None)
    s, t = (((h.hidden @ h.weight.T + h.bias) / 0.8 / 2).double().softmax(-1) for h in (policy, anchor))
    rows = []
    for block in ([0, 1], [2, 3, 4], [5], [6]):
        w = torch.stack([torch.stack([(s[i] - t[j]).abs().sum() for j in block]) for i in block])
        plan = (-w.detach() / 0.1).exp()
        for _ in range(4):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
        rows += list((plan * w).sum(1))
    want = torch.stack(rows)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    assert_same_gradients(got, want, upstream, leaves, rtol=2e-4, atol=2e-5)


def test_the_token_in_the_text_may_be_in_the_bucket() -> None:
    policy, anchor = heads()
    got = full_divergence(policy, anchor, beside(), top_k=3, target=TARGET)
    s, t = ((h.hidden @ h.weight.T + h.bias).double().softmax(-1) for h in (policy, anchor))
    ids = t.topk(3).indices
    s, t = (torch.cat([x.gather(-1, ids), 1 - x.gather(-1, ids).sum(-1, keepdim=True)], -1) for x in (s, t))
    for n in range(N):
        y = ids[n].tolist().index(int(TARGET[n])) if int(TARGET[n]) in ids[n] else 3
        assert float(got[n]) == pytest.approx(float(others(t[n], s[n], y)), rel=1e-4)


def test_the_most_likely_tokens_of_a_teacher_are_enough_for_ckd() -> None:
    """What a server or a file gives: the same value and gradient as from the whole distribution."""
    policy, anchor = heads()
    f, found = CKD(k=3, m=5), []
    for form in (anchor, TopK.of(anchor, N, 3, V)):
        d = full_divergence(policy, form, f)
        found.append((d, torch.autograd.grad(d.sum(), policy.hidden)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert FullDivergence(f=f).reads == 3 and FullDivergence(f=AKL()).reads is None


# -- published numbers ------------------------------------------------------------------------------------------------

TEACHER, STUDENT = [2.0, 1.0, 0.0, -1.0], [1.0, 1.5, -0.5, 0.25]
FORWARD = [-0.344891, 0.256124, -0.020423, 0.109190]
REVERSE = [-0.326139, 0.201797, -0.039411, 0.163752]
GOLDEN: list[tuple[Generator, float, list[float] | None]] = [
    (generator("forward_kl", None), 0.296015, FORWARD),
    (generator("reverse_kl", None), 0.323637, REVERSE),
    (generator("jeffreys", None), 0.619652, [a + b for a, b in zip(FORWARD, REVERSE, strict=True)]),
    (generator("generalised_js", 0.9), 0.026543, [-0.030188, 0.022335, -0.001991, 0.009845]),
    (generator("generalised_js", 0.5), 0.074483, [-0.078789, 0.056482, -0.007141, 0.029448]),
    (generator("generalised_js", 0.1), 0.028383, [-0.028756, 0.018765, -0.003289, 0.013280]),
    (
        generator("normalised_js", 0.9),
        0.026543 / 0.09,
        [-0.030188 / 0.09, 0.022335 / 0.09, -0.001991 / 0.09, 0.009845 / 0.09],
    ),
    (generator("normalised_js", 1.0), 0.296015, FORWARD),
    (generator("normalised_js", 0.0), 0.323637, REVERSE),
    (generator("skew_forward", 0.1), 0.238316, [-0.264873, 0.195086, -0.019265, 0.089051]),
    (generator("skew_reverse", 0.1), 0.249663, [-0.254709, 0.173406, -0.027521, 0.108824]),
    (generator("tv", None), 0.365314, [-0.189657, 0.180315, -0.042318, 0.051661]),
    (generator("hellinger", None), 2 * 0.075918, [2 * x for x in (-0.081239, 0.056920, -0.007298, 0.031617)]),
    (generator("chi2", None), 0.838339, [-0.821690, 0.239489, -0.143144, 0.725345]),
    (generator("reverse_chi2", None), 0.621512, None),
    (AlphaBeta(alpha=0.2, beta=0.7), 0.360144, [-0.362679, 0.223938, -0.042507, 0.181249]),
    (AlphaBeta(alpha=0.5, beta=0.5), 0.303671, None),
    (AlphaBeta(alpha=1.0, beta=0.0), 0.296015, FORWARD),
    (AlphaBeta(alpha=0.0, beta=1.0), 0.323637, REVERSE),
    (AlphaBeta(alpha=0.5, beta=-0.5), 1.483132, None),
    (AlphaBeta(alpha=0.0, beta=0.0), 1.698028, None),
    (AlphaBeta(alpha=0.7, beta=0.0), 0.449691, None),
    (AKL(), 0.310598, [0.472047 * a + 0.527953 * b for a, b in zip(FORWARD, REVERSE, strict=True)]),
    (CKD(k=2, m=2), 0.320285, [-0.380535, 0.197356, 0.058768, 0.124411]),
    (CKD(k=1, m=2, lam=10.0), 5.423975, None),
    (DPKD(beta=0.1), 0.770957, None),
]


@pytest.mark.parametrize(("f", "value", "gradient"), GOLDEN)
def test_golden_numbers(f: Generator, value: float, gradient: list[float] | None) -> None:
    z, eye = torch.tensor([STUDENT], requires_grad=True), torch.eye(4)
    got = full_divergence(Head(z, eye), Head(torch.tensor([TEACHER]), eye), f)
    (dz,) = torch.autograd.grad(got.sum(), z)
    assert float(got.detach()) == pytest.approx(value, abs=1e-5)  # six digits of some are divided by 0.09
    if gradient is not None:
        assert dz[0].tolist() == pytest.approx(gradient, abs=1e-5)


@pytest.mark.parametrize(
    ("f", "want"), [x for x in LOSSES if not isinstance(x[0], CKD | DPKD)], ids=lambda x: getattr(x, "label", "")
)
def test_the_teacher_is_where_it_ends(f: Generator, want: Callable[..., Tensor]) -> None:
    """Zero, and without a gradient, at the teacher itself; above zero around it."""
    _, anchor = heads()
    teacher = (anchor.hidden @ anchor.weight.T + anchor.bias).detach()
    eye, around = torch.eye(V), 0.2 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))
    there = teacher.clone().requires_grad_()
    d = full_divergence(Head(there, eye), Head(teacher, eye), f)
    (dz,) = torch.autograd.grad(d.sum(), there)
    assert float(d.detach().abs().max()) < 1e-5 and float(dz.abs().max()) < 1e-5
    assert bool((full_divergence(Head(teacher + around, eye), Head(teacher, eye), f) > 1e-4).all())


def test_the_best_bounded_adversary_sees_total_variation() -> None:
    """AMMD: the largest ``E_pi f - E_q f`` over all f with values in [-1, 1] is twice the total variation; the largest is at a corner."""
    policy, anchor = heads()
    s, t = ((h.hidden @ h.weight.T + h.bias).softmax(-1) for h in (policy, anchor))
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * V)
    best = ((s - t) @ corners.T).amax(-1)
    got = 2 * full_divergence(policy, anchor, generator("tv", None))
    torch.testing.assert_close(got, best)
    leaves = (policy.hidden, policy.weight)
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(best.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# -- far away, and what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [f for f, _ in LOSSES] + [beside()], ids=[*NAMES, "others"])
@pytest.mark.parametrize("logits", [[100.0, 0.0, 0.0], [0.0, 0.0, 100.0], [-60.0, 60.0, 0.0]])
def test_distributions_that_are_far_apart_are_finite(f: Generator, logits: list[float]) -> None:
    eye = torch.eye(3)
    for p, q in ((logits, [0.0, 1.0, 0.0]), ([0.0, 1.0, 0.0], logits), (logits, logits[::-1])):
        z = torch.tensor([p], requires_grad=True)
        d = full_divergence(Head(z, eye), Head(torch.tensor([q]), eye), f, target=torch.tensor([0]))
        (g,) = torch.autograd.grad(d.sum(), z)
        assert bool(d.isfinite().all()) and bool(g.isfinite().all())


@pytest.mark.parametrize(("f", "want"), LOSSES, ids=NAMES)
def test_what_rlkit_check_says_of_them(f: Generator, want: Callable[..., Tensor]) -> None:
    """The expected gradient is that of the divergence per token, exactly, wherever prefixes come from."""
    for sampled in ("on-policy", "off-policy"):
        found = examine(FullDivergence(f=f, anchor="teacher"), sampled)  # type: ignore[arg-type]
        assert found.problem is None and found.honest and found.follows == found.claims, found
        assert found.claims == f"{f.label}(pi‖teacher) per token"


def test_only_whole_distributions_say_what_they_are() -> None:
    with pytest.raises(ConfigError, match=r"Divergence: akl0\.5 is a divergence of whole next-token distributions"):
        Divergence(f=AKL())
    for f in (CKD(), DPKD(), AlphaBeta()):
        with pytest.raises(ConfigError, match="which top_k joins in a bucket"):
            FullDivergence(f=f, top_k=8)
    assert FullDivergence(f=AKL(), top_k=8, anchor="teacher").name == "akl0.5_top8(teacher)"
    with pytest.raises(ConfigError, match=r"alpha \+ beta is 3"):
        AlphaBeta(alpha=2.0, beta=1.0)
    with pytest.raises(ConfigError, match=r"ATKD\.reduce is 'seq'"):
        ATKD(reduce="seq")


def test_they_are_known_by_name(small: dict[str, object]) -> None:
    term = {"type": "FullDivergence", "f": {"type": "AlphaBeta", "alpha": 0.1, "beta": 0.8}}
    run = rk.load({**small, "objective": [term]})
    assert run.objective[0] == FullDivergence(f=AlphaBeta(alpha=0.1, beta=0.8))
    assert (
        rk.load(run.to_dict() if hasattr(run, "to_dict") else {**small, "objective": [term]}).objective == run.objective
    )


# -- ATKD -------------------------------------------------------------------------------------------------------------


def test_atkd_against_its_equation() -> None:
    """Rows of 2, 4 and 1 tokens; hard tokens are the half whose text the teacher finds least likely."""
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(N, V, generator=g, dtype=torch.float64).requires_grad_()
    t = torch.randn(N, V, generator=g, dtype=torch.float64).softmax(-1)
    s, n = logits.softmax(-1), torch.arange(N)
    b = Batch(
        seq=torch.tensor([0, 0, 1, 1, 1, 1, 2]),
        group=torch.arange(3),
        source=torch.full((3,), 2),
        reward=torch.zeros(3, dtype=torch.float64),
        logp={"teacher": t[n, TARGET].log()},
    )
    term = ATKD(share=0.5, easy=0.2)
    b = b.replace(norm=normalise((term,), b), marks={term.name: term.mark(b, torch.Generator())})
    kept = torch.stack([others(t[i], s[i], int(TARGET[i])) for i in range(N)])
    got, _ = loss((term,), New(s[n, TARGET].log(), full={term.name: kept}), b, (1.0,))

    order = sorted(range(N), key=lambda i: -(1 - float(t[i, TARGET[i]])))
    hard, easy = order[:3], order[3:]

    def binary(i: int) -> Tensor:
        p, q = t[i, TARGET[i]], s[i, TARGET[i]]
        return kl(torch.stack([p, 1 - p]), torch.stack([q, 1 - q]))

    want = 0.2 * sum(kept[i] for i in easy) / 4 + 0.8 * sum(kept[i] + binary(i) for i in hard) / 3
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (got, want)))
    # the split is that of the whole KL
    for i in range(N):
        whole = binary(i) + (1 - t[i, TARGET[i]]) * kept[i]
        torch.testing.assert_close(whole, kl(t[i], s[i]))


def test_a_token_that_is_certain_keeps_its_gradient() -> None:
    x = torch.tensor([-1e-9, -1e-3, -50.0], requires_grad=True)
    value = two_way(torch.log(torch.tensor([0.3, 0.999, 0.5])), x)
    (g,) = torch.autograd.grad(value.sum(), x)
    assert bool(value.isfinite().all()) and bool(g.isfinite().all()) and bool((g != 0).all())
    assert float(g[0]) > 1e5 and math.isclose(float(g[2]), -0.5, rel_tol=1e-3)
