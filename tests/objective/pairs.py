"""Ragged pairs and labelled responses for oracles that know no batch: each response is a tensor of its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.objective import Term, is_marking
from rlkit.types import SOURCES, Batch, New

LENGTHS = (
    3,
    5,
    1,
    4,
    2,
    2,
    7,
    3,
)  # of responses; rows 2k and 2k + 1 are a pair, of which the second is the better one where k is odd
CLASSES = 6


@dataclass(frozen=True)
class Ragged:
    """A batch of pairs, and its responses one by one: ``policy[s]`` are log-probs ``[T]`` that lead to the leaf ``logits``."""

    b: Batch
    new: New
    logits: Tensor  # [N, V], a leaf
    ref_logits: Tensor  # [N, V]
    policy: Sequence[Tensor]
    ref: Sequence[Tensor]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        assert self.b.pairs is not None
        return [(int(i), int(j)) for i, j in self.b.pairs]

    def of(self, x_N: Tensor) -> Sequence[Tensor]:
        """Values of tokens, response by response."""
        return x_N.split(LENGTHS)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]


def ragged(seed: int = 0, scale: float = 1.0) -> Ragged:
    g = torch.Generator().manual_seed(seed)
    S, N = len(LENGTHS), sum(LENGTHS)
    tokens = torch.randint(CLASSES, (N,), generator=g)
    logits, other = (scale * torch.randn(N, CLASSES, generator=g, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    logp, ref = (x.log_softmax(-1).gather(-1, tokens[:, None])[:, 0] for x in (logits, other))
    pairs = [(2 * k + 1, 2 * k) if k % 2 else (2 * k, 2 * k + 1) for k in range(S // 2)]
    kinds = torch.tensor([SOURCES.index("rejected")] * S)
    kinds[[w for w, _ in pairs]] = SOURCES.index("chosen")
    length = torch.tensor(LENGTHS) + 1  # a prompt of one token
    first = length.cumsum(0) - length
    action = torch.cat([f + 1 + torch.arange(n) for f, n in zip(first.tolist(), LENGTHS, strict=True)])
    b = Batch(
        seq=torch.repeat_interleave(torch.arange(S), torch.tensor(LENGTHS)),
        group=torch.arange(S) // 2,
        source=kinds,
        reward=(kinds == SOURCES.index("chosen")).double(),
        logp={"ref": ref, "old": logp.detach(), "behav": torch.zeros(N, dtype=torch.float64)},
        pairs=torch.tensor(pairs),
        ids=torch.zeros(int(length.sum()), dtype=torch.long).index_put((action,), tokens),
        length=length,
        action=action,
    )
    return Ragged(b, New(logp), logits, other, logp.split(LENGTHS), ref.split(LENGTHS))


def marked(term: Term, b: Batch, seed: int = 0) -> Batch:
    """The batch with what the term marks."""
    if not is_marking(term):
        return b
    return b.replace(marks={term.name: term.mark(b, torch.Generator().manual_seed(seed))})


Oracle = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # log pi and log ref of the chosen, then of the rejected; [T] each


def by_pairs(r: Ragged, oracle: Oracle) -> Tensor:
    """The costs of pairs, one after the other."""
    return torch.stack([oracle(r.policy[i], r.ref[i], r.policy[j], r.ref[j]) for i, j in r.pairs])


def two(sums: tuple[float, float, float, float], lengths: tuple[int, int]) -> tuple[New, Batch]:
    """One pair of known sums of log-probs (policy and reference of the chosen, then of the rejected), spread evenly over its tokens."""
    each = [
        torch.full((n,), total / n, dtype=torch.float64)
        for total, n in zip(sums, (lengths[0],) * 2 + (lengths[1],) * 2, strict=True)
    ]
    b = Batch(
        seq=torch.tensor([0] * lengths[0] + [1] * lengths[1]),
        group=torch.zeros(2, dtype=torch.long),
        source=torch.tensor([SOURCES.index("chosen"), SOURCES.index("rejected")]),
        reward=torch.tensor([1.0, 0.0], dtype=torch.float64),
        logp={"ref": torch.cat([each[1], each[3]])},
        pairs=torch.tensor([[0, 1]]),
    )
    return New(torch.cat([each[0], each[2]])), b
