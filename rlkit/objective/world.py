"""A world small enough to sum over every response: a policy over three tokens whose responses end at token 0 or after three tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlkit.objective.divergences import Generator
from rlkit.objective.full_vocab import WholeVocabulary
from rlkit.types import Batch, New

V, LONGEST = 3, 3
Sampled = Literal["on-policy", "off-policy", "from the reference"]


class World:
    """A tabular policy with its anchors. Off-policy, the sampling policy is another one, a few updates away."""

    def __init__(self, sampled: Sampled = "on-policy", seed: int = 0, distance: float = 0.6) -> None:
        g = torch.Generator().manual_seed(seed)
        # Prefixes that have not ended.
        inner = [p for t in range(LONGEST) for p in itertools.product(range(1, V), repeat=t)]
        self.row = {p: i for i, p in enumerate(inner)}
        self.responses = [(*p, c) for p in inner for c in range(V) if c == 0 or len(p) == LONGEST - 1]
        rows = [self.row[y[:t]] for y in self.responses for t in range(len(y))]
        self.rows, self.tokens = torch.tensor(rows), torch.tensor([c for y in self.responses for c in y])
        self.length = torch.tensor([len(y) for y in self.responses])
        self.seq = torch.repeat_interleave(torch.arange(len(self.responses)), self.length)

        def table(scale: float) -> Tensor:
            return scale * torch.randn(len(inner), V, generator=g, dtype=torch.float64)

        self.logits = table(0.7).requires_grad_()
        self.ref, self.teacher = ((self.logits.detach() + table(distance)).log_softmax(-1) for _ in range(2))
        away = table(0.4)
        self.mu = {
            "on-policy": self.pi().detach(),
            "off-policy": (self.logits.detach() + away).log_softmax(-1),
            "from the reference": self.ref,
        }[sampled]
        self.reward = torch.randn(len(self.responses), generator=g, dtype=torch.float64)

    def pi(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def at(self, table: Tensor) -> Tensor:
        """Log-probs of every token of every response, ``[N]``."""
        return table[self.rows, self.tokens]

    def whole(self, table: Tensor) -> Tensor:
        """Log-probs of responses, ``[S]``."""
        return self._sum(self.at(table))

    def _sum(self, x_N: Tensor) -> Tensor:
        return x_N.new_zeros(len(self.responses)).index_add(0, self.seq, x_N)

    def anchor(self, anchor: Any) -> Tensor:
        """An anchor's table of log-probs; a geometric mixture is normalised here."""
        tables = {"ref": self.ref, "teacher": self.teacher, "old": self.mu, "behav": self.mu}
        if isinstance(anchor, str):
            return tables[anchor]
        w = torch.tensor(anchor.weights or (1.0,) * len(anchor.of), dtype=torch.float64)
        stacked, w = torch.stack([tables[name] for name in anchor.of]), (w / w.sum())[:, None, None]
        return (w * stacked).sum(0).log_softmax(-1) if anchor.mean == "geometric" else (stacked + w.log()).logsumexp(0)

    def batch(self) -> Batch:
        """All responses once; ``norm`` is set by :meth:`weights`."""
        S = len(self.responses)
        return Batch(
            seq=self.seq,
            group=torch.zeros(S, dtype=torch.long),
            source=torch.zeros(S, dtype=torch.long),
            reward=self.reward,
            logp={
                "behav": self.at(self.mu),
                "old": self.at(self.mu),
                "ref": self.at(self.ref),
                "teacher": self.at(self.teacher),
            },
            adv=(self.reward - (self.whole(self.mu).exp() * self.reward).sum())[self.seq],
        )

    def weights(self, reduce: str, const: float = 1.0) -> Tensor:
        """The weight of each token of a response in the expected loss: its probability times what the reduction does to it, ``[S]``."""
        p = self.whole(self.mu).exp()
        expected = (p * self.length).sum()
        return {"sum": p, "const": p / const, "seq": p / self.length, "token": p / expected, "prompt": p / expected}[
            reduce
        ]

    def new(self, full: Sequence[WholeVocabulary] = ()) -> New:
        pi = self.pi()
        entropy = -(pi.exp() * pi).sum(-1)[self.rows]
        found = {
            t.name: self.per_prefix(t.generator, t.anchor, tail=t.top_k is not None and t.top_k < V)[self.rows]
            for t in full
        }
        return New(self.at(pi), entropy, torch.zeros_like(entropy), found)

    def per_prefix(self, f: Generator, anchor: Any, tail: bool = False) -> Tensor:
        """``D_f(pi‖anchor)`` of the next token's distribution after each prefix; with ``tail`` all tokens but one are one bucket."""
        p, q = self.pi(), self.anchor(anchor)
        if tail:
            p, q = (torch.stack([x[:, 0], x[:, 1:].logsumexp(-1)], -1) for x in (p, q))
        return (p.exp() * f.among(None, torch.eye(p.shape[-1])).at(p.detach(), q).value(p - q)).sum(-1)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]


def words(f: str, anchor: str) -> str:
    """A divergence as people write it."""
    return {
        "reverse_kl": f"KL(pi‖{anchor})",
        "reverse_ukl": f"KL(pi‖{anchor})",
        "forward_kl": f"KL({anchor}‖pi)",
        "forward_ukl": f"KL({anchor}‖pi)",
    }.get(f, f"{f}(pi‖{anchor})")
