"""Every divergence and estimator against exact enumeration: the gradient in expectation, not only the value."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rlkit.objective import Term, loss
from rlkit.objective.divergences import KL, PARAMETRIC, TABLE, Divergence, Generator, generator
from rlkit.types import Batch, New
from tests.objective.world import World

# Divergences of two probability tables from their textbook definitions, [prefixes]; independent of the library's f(u)/u and f'(u).
P = {
    "reverse_kl": lambda p, q: (p * (p / q).log()).sum(-1),
    "reverse_ukl": lambda p, q: (p * (p / q).log()).sum(-1),
    "forward_kl": lambda p, q: (q * (q / p).log()).sum(-1),
    "forward_ukl": lambda p, q: (q * (q / p).log()).sum(-1),
    "js": lambda p, q: 0.5 * (p * (2 * p / (p + q)).log()).sum(-1) + 0.5 * (q * (2 * q / (p + q)).log()).sum(-1),
    "jeffreys": lambda p, q: ((p - q) * (p / q).log()).sum(-1),
    "chi2": lambda p, q: ((p - q) ** 2 / q).sum(-1),
    "reverse_chi2": lambda p, q: ((p - q) ** 2 / p).sum(-1),
    "hellinger": lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(-1),
    "tv": lambda p, q: 0.5 * (p - q).abs().sum(-1),
    ("alpha", 0.5): lambda p, q: 4 * (1 - (p * q).sqrt().sum(-1)),
    ("alpha", 2.0): lambda p, q: 0.5 * ((p - q) ** 2 / q).sum(-1),
    ("alpha", -1.0): lambda p, q: 0.5 * ((p - q) ** 2 / p).sum(-1),
    ("tsallis", 2.0): lambda p, q: ((p - q) ** 2 / q).sum(-1),
    ("tsallis", 0.5): lambda p, q: 2 * (1 - (p * q).sqrt().sum(-1)),
    ("generalised_js", 0.3): lambda p, q: (
        0.3 * (p * (p / (0.3 * p + 0.7 * q)).log()).sum(-1) + 0.7 * (q * (q / (0.3 * p + 0.7 * q)).log()).sum(-1)
    ),
    ("normalised_js", 0.3): lambda p, q: P["generalised_js", 0.3](p, q) / 0.21,
    ("normalised_js", 0.0): lambda p, q: (p * (p / q).log()).sum(-1),
    ("normalised_js", 1.0): lambda p, q: (q * (q / p).log()).sum(-1),
    ("skew_forward", 0.2): lambda p, q: (q * (q / (0.2 * q + 0.8 * p)).log()).sum(-1),
    ("skew_reverse", 0.2): lambda p, q: (p * (p / (0.2 * p + 0.8 * q)).log()).sum(-1),
}
CASES = [(k, None) if isinstance(k, str) else k for k in P]


def exact(w: World, key: tuple[str, float | None], visited_by: Tensor) -> Tensor:
    f = P[key[0] if key[1] is None else key]
    return w.per_prefix(f(w.pi().exp(), w.anchor.exp()), visited_by)


def test_the_table_is_complete() -> None:
    assert {k for k, _ in CASES} == {*TABLE, *PARAMETRIC}


@pytest.mark.parametrize("form", ["score", "differentiable"])
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("key", CASES, ids=str)
def test_value_and_gradient_under_the_sampling_policy(
    key: tuple[str, float | None], off_policy: bool, form: str
) -> None:
    w = World(1, off_policy)
    term = Divergence(f=key[0], parameter=key[1], form=form, reduce="sum")
    got, want = w.expected(term, w.batch()), exact(w, key, w.mu)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(w.gradient(got), w.gradient(want), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("key", CASES, ids=str)
def test_rows_sampled_from_the_anchor(key: tuple[str, float | None]) -> None:
    w = World(2)
    got = w.expected(Divergence(f=key[0], parameter=key[1], reduce="sum"), w.batch(sampled_from=w.anchor))
    torch.testing.assert_close(w.gradient(got), w.gradient(exact(w, key, w.anchor)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("f", ["reverse_kl", "forward_kl", "chi2"])
def test_sequence_importance_visits_prefixes_as_the_policy_does(f: str) -> None:
    w = World(3, off_policy=True)
    got = w.expected(Divergence(f=f, importance="sequence", reduce="sum"), w.batch())
    torch.testing.assert_close(w.gradient(got), w.gradient(exact(w, (f, None), w.pi().detach())), rtol=1e-8, atol=1e-10)


def test_the_differentiable_sequence_form_is_the_sequence_kl() -> None:
    """With prefix products under the gradient, credit flows to earlier tokens: the chain rule of the sequence-level KL."""
    w = World(4, off_policy=True)
    got = w.expected(Divergence(f="reverse_kl", form="differentiable", importance="sequence", reduce="sum"), w.batch())
    p = w.of_sequence(w.pi())
    want = (p.exp() * (p - w.of_sequence(w.anchor))).sum()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(w.gradient(got), w.gradient(want), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("estimator", "importance", "target", "off_policy"),
    [
        ("k2", "none", "reverse_kl", False),
        ("k3", "none", "forward_kl", False),
        ("k3+", "none", "reverse_kl", False),
        ("k1+", "none", "reverse_kl", False),
        ("k1", "token", "reverse_kl", True),
        ("k2", "token", "reverse_kl", True),
        ("k3", "token", "reverse_kl", True),
    ],
)
def test_what_each_estimator_optimises(estimator: str, importance: str, target: str, off_policy: bool) -> None:
    w = World(5, off_policy)
    got = w.gradient(w.expected(KL(estimator=estimator, importance=importance, reduce="sum"), w.batch()))
    torch.testing.assert_close(got, w.gradient(exact(w, (target, None), w.mu)), rtol=1e-8, atol=1e-10)
    other = "forward_kl" if target == "reverse_kl" else "reverse_kl"
    assert (got - w.gradient(exact(w, (other, None), w.mu))).abs().max() > 1e-3  # it is not the other KL


def test_the_normalised_jensen_shannon_divergence_is_continuous_at_both_ends() -> None:
    """Towards 0 and 1 it becomes the two KLs, where ``generalised_js`` vanishes; in float32, too."""
    a = torch.linspace(-10, 10, 21)
    for near, end in ((1e-6, 0.0), (1 - 1e-6, 1.0)):
        f, limit = generator("normalised_js", near), generator("normalised_js", end)
        torch.testing.assert_close(f.slope(a), limit.slope(a), rtol=0.05, atol=1e-3)
        p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
        kl = (p * (p / q).log()).sum() if end == 0 else (q * (q / p).log()).sum()
        torch.testing.assert_close((p * f.value((p / q).log())).sum(), kl, rtol=1e-4, atol=0)
        assert float((p * generator("generalised_js", near).value((p / q).log())).sum()) < 1e-5


def test_k1_without_a_weight_is_refused_because_its_expected_gradient_is_zero() -> None:
    w = World(6)
    naive = (w.batch().norm[0].repeat_interleave(2) * (w.at(w.pi()) - w.at(w.anchor))).sum()
    assert w.gradient(naive).abs().max() < 1e-12
    with pytest.raises(ValueError, match="gradient"):
        KL(estimator="k1", importance="none")


@pytest.mark.parametrize("key", CASES, ids=str)
@pytest.mark.parametrize("gap", [-50.0, 50.0])
def test_finite_for_any_log_ratio(key: tuple[str, float | None], gap: float) -> None:
    w = World(7)
    b = w.batch()
    b.logp["ref"] = w.at(w.pi()).detach() - gap
    value = w.expected(Divergence(f=key[0], parameter=key[1], importance="none"), b)
    assert math.isfinite(float(value.detach())) and bool(w.gradient(value).isfinite().all())


def test_the_slope_is_bounded_not_the_value() -> None:
    """Where the policy is far away the gradient must still pull it back."""
    w = World(8)
    b = w.batch()
    b.logp["ref"] = w.at(w.pi()).detach() + 30.0
    single = torch.zeros_like(b.norm)
    single[0, 0] = 1.0
    b = b.replace(norm=single)
    assert float(w.gradient(w.expected(Divergence(f="forward_kl", importance="none", reduce="sum"), b)).abs().max()) > 1


def test_a_divergence_of_the_users_own() -> None:
    class Squared(Generator):
        def value(self, a: Tensor) -> Tensor:
            return (a.exp() - 1) ** 2 * (-a).exp()

        def slope(self, a: Tensor) -> Tensor:
            return 2 * (a.exp() - 1)

    w = World(9, off_policy=True)
    got = w.expected(Divergence(f=Squared(), reduce="sum"), w.batch())
    torch.testing.assert_close(w.gradient(got), w.gradient(exact(w, ("chi2", None), w.mu)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("f", "parameter"), [("no_such", None), ("js", 0.5), ("alpha", None), ("generalised_js", 1.0), ("tsallis", -1.0)]
)
def test_bad_divergences_are_refused(f: str, parameter: float | None) -> None:
    with pytest.raises(ValueError, match=f):
        generator(f, parameter)


def far(a: Tensor, **logp: Tensor) -> tuple[New, Batch]:
    """Tokens of their own whose log-ratios to the reference are ``a``, in float32."""
    old = torch.full_like(a, -100.0)
    b = Batch(
        seq=torch.arange(len(a)),
        group=torch.arange(len(a)),
        source=torch.zeros(len(a), dtype=torch.long),
        reward=torch.zeros(len(a)),
        logp={"behav": old, "old": old, "ref": old} | logp,
        norm=torch.ones(1, len(a)),
    )
    return New((old + a).requires_grad_()), b


FAR = torch.tensor([-80.0, -40.0, -21.0, -19.0, -5.0, -0.5, 0.5, 5.0, 19.0, 21.0, 40.0, 80.0])


@pytest.mark.parametrize("importance", ["none", "token", "sequence"])
@pytest.mark.parametrize("form", ["score", "differentiable"])
@pytest.mark.parametrize("key", CASES, ids=str)
def test_the_gradient_far_away_is_the_bounded_slope(key: tuple[str, float | None], form: str, importance: str) -> None:
    """In float32, for ratios of e^80 to the reference (and to the sampling policy): finite, never 0, and the slope at the bound."""
    g = generator(*key)
    for sampled in ("behav", "new"):
        new, b = far(FAR)
        if sampled == "new":  # only the reference is far away
            b = dataclasses.replace(b, logp=b.logp | {"behav": new.logp.detach()})
        term = Divergence(f=key[0], parameter=key[1], form=form, importance=importance, reduce="sum")
        parts = [loss((term,), new.rows(b.seq == s), b.rows(b.seq == s), (1.0,))[0] for s in range(b.S)]
        value = torch.stack(parts).sum()
        (got,) = torch.autograd.grad(value, new.logp)
        bounded = FAR.double().clamp(-20, 20)
        w = bounded.exp() if sampled == "behav" and importance != "none" else torch.ones_like(bounded)
        torch.testing.assert_close(got.double(), w * g.slope(bounded), rtol=1e-4, atol=0)
        assert bool((got != 0).all()) and bool(got.isfinite().all()) and math.isfinite(float(value.detach()))


@pytest.mark.parametrize("importance", ["none", "token"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k1+", "k3+", "kF"])
def test_kl_estimators_pull_from_far_away(estimator: str, importance: str) -> None:
    if (estimator == "k1" and importance == "none") or (estimator.endswith("+") and importance == "token"):
        return
    new, b = far(FAR)
    value, _ = loss((KL(estimator=estimator, importance=importance, reduce="sum"),), new, b, (1.0,))
    (got,) = torch.autograd.grad(value, new.logp)
    assert bool(got.isfinite().all()) and math.isfinite(float(value.detach()))
    assert bool((got.sign() == FAR.sign()).all()) or estimator in ("k1", "kF"), got
    assert bool((got != 0).all())


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("importance", ["none", "token", "sequence"])
@pytest.mark.parametrize("key", CASES, ids=str)
def test_the_differentiable_form_against_autograd(
    key: tuple[str, float | None], importance: str, off_policy: bool
) -> None:
    """The expected gradient of ``w f(u) / u`` written out and differentiated by autograd."""
    g = generator(*key)

    @dataclasses.dataclass(frozen=True)
    class Naive(Term):
        def __call__(self, new: New, b: Batch) -> Tensor:
            r = new.logp - b.logp["behav"] if importance != "none" else new.logp - new.logp.detach()
            r = b.seq_cumsum(r) if importance == "sequence" else r
            return r.exp() * g.value(new.logp - b.logp["ref"])

    w = World(4, off_policy=off_policy)
    if importance == "none" and off_policy:
        return  # biased by design: constants that differ between the two are not averaged away
    term = Divergence(f=key[0], parameter=key[1], form="differentiable", importance=importance, reduce="sum")
    got, want = (w.gradient(w.expected(t, w.batch())) for t in (term, Naive(reduce="sum")))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_a_weighted_estimator_against_autograd() -> None:
    """Per token, not only on average: the derivative of ``w k1``, ``w k3`` and ``w kF``."""
    costs = {
        "k1": lambda a: a,
        "k3": lambda a: torch.expm1(-a) + a,
        "kF": lambda a: 1 - (-a).exp() * (1 + a),
    }
    w = World(5, off_policy=True)
    b = w.batch()
    for estimator, cost in costs.items():
        logp = w.at(w.pi()).detach().requires_grad_()
        naive = ((logp - b.logp["behav"]).exp() * cost(logp - b.logp["ref"])).sum()
        term = KL(estimator=estimator, importance="token")(New(logp), b)
        torch.testing.assert_close(*(torch.autograd.grad(x, logp)[0] for x in (term.sum(), naive)))
        torch.testing.assert_close(term.sum(), naive)


def test_constants_of_published_divergences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each published f is one multiple of ours at every ratio, and the page says which."""
    monkeypatch.syspath_prepend("scripts")
    import regularizers

    found = {}
    for what, source, published, f, parameter in regularizers.CONSTANTS:
        ratio = regularizers.factor(published, f, parameter)
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
        found[what, source.split(" ")[0].rstrip(",")] = round(float(ratio[0]), 9)
    assert found["JS", "DPH-RL"] == 2 and found["JS, beta 0.3", "GKD"] == 1
    assert set(found.values()) == {0.5, 1.0, 2.0}
    log_u = torch.linspace(-1, 1, 9, dtype=torch.float64)  # k2's derivative is the slope of the unnormalised reverse KL
    new, b = far(log_u)
    (k2,) = torch.autograd.grad(KL(estimator="k2")(new, b).sum(), new.logp)
    torch.testing.assert_close(k2, generator("reverse_ukl", None).slope(log_u))
