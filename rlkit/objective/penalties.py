"""Penalties without a gradient of their own: subtracted from rewards before advantages, or from advantages after them.

The rule behind all of them: with the score function, the coefficient whose expected gradient is that of ``D_f(pi‖anchor)`` is ``f'(u)``,
not the estimator ``f(u) / u`` of its value. The two agree for the reverse KL only, which is why only it may be a plain reward.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective.advantages import Advantage, Advantages
from rlkit.objective.anchors import (
    Anchor,
    anchor_log_prob,
    anchor_name,
    anchor_needs,
    anchors_of,
    check_geometric,
)
from rlkit.objective.coefficients import Coefficient, as_coefficient
from rlkit.objective.divergences import BOUND, Generator, generator, label, of_samples
from rlkit.plug import Plug
from rlkit.types import SOURCES, Batch, PerToken

Placement = Literal["reward", "advantage"]


@dataclass(frozen=True, kw_only=True)
class Penalty(Plug):
    """Base of every penalty. A user's own is a subclass with ``__call__``; ``needs`` as of a term.

    Attributes:
        coef: a float, or a Coefficient that changes it over the run.
        acknowledge: ``rlkit check`` accepts that it follows another gradient than its name says.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.penalties",)

    coef: float | Coefficient = 0.05
    acknowledge: bool = False

    @property
    def placement(self) -> Placement:
        """Whether it is subtracted from rewards before advantages are made of them, or from advantages."""
        return "reward"

    @property
    def needs(self) -> frozenset[str]:
        """What it reads."""
        return frozenset()

    @property
    def name(self) -> str:
        """The penalty's name in metrics."""
        return type(self).__name__

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The policies that it measures a distance to, for ``rlkit check``."""
        return anchors_of(self.needs)

    @abstractmethod
    def __call__(self, b: Batch) -> PerToken:
        """The cost of each token, no gradient."""


@dataclass(frozen=True, kw_only=True)
class KLReward(Penalty):
    """``log(pi_old / anchor)`` of every token (``estimator: k1``), in the reward or in the advantage.

    ``placement`` and ``credit`` are a row of the table.

    ======================  ============================================================================
    placement, credit       expected gradient of ``coef`` times it
    ======================  ============================================================================
    reward (sequence)       KL(pi‖anchor) of whole responses, as a part of the reward: the advantage's baseline and scale apply to it
    advantage, sequence     the same KL, untouched by the advantage's scale
    advantage, token        KL(pi‖anchor) of each token's distribution, prefixes frozen: as k2 in the loss
    ======================  ============================================================================

    In the advantage it is inside the clip of PPO-like losses, which is where RPG has it.

    Source: Ziegler et al. 1909.08593, eq. 2; RPG 2505.17508 (exactness by enumeration in the tests).
    """

    estimator: Literal["k1", "k2", "k3"] = "k1"
    anchor: Anchor = "ref"
    placement: Placement = "reward"
    credit: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator != "k1":
            instead = "reverse KL minus forward KL" if self.estimator == "k3" else "E[k2 * score], which is no KL"
            raise ConfigError(
                f"KLReward(estimator={self.estimator!r}): in the reward its expected gradient is that of "
                f"{instead}. Use k1 here, or k2 in the loss: objective: [{{type: KL, estimator: k2}}]."
            )
        if self.placement == "reward" and self.credit == "token":
            raise ConfigError(
                "KLReward: a reward is credited to all earlier tokens too. For credit: token use placement: advantage."
            )

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return anchor_needs(self.anchor) | {"old"}

    @property
    def name(self) -> str:
        return f"KLReward({anchor_name(self.anchor)})"

    def __call__(self, b: Batch) -> Tensor:
        cost = b.logp["old"] - anchor_log_prob(self.anchor, b)
        return b.reward_to_go(cost) if self.placement == "advantage" and self.credit == "sequence" else cost


@dataclass(frozen=True, kw_only=True)
class DivergenceReward(Penalty):
    """``f'(u) - f'(1)`` of every token subtracted from its advantage: the gradient of ``D_f(pi‖anchor)`` inside the clip. ``f`` and
    ``parameter`` are those of ``Divergence``.

    ``credit: token`` is the divergence of each token's distribution, prefixes frozen; ``sequence`` adds the values ``f(u) / u`` of all
    later tokens, which gives the exact gradient of ``E[sum_t D_t]``.

    Source: f-DPG 2302.08215, the score-function identity (exact by enumeration in the tests).
    """

    f: str | Generator = "reverse_kl"
    parameter: float | None = None
    anchor: Anchor = "ref"
    credit: Literal["sequence", "token"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        of_samples(self.f, self.parameter, "DivergenceReward")
        check_geometric(self.anchor, self.f in ("reverse_kl", "reverse_ukl"), f"DivergenceReward {self.f}")

    @property
    def placement(self) -> Placement:
        return "advantage"

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return anchor_needs(self.anchor) | {"old"}

    @property
    def name(self) -> str:
        return f"DivergenceReward_{label(self.f, self.parameter)}({anchor_name(self.anchor)})"

    def __call__(self, b: Batch) -> Tensor:
        g = generator(self.f, self.parameter)
        a = (b.logp["old"] - anchor_log_prob(self.anchor, b)).clamp(-BOUND, BOUND)
        own = g.slope(a) - g.slope(torch.zeros_like(a))
        if self.credit == "token":
            return own
        value = g.value(a)
        return own + b.reward_to_go(value) - value


def weighted(penalties: Sequence[Penalty], coefs: Sequence[float], placement: Placement, b: Batch) -> Tensor | None:
    """The sum of ``coef * cost`` over the penalties of one placement, ``[N]``; None if there is none."""
    total = None
    for penalty, coef in zip(penalties, coefs, strict=True):
        if penalty.placement != placement:
            continue
        scale_S = as_coefficient(penalty.coef).per_sequence(b)
        cost = coef * penalty(b) * (1.0 if scale_S is None else scale_S[b.seq])
        total = cost if total is None else total + cost
    return total


def with_advantages(b: Batch, advantage: Advantage, penalties: Sequence[Penalty], coefs: Sequence[float]) -> Batch:
    """The batch with ``token_reward``, ``adv`` and ``returns``: rewards with their penalties, advantages of them, and penalties on those.

    An episode is one sequence here, however many its tokens were cut into. Rows that were not sampled here take no part: theirs are 0. A
    batch of such rows alone has none.
    """
    sampled = b.source == SOURCES.index("policy")
    if not bool(sampled.any()):
        return b
    if not bool(sampled.all()):
        part, tok = with_advantages(b.rows(sampled), advantage, penalties, coefs), sampled[b.seq]

        def whole(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.new_zeros(b.N).masked_scatter(tok, x)

        return dataclasses.replace(
            b, token_reward=whole(part.token_reward), adv=whole(part.adv), returns=whole(part.returns)
        )
    e = b.by_episode()
    cost = weighted(penalties, coefs, "reward", e)
    e = dataclasses.replace(e, token_reward=None if cost is None else -cost)
    found = Advantages.of(advantage, e)
    e = dataclasses.replace(e, adv=found.adv, returns=found.returns)
    cost = weighted(penalties, coefs, "advantage", e)
    return dataclasses.replace(
        b,
        token_reward=e.token_reward,
        adv=found.adv if cost is None else found.adv - cost,
        returns=found.returns,
    )
