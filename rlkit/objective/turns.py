"""Advantages of the turns of an episode: each turn compared with its like, or each turn as one action.

A turn is what one generation sampled (``Batch.turn``). Where every response is one turn they are the advantages of whole responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlkit.bounds import Share
from rlkit.errors import ConfigError
from rlkit.objective.advantages import Advantage, Advantages, Variance, at_tokens, discounted, ends, whiten
from rlkit.types import Batch


def by_turn(b: Batch) -> Batch:
    """The same tokens in the same order, with each turn as a sequence, and as its group the same turns of the prompt's episodes.

    The rewards are those of whole sequences still.
    """
    turn = torch.zeros_like(b.seq) if b.turn is None else b.turn
    most = int(turn.max()) + 1 if b.N else 1
    number = torch.unique_consecutive(b.seq * most + turn, return_inverse=True)[1]
    first = torch.searchsorted(number, torch.arange(int(number[-1]) + 1 if b.N else 0, device=number.device))
    of = b.seq[first]
    return b.replace(
        seq=number,
        group=torch.unique(b.group[of] * most + turn[first], return_inverse=True)[1],
        source=b.source[of],
        reward=b.reward[of],
        cols={k: v[of] for k, v in b.cols.items()},
        norm=None,
        prompt=tuple(b.prompt[i] for i in of.tolist()) if b.prompt else (),
        earned=None,
        turn=None,
        episode=None,
        pairs=None,
        ids=None,
        length=None,
        action=None,
    )


@dataclass(frozen=True, kw_only=True)
class TurnGAE(Advantage):
    """Generalised advantage estimation with a turn of an episode as one action.

    ``delta_k = r_k + gamma V_{k+1} - V_k``, ``A_k = sum_j (gamma lam)^j delta_{k+j}``: ``r_k`` is what turn ``k`` was rewarded with, the
    episode's own reward at its last turn, ``V_k`` the value before the turn's first token, and 0 after the last turn. All tokens of a turn
    have its ``A_k``, and ``A_k + V_k``, before whitening, is what their values are trained towards. So ``gamma`` and ``lam`` count turns,
    and what the environment says between two of them is a part of the step and takes none itself. A response of one turn has
    ``A = R - V`` of its first token.

    Attributes:
        whiten, variance: as of :class:`GAE`.

    Source: GAE 1506.02438, eq. 16 (with turns as actions).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten: bool = True
    variance: Variance = "population"

    def __call__(self, b: Batch) -> Advantages:
        assert b.value is not None
        t = by_turn(b)
        first = t.edge()[:-1]
        value, last = b.value.double()[first], ends(b.seq[first])
        following = torch.cat([value[1:], value.new_zeros(1)]).masked_fill(last, 0.0)
        reward = t.seq_sum(at_tokens(b))
        a = discounted(reward + self.gamma * following - value, last, self.gamma * self.lam)
        adv = a[t.seq]
        returns = (a + value)[t.seq].to(b.value.dtype)
        return Advantages((whiten(adv, self.variance) if self.whiten else adv).to(b.value.dtype), returns)


@dataclass(frozen=True, kw_only=True)
class PerTurn(Advantage):
    """The advantage ``of`` for each turn of an episode by itself: it is compared with the same turn of the group's other episodes.

    A turn counts as a response whose reward is ``G_k = sum_j gamma^j r_{k+j}``, what it and later turns were rewarded with (the episode's
    own reward at its last turn). With ``of: GroupNorm`` that is the group norm per turn, ``(G_k - mean) / (std + eps)`` over the episodes
    that have a turn ``k``; a turn that only one episode reaches is compared with nothing and gets 0 from it. Where every response is one
    turn, this is ``of`` itself.

    Source: MT-GRPO 2505.11821, turn-level advantages (from memory; there the two rewards are normalised apart and added).
    """

    of: Advantage
    gamma: Share = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if "value" in self.of.needs:
            raise ConfigError(
                f"PerTurn compares the turns of a group, but {type(self.of).__name__} reads values. Use advantage: {{type: TurnGAE}}."
            )

    @property
    def group(self) -> bool:
        return self.of.group

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    def __call__(self, b: Batch) -> Tensor:
        t = by_turn(b)
        first = t.edge()[:-1]
        to_go = discounted(t.seq_sum(at_tokens(b)), ends(b.seq[first]), self.gamma)
        own = 0.0 if b.token_reward is None else t.seq_sum(b.token_reward.double())  # `of` adds them up itself
        return Advantages.of(self.of, t.replace(reward=(to_go - own).to(b.reward.dtype))).adv
