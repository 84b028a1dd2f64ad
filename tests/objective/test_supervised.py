"""Supervised terms against their equations: values, gradients, and where they end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective.divergences import TABLE
from rlkit.objective.supervised import EKSFT, FSFT, Conjugate, top_share
from rlkit.types import Batch, New

V = 6
G = torch.Generator().manual_seed(2)
REF, DATA, START = (torch.randn(V, generator=G, dtype=torch.float64).log_softmax(0) for _ in range(3))

DUAL = {  # f'(u) and f*(f'(u)), as the source's table has them, but for constants
    "reverse_kl": (lambda u: u.log(), lambda u: u - 1),
    "chi2": (lambda u: 2 * (u - 1), lambda u: u**2 - 1),
    "hellinger": (lambda u: 1 - u**-0.5, lambda u: u.sqrt() - 1),
    "js": (lambda u: 0.5 * (2 * u / (1 + u)).log(), lambda u: 0.5 * ((1 + u) / 2).log()),
    "forward_kl": (lambda u: -1 / u, lambda u: u.log()),
}


def cost(f: str, logits: Tensor) -> Tensor:
    """The expected cost of a token of the data, by the term."""
    term, pi = FSFT(f=f), logits.log_softmax(0)
    h = (pi.exp() * term.generator.value(pi - REF)).sum()  # what the whole-vocabulary machinery gives: E_pi[h(u) / u]
    b = Batch(
        seq=torch.arange(V),
        group=torch.arange(V),
        source=torch.full((V,), 2),
        reward=torch.zeros(V),
        logp={"ref": REF},
    )
    return (DATA.exp() * term(New(pi, full={term.name: h.expand(V)}), b)).sum()


@pytest.mark.parametrize("f", DUAL)
def test_f_sft_is_the_dual_of_the_divergence(f: str) -> None:
    """Value (but for a constant) and gradient of ``-E_D[f'(u)] + E_ref[f*(f'(u))]``."""
    first, second = DUAL[f]
    found = []
    for logits in (START.clone().requires_grad_(), REF.clone().requires_grad_()):
        u = (logits.log_softmax(0) - REF).exp()
        want = -(DATA.exp() * first(u)).sum() + (REF.exp() * second(u)).sum()
        got = cost(f, logits)
        torch.testing.assert_close(
            torch.autograd.grad(got, logits)[0], torch.autograd.grad(want, logits)[0], rtol=1e-9, atol=1e-12
        )
        found.append(float(got.detach() - want.detach()))
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("f", DUAL)
def test_the_data_is_where_f_sft_ends(f: str) -> None:
    """There the gradient is zero, and the cost is lower than everywhere around."""
    there = DATA.clone().requires_grad_()
    lowest = cost(f, there)
    assert float(torch.autograd.grad(lowest, there, retain_graph=True)[0].norm()) < 1e-12
    for _ in range(20):
        assert cost(f, DATA + 0.3 * torch.randn(V, generator=G, dtype=torch.float64)) > lowest


def test_with_the_reverse_kl_it_is_the_nll() -> None:
    logits = START.clone().requires_grad_()
    want = torch.autograd.grad(-(DATA.exp() * logits.log_softmax(0)).sum(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(cost("reverse_kl", logits), logits)[0], want)


@pytest.mark.parametrize("f", TABLE)
def test_the_slope_of_a_conjugate_is_that_of_its_value(f: str) -> None:
    """``h(u) = value u``, ``h'(u)`` by finite differences."""
    h, a, e = Conjugate(TABLE[f]), torch.linspace(-1.5, 1.4, 7, dtype=torch.float64), 1e-6

    def of_u(u: Tensor) -> Tensor:
        return h.value(u.log()) * u

    torch.testing.assert_close(h.slope(a), (of_u(a.exp() + e) - of_u(a.exp() - e)) / (2 * e), rtol=1e-5, atol=1e-7)


def test_f_sft_refuses_what_has_no_gradient() -> None:
    for wrong in ({"f": "tv"}, {"anchor": "teacher"}, {"level": "sequence"}):
        with pytest.raises(ConfigError, match="FSFT: the divergence must be smooth"):
            FSFT(**wrong)  # type: ignore[arg-type]


# -- EKSFT ------------------------------------------------------------------------------------------------------------


def test_the_largest_share_of_each_row() -> None:
    b = Batch(
        seq=torch.tensor([0] * 5 + [1] * 3 + [2]),
        group=torch.arange(3),
        source=torch.full((3,), 2),
        reward=torch.zeros(3),
    )
    x = torch.tensor([1.0, 5.0, 5.0, 0.0, 2.0, 9.0, 8.0, 7.0, 1.0])
    assert top_share(b, x, 0.4).tolist() == [0, 1, 1, 0, 0, 1, 0, 0, 0]
    assert top_share(b, x, 0.2).tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert top_share(b, x, 0.0).sum() == 0


def test_eksft_against_its_equation() -> None:
    """Rows of 5 and 10 tokens, each token with its own logits; every mean over a set of tokens written out."""
    sizes, rho, lam_h, lam_k = [5, 10], 0.2, 0.3, 0.7
    logits = torch.randn(15, V, generator=G, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(V, (15,), generator=G)
    pi = logits.log_softmax(-1)
    logp, entropy = pi.gather(-1, tokens[:, None])[:, 0], -(pi.exp() * pi).sum(-1)
    far = (pi.exp() * (pi - REF)).sum(-1)
    b = Batch(
        seq=torch.repeat_interleave(torch.arange(2), torch.tensor(sizes)),
        group=torch.arange(2),
        source=torch.full((2,), 2),
        reward=torch.zeros(2),
    )
    term = EKSFT(share=rho, entropy=lam_h, kl=lam_k)
    per_token = term(New(logp, entropy=entropy, full={term.name: far}), b)
    got = sum(part.mean() for part in per_token.split(sizes)) / 2  # reduce: seq

    want = torch.zeros((), dtype=torch.float64)
    for row in torch.arange(15).split(sizes):
        k = math.floor(rho * len(row))
        unsure = set(row[entropy[row].topk(k).indices].tolist())
        moved = set(row[far[row].topk(k).indices].tolist())
        rest = [t for t in row.tolist() if t not in unsure | moved]
        want = want - logp[rest].mean() - lam_h * entropy[list(unsure)].mean() + lam_k * far[list(moved)].mean()
    want = want / 2
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, logits, retain_graph=True)[0], torch.autograd.grad(want, logits)[0]
    )
    assert term.needs == {"entropy", "ref_full"} and term.reduce == "seq" and term.on == "dataset"
