"""Supervised learning that watches the model it starts from: f-divergences to the data, and tokens that are left out.

Both read rows of a data set (``on: dataset``) and the whole distributions of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Share
from rlkit.errors import ConfigError
from rlkit.objective import On, Reduce
from rlkit.objective.divergences import BOUND, Generator, by_score, generator, label, of_samples
from rlkit.objective.full_vocab import FullDivergence
from rlkit.types import Batch, New, PerToken


@dataclass(frozen=True)
class Conjugate(Generator):
    """``h(u) = f*(f'(u)) = u f'(u) - f(u)``, what the dual of an f-divergence adds up under the reference; ``h'(u) = u f''(u)``."""

    of: Generator

    def value(self, a: Tensor) -> Tensor:
        return self.of.slope(a) - self.of.value(a)

    def slope(self, a: Tensor) -> Tensor:
        with torch.enable_grad():
            x = a.detach().requires_grad_()
            return torch.autograd.grad(self.of.slope(x).sum(), x)[0]


@dataclass(frozen=True, kw_only=True)
class FSFT(FullDivergence):
    """Matching the data D under an f-divergence: ``-f'(u)`` of the data's token plus ``sum_v ref_v f*(f'(u_v))``, ``u = pi / ref``.

    The minimum over policies is the data's own distribution, for every strictly convex f. With ``f: reverse_kl`` it is ``NLL`` but for
    constants. Both terms are those of each token's distribution; bounded divergences (``js``, ``hellinger``) are the useful ones: the
    weight ``u f''(u)`` of a token of the data falls as its probability grows beyond the start model's.

    Source: f-SFT (Implicit Reward as the Bridge; the dual derived here and checked by enumeration; published constants may differ).
    """

    f: str | Generator = "js"
    reduce: Reduce = "token"
    on: On = "dataset"

    def __post_init__(self) -> None:
        super().__post_init__()
        of_samples(self.f, self.parameter, "FSFT")
        if self.f == "tv" or self.anchor != "ref" or self.level != "token":
            raise ConfigError(
                "FSFT: the divergence must be smooth (tv is not), the anchor ref, and the level token; leave out what says otherwise."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref", "ref_full"})

    @property
    def generator(self) -> Generator:
        return Conjugate(generator(self.f, self.parameter))

    @property
    def name(self) -> str:
        return f"FSFT_{label(self.f, self.parameter)}"

    def __call__(self, new: New, b: Batch) -> Tensor:
        f = Conjugate(generator(self.f, self.parameter))
        a = (new.logp.detach() - b.logp["ref"]).clamp(-BOUND, BOUND)
        return by_score(-f.of.slope(a), -f.slope(a), new) + new.full[self.name]


@dataclass(frozen=True, kw_only=True)
class EKSFT(FullDivergence):
    """Supervised learning without the tokens at which the policy is most uncertain or farthest from its start; those are regularised.

    In each row, ``M_H`` are the ``share`` of tokens with the largest entropy H, ``M_K`` those with the largest ``K = KL(pi‖ref)``. The cost
    is the mean of ``-log pi`` over tokens in neither, minus ``entropy`` times the mean of H over ``M_H``, plus ``kl`` times the mean of K
    over ``M_K``. Which tokens these are is no matter of gradients.

    Attributes:
        entropy: per nat; the published 0.05 is of ``H / log V``: 0.0042 for a vocabulary of 150,000.

    Source: EKSFT 2605.29303 (the released code's union and constants; its masks off by one token and its KL with probabilities in the
        place of log-probabilities are mended, and tokens are chosen by row, so that the result does not depend on how a batch is cut).
    """

    share: Share = 0.2
    entropy: NonNegative = 0.0042
    kl: NonNegative = 0.05
    reduce: Reduce = "seq"
    on: On = "dataset"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "ref_full"})

    @property
    def name(self) -> str:
        return "EKSFT"

    def __call__(self, new: New, b: Batch) -> Tensor:
        far = new.full[self.name]
        assert new.entropy is not None
        unsure, moved = (top_share(b, x.detach(), self.share) for x in (new.entropy, far))
        rest = 1 - torch.maximum(unsure, moved)

        def mean_over(chosen: Tensor, x: Tensor) -> Tensor:
            """So that the mean over a row's tokens is that over the chosen ones."""
            return x * (chosen * b.seq_len().to(x.dtype)[b.seq] / b.seq_sum(chosen).clamp(min=1)[b.seq])

        return (
            mean_over(rest, -new.logp) - self.entropy * mean_over(unsure, new.entropy) + self.kl * mean_over(moved, far)
        )


def top_share(b: Batch, x_N: Tensor, share: float) -> PerToken:
    """1 at the ``floor(share * T)`` tokens of each row with the largest ``x``, 0 at the others; of equal ones the first counts."""
    order = torch.argsort(x_N, descending=True, stable=True)
    order = order[torch.argsort(b.seq[order], stable=True)]
    seq = b.seq[order]
    rank = torch.arange(b.N, device=seq.device) - torch.searchsorted(seq, seq)
    most = (share * b.count()).floor()[seq]
    return torch.zeros_like(x_N).index_fill(0, order[rank < most], 1.0)
