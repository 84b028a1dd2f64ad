"""Penalties in the reward: they are subtracted from token rewards before advantages are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rlkit.types import Batch

Anchor = Literal["ref", "teacher"]


class Penalty(Protocol):
    """A frozen dataclass with a coefficient; ``__call__`` gives the cost of each token, ``[N]``, no gradient."""

    coef: Any

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def name(self) -> str: ...

    def __call__(self, b: Batch) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class KLReward:
    """``-coef * log(pi_old / anchor)`` on every token: with reward-to-go, the exact gradient of the *sequence* KL(pi‖anchor).

    Only k1 belongs here: k2 and k3 in the reward have another expected gradient (k3: that of reverse minus forward KL).

    Source: Ziegler et al. 1909.08593, eq. 2; exactness by enumeration (tests).
    """

    estimator: Literal["k1", "k2", "k3"] = "k1"
    anchor: Anchor = "ref"
    coef: Any = 0.05

    def __post_init__(self) -> None:
        if self.estimator != "k1":
            instead = "reverse KL minus forward KL" if self.estimator == "k3" else "E[k2 * score], which is no KL"
            raise ValueError(f"KLReward(estimator={self.estimator!r}): in the reward its expected gradient is that of "
                             f"{instead}. Use k1 here, or k2 in the loss: objective: [{{type: KL, estimator: k2}}].")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.anchor, "old"})

    @property
    def name(self) -> str:
        return f"KLReward({self.anchor})"

    def __call__(self, b: Batch) -> Tensor:
        return b.logp["old"] - b.logp[self.anchor]


def apply_penalties(penalties: Sequence[Penalty], coefs: Sequence[float], b: Batch) -> None:
    """Fills ``b.token_reward`` with minus the weighted costs."""
    if not penalties:
        return
    total = torch.zeros_like(b.logp["behav"])
    for penalty, coef in zip(penalties, coefs, strict=True):
        cost = penalty(b)
        scale = getattr(penalty.coef, "per_sequence", None)
        total -= coef * (cost if scale is None else cost * scale(b)[b.seq])
    b.token_reward = total
