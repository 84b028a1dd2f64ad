"""A world small enough to enumerate: every response of T tokens from a vocabulary of V, with its exact probability.

The oracle of every formula: expectations are sums over all responses, and gradients are autograd's of those sums.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rlkit.objective import Term, loss
from rlkit.types import Batch, New

V, T = 3, 2


class World:
    def __init__(self, seed: int = 0, off_policy: bool = False, scale: float = 0.7) -> None:
        g = torch.Generator().manual_seed(seed)
        self.sequences = list(itertools.product(range(V), repeat=T))
        self.prefixes = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
        n = len(self.prefixes)

        def table() -> Tensor:
            return torch.randn(n, V, generator=g, dtype=torch.float64) * scale

        self.logits = table().requires_grad_()  # the policy's parameters
        self.anchor = table().log_softmax(-1)
        self.mu = table().log_softmax(-1) if off_policy else self.pi().detach()
        self.reward = torch.randn(len(self.sequences), generator=g, dtype=torch.float64)

    def pi(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def _tokens(self) -> tuple[Tensor, Tensor]:
        rows = [self.prefixes.index(s[:t]) for s in self.sequences for t in range(T)]
        return torch.tensor(rows), torch.tensor([c for s in self.sequences for c in s])

    def at(self, table: Tensor) -> Tensor:
        """Log-probs of all sampled tokens ``[S * T]`` under a table of log-probs."""
        rows, tokens = self._tokens()
        return table[rows, tokens]

    def of_sequence(self, table: Tensor) -> Tensor:
        """Log-prob of every response ``[S]``."""
        return self.at(table).view(-1, T).sum(1)

    def batch(self, sampled_from: Tensor | None = None, **logp: Tensor) -> Batch:
        """All responses; a cost's weight is the exact probability of its response under the sampling policy."""
        S = len(self.sequences)
        mu = self.mu if sampled_from is None else sampled_from
        b = Batch(
            seq=torch.arange(S).repeat_interleave(T),
            group=torch.zeros(S, dtype=torch.long),
            source=torch.zeros(S, dtype=torch.long),
            reward=self.reward,
            logp={"behav": self.at(mu), "ref": self.at(self.anchor), **{k: self.at(v) for k, v in logp.items()}},
        )
        return b.replace(norm=self.of_sequence(mu).exp()[None])

    def expected(self, term: Term, b: Batch, entropy: Tensor | None = None) -> Tensor:
        """The exact expected cost, differentiable as the term is."""
        return loss((term,), New(self.at(self.pi()), entropy), b, (1.0,))[0]

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]

    def per_prefix(self, divergence: Tensor, visited_by: Tensor) -> Tensor:
        """``sum over prefixes of P(prefix) * divergence[prefix]`` with the visiting probabilities frozen."""
        p = (
            torch.stack(
                [
                    sum(
                        (visited_by[self.prefixes.index(x[:t]), x[t]] for t in range(len(x))),
                        torch.zeros((), dtype=torch.float64),
                    )
                    for x in self.prefixes
                ]
            )
            .exp()
            .detach()
        )
        return (p * divergence).sum()
