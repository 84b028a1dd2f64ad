"""Losses on pairs against implementations of their equations on padded rows, in values and in gradients."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlkit.errors import ConfigError
from rlkit.objective import On, PairTerm, Term, loss, normalise
from rlkit.objective.losses import NLL
from rlkit.objective.preference import DPO
from rlkit.types import SOURCES, Batch, New

V = 6
BETTER = (5, 1, 7, 3, 2)  # tokens of the responses of each pair
WORSE = (2, 4, 7, 1, 9)


class Padded:
    """Ragged pairs, with every response as a row of tables that are padded on the right; ``mask`` ``[S, T]``."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.lengths = [n for pair in zip(BETTER, WORSE, strict=True) for n in pair]  # better, worse, better, ...
        self.mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in self.lengths], batch_first=True)
        self.tokens = torch.randint(V, self.mask.shape, generator=g)
        self.logits = torch.randn(*self.mask.shape, V, generator=g, dtype=torch.float64).requires_grad_()
        self.ref = torch.randn(*self.mask.shape, generator=g, dtype=torch.float64) - 2
        self.better, self.worse = slice(0, None, 2), slice(1, None, 2)

    def logp(self) -> Tensor:
        """Of every token, ``[S, T]``; what stands on the padding is masked by whoever reads it."""
        return self.logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]

    def delta(self) -> Tensor:
        return ((self.logp() - self.ref) * self.mask).sum(1)

    def batch(self, **more: Tensor) -> tuple[New, Batch]:
        """The same as a batch of flat tokens, with a demonstration and a sampled response that no term on pairs may read."""
        own = self.mask.nonzero(as_tuple=True)
        S = len(self.lengths)
        seq = torch.cat([own[0], torch.tensor([S, S, S + 1])])
        extra = torch.tensor([-0.5, -9.0, -3.0], dtype=torch.float64)
        names = [*("chosen", "rejected") * (S // 2), "dataset", "policy"]
        b = Batch(
            seq=seq,
            group=torch.cat([torch.arange(S) // 2, torch.tensor([S, S + 1])]),
            source=torch.tensor([SOURCES.index(name) for name in names]),
            reward=torch.zeros(S + 2, dtype=torch.float64),
            logp={"ref": torch.cat([self.ref[own], extra]), "behav": torch.zeros(len(seq), dtype=torch.float64)},
            pairs=torch.arange(S).view(-1, 2),
            **more,
        )
        return New(torch.cat([self.logp()[own], extra])), b


def value_and_gradient(term: Term, p: Padded) -> tuple[Tensor, Tensor]:
    new, b = p.batch()
    value, _ = loss((term,), new, b.replace(norm=normalise((term,), b)), (1.0,))
    return value.detach(), torch.autograd.grad(value, p.logits)[0]


def agree(term: Term, want: Tensor, p: Padded) -> None:
    value, gradient = value_and_gradient(term, p)
    torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(want, p.logits, retain_graph=True)[0], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo(beta: float) -> None:
    p = Padded()
    h = p.delta()[p.better] - p.delta()[p.worse]
    agree(DPO(beta=beta), (-(torch.sigmoid(beta * h)).log()).mean(), p)
    agree(DPO(beta=beta, reduce="const", const=4.0), -(torch.sigmoid(beta * h)).log().mean() / 4, p)


def test_the_gradient_of_dpo_weighs_a_pair_by_how_wrong_it_is() -> None:
    """Eq. 7: ``-beta sigmoid(-beta h) (grad log pi(chosen) - grad log pi(rejected))``."""
    p = Padded(1)
    h = (p.delta()[p.better] - p.delta()[p.worse]).detach()
    summed = (p.logp() * p.mask).sum(1)
    surrogate = (-0.3 * torch.sigmoid(-0.3 * h) * (summed[p.better] - summed[p.worse])).mean()
    torch.testing.assert_close(
        value_and_gradient(DPO(beta=0.3), p)[1], torch.autograd.grad(surrogate, p.logits)[0], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("reduce", ["token", "seq", "sum"])
def test_nll_of_the_better_halves(reduce: str) -> None:
    p = Padded(2)
    logp, mask = p.logp()[p.better], p.mask[p.better]
    want = {
        "token": -(logp * mask).sum() / mask.sum(),
        "seq": -((logp * mask).sum(1) / mask.sum(1)).mean(),
        "sum": -(logp * mask).sum(1).mean(),
    }
    agree(NLL(on="chosen", reduce=reduce), want[reduce], p)


def test_a_term_on_pairs_reads_no_other_rows_and_its_metrics_are_those_of_the_pairs() -> None:
    p = Padded(3)
    new, b = p.batch()
    terms = (DPO(), NLL(on="dataset"), NLL())
    b = b.replace(norm=normalise(terms, b))
    assert (b.norm[0] > 0).tolist() == [True] * 10 + [False] * 2 and b.norm[0].sum() == pytest.approx(2)
    assert b.norm[1].tolist() == [0.0] * 10 + [0.5, 0] and b.norm[2].tolist() == [0.0] * 11 + [1]
    _, stats = loss(terms, new, b, (1.0, 1.0, 1.0))
    chosen, rejected = (0.1 * p.delta()[half] for half in (p.better, p.worse))
    assert stats["margin/DPO"] == pytest.approx(float((chosen - rejected).mean()), rel=1e-5)
    assert stats["accuracy/DPO"] == pytest.approx(float((chosen > rejected).double().mean()))
    assert stats["chosen/DPO"] == pytest.approx(float(chosen.mean()), rel=1e-5) and "margin/NLL" not in stats


def test_a_batch_keeps_the_pairs_whose_halves_it_keeps() -> None:
    _, b = Padded().batch()
    keep = torch.ones(b.S, dtype=torch.bool)
    keep[[0, 5]] = False
    part = b.rows(keep)
    assert part.pairs.tolist() == [[1, 2], [4, 5], [6, 7]] and part.P == 3
    better, worse = part.halves(part.seq_len())
    assert (better.tolist(), worse.tolist()) == ([1.0, 3.0, 2.0], [4.0, 1.0, 9.0])
    assert b.rows(torch.arange(b.S) > 9).P == 0


def test_a_row_may_be_in_several_pairs() -> None:
    p = Padded(4)
    new, b = p.batch()
    b = b.replace(pairs=torch.tensor([[0, 1], [0, 3], [2, 3]]), group=torch.zeros_like(b.group))
    term = DPO(beta=1.0)
    value, _ = loss((term,), new, b.replace(norm=normalise((term,), b)), (1.0,))
    d = p.delta()
    want = -torch.stack([d[0] - d[1], d[0] - d[3], d[2] - d[3]]).sigmoid().log().mean()
    torch.testing.assert_close(value, want)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reduce": "token"}, "DPO.reduce is 'token'; the cost of a pair is one number"),
        ({"on": "labelled"}, "DPO.on is 'labelled', where there are no pairs"),
    ],
)
def test_what_pairs_do_not_have_is_refused(change: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        DPO(**change)
    assert issubclass(DPO, PairTerm)


def test_a_cost_of_another_shape_is_refused_and_not_broadcast() -> None:
    """One pair and two sequences: torch would stretch a cost of either size over the other."""

    @dataclass(frozen=True, kw_only=True)
    class OfSequences(PairTerm):
        def __call__(self, new: New, b: Batch) -> Tensor:
            return b.seq_sum(new.logp)

    @dataclass(frozen=True, kw_only=True)
    class OfAll(Term):
        on: On = "dataset"

        def __call__(self, new: New, b: Batch) -> Tensor:
            return -new.logp.mean()

    new, b = Padded().batch()
    of_a_pair = b.rows(torch.arange(b.S) < 2)
    for term, batch, says in (
        (OfSequences(), b, "the cost of OfSequences has the shape [10]; it must be one number for each pair (5 here)"),
        (OfSequences(), of_a_pair, "has the shape [2]; it must be one number for each pair (1 here)"),
        (
            OfAll(),
            b,
            "the cost of OfAll has the shape []; it must be one number for each token (2 here) or sequence (1 here), whose mean",
        ),
    ):
        own = new if batch is b else New(new.logp[: of_a_pair.N])
        with pytest.raises(ConfigError, match=re.escape(says)):
            loss([term], own, batch.replace(norm=normalise([term], batch)), [1.0])
