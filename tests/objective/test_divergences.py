"""Every divergence and estimator against exact enumeration: the gradient in expectation, not only the value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkit.objective.divergences import KL, TABLE, Divergence, generator
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
    ("skew_forward", 0.2): lambda p, q: (q * (q / (0.2 * q + 0.8 * p)).log()).sum(-1),
    ("skew_reverse", 0.2): lambda p, q: (p * (p / (0.2 * p + 0.8 * q)).log()).sum(-1),
}
CASES = [(k, None) if isinstance(k, str) else k for k in P]


def exact(w: World, key: tuple[str, float | None], visited_by: Tensor) -> Tensor:
    f = P[key[0] if key[1] is None else key]
    return w.per_prefix(f(w.pi().exp(), w.anchor.exp()), visited_by)


def test_the_table_is_complete() -> None:
    assert {k for k, _ in CASES} == {*TABLE, "alpha", "tsallis", "generalised_js", "skew_forward", "skew_reverse"}


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
    assert math.isfinite(float(value)) and bool(w.gradient(value).isfinite().all())


def test_the_slope_is_bounded_not_the_value() -> None:
    """Where the policy is far away the gradient must still pull it back."""
    w = World(8)
    b = w.batch()
    b.logp["ref"] = w.at(w.pi()).detach() + 30.0
    single = torch.zeros_like(b.norm)
    single[0, 0] = 1.0
    b.norm = single
    assert float(w.gradient(w.expected(Divergence(f="forward_kl", importance="none", reduce="sum"), b)).abs().max()) > 1


def test_a_divergence_of_the_users_own() -> None:
    class Squared:
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
