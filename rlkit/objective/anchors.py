"""The policies that a distance is measured to: one, or several as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from rlkit.bounds import Bounded
from rlkit.errors import ConfigError
from rlkit.types import Batch, PerToken

Policy = Literal["ref", "old", "behav", "teacher"]


@dataclass(frozen=True)
class Mixture(Bounded):
    """An anchor made of several: ``arithmetic``, ``q = sum_i w_i q_i``, or ``geometric``, ``q ~ prod_i q_i^{w_i}``.

    The geometric mean is not normalised over the vocabulary; its missing constant does not depend on the policy and has no gradient
    in a reverse KL, which is the only divergence that accepts it. ``weights`` are normalised; null: equal.

    Source: derived here: the barycentre of a forward KL is the arithmetic mean, that of a reverse KL the geometric one.
    """

    of: tuple[Policy, ...]
    weights: tuple[float, ...] | None = None
    mean: Literal["arithmetic", "geometric"] = "arithmetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.of) < 2 or len(set(self.of)) < len(self.of):
            raise ConfigError(f"anchor Mixture needs two or more different policies in `of`; found {list(self.of)}.")
        if self.weights is not None and (len(self.weights) != len(self.of) or min(self.weights) <= 0):
            raise ConfigError(
                f"anchor Mixture has {len(self.of)} policies; `weights` must be as many positive numbers, found "
                f"{list(self.weights)}."
            )

    def log_prob(self, b: Batch) -> PerToken:
        weights = self.weights or (1.0,) * len(self.of)
        w = [x / sum(weights) for x in weights]
        if self.mean == "geometric":
            return sum(
                (wi * b.logp[name] for wi, name in zip(w, self.of, strict=True)), torch.zeros_like(b.logp["behav"])
            )
        return torch.stack([b.logp[name] + math.log(wi) for wi, name in zip(w, self.of, strict=True)]).logsumexp(0)


Anchor = Policy | Mixture


def anchor_needs(anchor: Anchor) -> frozenset[str]:
    return frozenset(anchor.of) if isinstance(anchor, Mixture) else frozenset({anchor})


def anchor_name(anchor: Anchor) -> str:
    return "+".join(anchor.of) if isinstance(anchor, Mixture) else anchor


def anchor_log_prob(anchor: Anchor, b: Batch) -> PerToken:
    return anchor.log_prob(b) if isinstance(anchor, Mixture) else b.logp[anchor]


def check_geometric(anchor: Anchor, reverse: bool, what: str) -> None:
    """Raises ConfigError where an anchor without its normaliser would be wrong."""
    if isinstance(anchor, Mixture) and anchor.mean == "geometric" and not reverse:
        raise ConfigError(
            f"{what}: a geometric mixture is not normalised, which only a reverse KL tolerates. Use mean: arithmetic, or a "
            "reverse KL."
        )


def anchors_of(needs: frozenset[str]) -> tuple[Anchor, ...]:
    """Those that a part may be compared with which says no more than what it reads."""
    return ("ref", "old", "teacher") if "teacher" in needs else ("ref", "old")
