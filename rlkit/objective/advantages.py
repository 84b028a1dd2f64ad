"""Advantages: from rewards to one number per action token, without gradient.

The reward of a sequence is ``R``; penalties such as ``KLReward`` add rewards to single tokens (``Batch.token_reward``).
A token's return is everything that is rewarded from it on, the sequence's own reward included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.types import Batch

NOTHING: frozenset[str] = frozenset()


class Advantage(Protocol):
    """A frozen dataclass; ``group`` says that it compares the responses of one prompt."""

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, b: Batch) -> Tensor:
        """``[N]``, no gradient."""
        ...


def sequence_reward(b: Batch) -> Tensor:
    """The whole reward of each sequence, token rewards included, ``[S]``."""
    return b.reward if b.token_reward is None else b.reward + b.seq_sum(b.token_reward)


def spread(b: Batch, baseline_S: Tensor) -> Tensor:
    """The return of each token minus its sequence's baseline, ``[N]``."""
    future = 0.0 if b.token_reward is None else b.reward_to_go(b.token_reward)
    return (b.reward - baseline_S)[b.seq] + future


def group_mean(b: Batch, x_S: Tensor) -> Tensor:
    """Mean over the prompt's responses, back on each response ``[S]``."""
    size = torch.bincount(b.group, minlength=b.G).clamp(min=1).to(x_S.dtype)
    return (b.group_sum(x_S) / size)[b.group]


def group_std(b: Batch, x_S: Tensor) -> Tensor:
    """Unbiased standard deviation over the prompt's responses (0 for a group of one), ``[S]``."""
    size = torch.bincount(b.group, minlength=b.G).to(x_S.dtype)
    square = b.group_sum((x_S - group_mean(b, x_S)) ** 2)
    return (square / (size - 1).clamp(min=1)).sqrt()[b.group]


@dataclass(frozen=True)
class Plain:
    """``A_t`` = return of the token: REINFORCE without a baseline."""

    needs: ClassVar[frozenset[str]] = NOTHING

    def __call__(self, b: Batch) -> Tensor:
        return spread(b, torch.zeros_like(b.reward))


@dataclass(frozen=True)
class GroupMean:
    """``A = R - mean(R of the group)``. Source: Dr.GRPO 2503.20783, RPG 2505.17508."""

    needs: ClassVar[frozenset[str]] = NOTHING
    group: ClassVar[bool] = True

    def __call__(self, b: Batch) -> Tensor:
        return spread(b, group_mean(b, sequence_reward(b)))


@dataclass(frozen=True)
class GroupNorm:
    """``A = (R - mean) / (std + eps)`` over the group, unbiased std. Source: GRPO 2402.03300, section 4.1.2.

    ``scale: batch`` divides by the standard deviation of the centred rewards of the whole batch (ScaleRL 2510.13786).
    """

    needs: ClassVar[frozenset[str]] = NOTHING
    group: ClassVar[bool] = True
    eps: float = 1e-6
    scale: Literal["group", "batch"] = "group"

    def __call__(self, b: Batch) -> Tensor:
        total = sequence_reward(b)
        centred = total - group_mean(b, total)
        std_S = group_std(b, total) if self.scale == "group" else centred.std(correction=0).expand_as(centred)
        return spread(b, group_mean(b, total)) / (std_S + self.eps)[b.seq]


@dataclass(frozen=True)
class RLOO:
    """``A_i = R_i - mean_{j != i} R_j`` (0 for a group of one). Source: 2402.14740, eq. 6."""

    needs: ClassVar[frozenset[str]] = NOTHING
    group: ClassVar[bool] = True

    def __call__(self, b: Batch) -> Tensor:
        total = sequence_reward(b)
        size = torch.bincount(b.group, minlength=b.G).to(total.dtype)[b.group]
        others = (group_mean(b, total) * size - total) / (size - 1).clamp(min=1)
        return spread(b, torch.where(size > 1, others, total))


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """Return of the token, then ``(A - mean) / std`` over all tokens of the batch.

    ``baseline: group`` first subtracts the group mean (REINFORCE++-baseline).

    Source: REINFORCE++ 2501.03262; variance floor 1e-8 as in OpenRLHF.
    """

    needs: ClassVar[frozenset[str]] = NOTHING
    baseline: Literal["none", "group"] = "none"

    @property
    def group(self) -> bool:
        return self.baseline == "group"

    def __call__(self, b: Batch) -> Tensor:
        base = group_mean(b, sequence_reward(b)) if self.group else torch.zeros_like(b.reward)
        a = spread(b, base)
        return (a - a.mean()) / a.var(correction=0).clamp(min=1e-8).sqrt()


@dataclass(frozen=True)
class LogMeanExp:
    """``A_i = R_i - tau log mean_{j != i} exp(R_j / tau)``: the leave-one-out soft value (PMD-partition 2602.05933)."""

    needs: ClassVar[frozenset[str]] = NOTHING
    group: ClassVar[bool] = True
    tau: float = 0.01

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ConfigError(
                f"LogMeanExp.tau is {self.tau}; it must be positive (0 would be the maximum of the others)."
            )

    def __call__(self, b: Batch) -> Tensor:
        r = sequence_reward(b)
        same = b.group[:, None] == b.group[None, :]
        others = same & ~torch.eye(b.S, dtype=torch.bool, device=r.device)
        z = torch.where(others, r[None, :] / self.tau, -torch.inf)
        count = others.sum(1)
        soft = self.tau * (z.logsumexp(1) - count.clamp(min=1).to(r.dtype).log())
        # As in the released code, exp((r_j - r_max) / tau) averaged over the others is at least 1e-8.
        top = torch.where(same, r[None, :], -torch.inf).amax(1)
        floor = top + self.tau * torch.log(torch.tensor(1e-8, dtype=r.dtype, device=r.device))
        return spread(b, torch.where(count > 0, torch.maximum(soft, floor), r))


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation with a value head; also fills ``Batch.returns`` for ``ValueMSE``.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = sum_k (gamma lam)^k delta_{t+k}``; the sequence's reward is at its last
    token; ``V`` after the last token is 0. ``whiten`` gives advantages mean 0 and standard deviation 1 over the batch.

    Source: GAE 1506.02438, eq. 16; whitening as in verl.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    def __call__(self, b: Batch) -> Tensor:
        assert b.value is not None
        r = torch.zeros_like(b.value) if b.token_reward is None else b.token_reward.clone()
        last = torch.cat([b.seq[1:] != b.seq[:-1], b.seq.new_ones(1, dtype=torch.bool)])
        r[last] += b.reward[b.seq[last]]
        following = torch.cat([b.value[1:], b.value.new_zeros(1)]).masked_fill(last, 0.0)
        delta = (r + self.gamma * following - b.value).tolist()
        out, running = [0.0] * b.N, 0.0
        ends = last.tolist()
        for t in range(b.N - 1, -1, -1):
            running = delta[t] + (0.0 if ends[t] else self.gamma * self.lam * running)
            out[t] = running
        a = b.value.new_tensor(out)
        b.returns = a + b.value
        return (a - a.mean()) / a.var(correction=0).clamp(min=1e-8).sqrt() if self.whiten else a


@dataclass(frozen=True)
class TokenKL:
    """``A_t = log teacher - log mu`` of the sampled token: on-policy distillation, reverse KL to the teacher.

    ``minus: ref`` compares the teacher with the reference instead of the policy: what the teacher learned (ERPD 2605.25582 [abstract]).
    ``clip`` bounds each token's signal; ``centre`` subtracts the batch mean.
    """

    teacher: Literal["teacher", "ref"] = "teacher"
    minus: Literal["behav", "ref"] = "behav"
    clip: float | None = None
    centre: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.teacher, self.minus})

    def __call__(self, b: Batch) -> Tensor:
        a = b.logp[self.teacher] - b.logp[self.minus]
        a = a if self.clip is None else a.clamp(-self.clip, self.clip)
        return a - a.mean() if self.centre else a


@dataclass(frozen=True, kw_only=True)
class LengthShaped:
    """APO's STCR around the advantage ``of``: long wrong responses count more.

    A wrong response (reward <= 0.5) that is longer than the mean length ``L`` of its group's correct ones is multiplied by
    ``2 - rate^-(length - L)``; groups without a correct response stay as they are. The published rate is so near to 1 that only
    thousands of tokens matter.

    Source: APO 2506.21655 (released code).
    """

    of: Advantage
    rate: float = 1.00001
    group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ConfigError(f"LengthShaped.rate is {self.rate}; it must be at least 1 (1 changes nothing).")

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    def __call__(self, b: Batch) -> Tensor:
        length, correct = b.seq_len(), (b.reward > 0.5).to(b.reward.dtype)
        count = b.group_sum(correct)
        mean_S = (b.group_sum(length * correct) / count.clamp(min=1))[b.group]
        longer = (length - mean_S).clamp(min=0) * (1 - correct) * (count > 0)[b.group]
        return self.of(b) * (2 - self.rate**-longer)[b.seq]


def is_group(advantage: Any) -> bool:
    """Whether the advantage compares the responses of one prompt, so that it needs at least two."""
    return bool(getattr(advantage, "group", False))
