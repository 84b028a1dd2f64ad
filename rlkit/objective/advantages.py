"""Advantages: from rewards to one number per action token, without gradient.

The reward of a sequence is ``R``; penalties such as ``KLReward`` add rewards to single tokens (``Batch.token_reward``).
A token's return is everything that is rewarded from it on, the sequence's own reward included. A part of ``R`` may have been earned on the
way, each at a token of its own (``Batch.earned``, the rewards of an episode's turns): it is no part of the returns of later tokens.
A sequence is a whole episode here (:meth:`rlkit.types.Batch.by_episode`).

What is compared is first taken from the smallest value compared (:func:`centre`), so equal rewards get an advantage of exactly 0, whatever
the number and however many there are: the mean of 16 rewards of 1.1 in float32 is not 1.1, and a standard deviation near 0 would make an
advantage of the difference.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.plug import Plug
from rlkit.types import Batch, PerSequence, PerToken

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
SIDE_BY_SIDE = 32  # runs, as many as which at once make up for what a call of numpy costs


@dataclass(frozen=True)
class Advantages:
    """What an advantage gives: ``adv``, and ``returns`` where it knows what the value function is trained towards; no gradient."""

    adv: PerToken
    returns: PerToken | None = None

    @classmethod
    def of(cls, advantage: Advantage, b: Batch) -> Advantages:
        """The advantages of a batch; an advantage that trains no value function may give the tensor alone."""
        found = advantage(b)
        return found if isinstance(found, Advantages) else cls(found)


@dataclass(frozen=True)
class Advantage(Plug):
    """Base of every advantage. A user's own is a subclass with ``__call__``; ``needs`` as of a term."""

    homes: ClassVar[tuple[str, ...]] = (
        "rlkit.objective.advantages",
        "rlkit.objective.shaping",
        "rlkit.objective.turns",
    )

    @property
    def needs(self) -> frozenset[str]:
        """What it reads beside rewards."""
        return frozenset()

    @property
    def group(self) -> bool:
        """Whether it compares the responses of one prompt, so that it needs at least two."""
        return False

    @abstractmethod
    def __call__(self, b: Batch) -> PerToken | Advantages:
        """Of each token, no gradient; nothing is written into the batch."""


def sequence_reward(b: Batch) -> PerSequence:
    """The whole reward of each sequence, token rewards included, in float64."""
    reward = b.reward.double()
    return reward if b.token_reward is None else reward + b.seq_sum(b.token_reward.double())


def spread(b: Batch, total_S: Tensor) -> PerToken:
    """The return of each token, in float64: the sequence's ``total_S`` (less a baseline) without what earlier tokens were given."""
    given = rewarded(b)
    return total_S[b.seq] if given is None else total_S[b.seq] - (b.seq_cumsum(given) - given)


def rewarded(b: Batch) -> PerToken | None:
    """What single tokens were given, by penalties and as the rewards of turns, in float64; None if nothing was."""
    parts = [x.double() for x in (b.token_reward, b.earned) if x is not None]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def at_tokens(b: Batch) -> PerToken:
    """The reward at each token, in float64: what it was given itself, and at a sequence's last token what is left of the sequence's."""
    given, left = rewarded(b), b.reward.double()
    r = left.new_zeros(b.N) if given is None else given.clone()
    if b.earned is not None:
        left = left - b.seq_sum(b.earned.double())
    last = ends(b.seq)
    r[last] += left[b.seq[last]]
    return r


def ends(label_N: Tensor) -> PerToken:
    """Whether a token is the last of its run of equal labels."""
    return torch.cat([label_N[1:] != label_N[:-1], label_N.new_ones(1, dtype=torch.bool)])


def discounted(x: Tensor, last: Tensor, factor: float) -> Tensor:
    """``sum_j factor^j x_{k+j}`` of each entry, up to the next one that is ``last``; summed in float64."""
    stops = np.flatnonzero(last.cpu().numpy())
    ends = stops if len(stops) and stops[-1] == len(x) - 1 else np.append(stops, len(x) - 1)
    length = np.diff(ends, prepend=-1)
    values = x.double().cpu().numpy()
    few = len(x) < SIDE_BY_SIDE * length.max(initial=0)
    out = _one_by_one(values, ends, factor) if few else _side_by_side(values, ends, length, factor)
    return torch.from_numpy(out).to(x)


def _one_by_one(x: Numbers, ends: Places, factor: float) -> Numbers:
    """One entry after the other, from the last one on."""
    values, out, running = x.tolist(), [0.0] * len(x), 0.0
    stops = set(ends.tolist())
    for k in range(len(values) - 1, -1, -1):
        running = values[k] + (0.0 if k in stops else factor * running)
        out[k] = running
    return np.array(out, dtype=np.float64)


def _side_by_side(x: Numbers, ends: Places, length: Places, factor: float) -> Numbers:
    """The same sums in the same order, the k-th entries from the end of all runs at a time: no table of runs by the longest is made."""
    order = np.argsort(-length, kind="stable")
    place, out = ends[order], x.copy()
    going = np.searchsorted(-length[order], -np.arange(length.max(initial=0)), side="left")
    for k, n in enumerate(going.tolist()):
        at = place[:n] - k
        if k:
            out[at] += factor * out[at + 1]
    return out


def centre(x: Tensor) -> Tensor:
    """``x - mean(x)``, in float64; exactly 0 where all are equal. Keeps gradient."""
    if not len(x):
        return x.double()
    d = x.double() - x.detach().amin().double()
    return d - d.mean()


def group_centre(b: Batch, x_S: Tensor) -> PerSequence:
    """``x`` minus its mean over the prompt's responses, in float64; exactly 0 where all of them are equal. Keeps gradient."""
    x = x_S.double()
    lowest = x.new_zeros(b.G).scatter_reduce(0, b.group, x.detach(), "amin", include_self=False)
    d = x - lowest[b.group]
    return d - (b.group_sum(d) / b.group_size())[b.group]


def group_std(b: Batch, centred_S: Tensor) -> PerSequence:
    """Unbiased standard deviation over the prompt's responses (0 for a group of one)."""
    return (b.group_sum(centred_S**2) / (b.group_size() - 1).clamp(min=1)).sqrt()[b.group]


Variance = Literal["population", "sample"]


def whiten(x: Tensor, variance: Variance = "population") -> Tensor:
    """``(x - mean) / std`` over all tokens, in float64.

    ``population``: the sum of squares over N, at least 1e-8 (OpenRLHF); ``sample``: over N - 1, plus 1e-8 (verl, TRL).
    """
    d = centre(x)
    square = d.square().sum()
    if variance == "sample":
        return d * torch.rsqrt(square / max(1, len(d) - 1) + 1e-8)
    return d / (square / max(1, len(d))).clamp(min=1e-8).sqrt()


@dataclass(frozen=True)
class Plain(Advantage):
    """``A_t`` = return of the token: REINFORCE without a baseline."""

    def __call__(self, b: Batch) -> Tensor:
        return spread(b, sequence_reward(b)).to(b.reward.dtype)


@dataclass(frozen=True)
class GroupMean(Advantage):
    """``A = R - mean(R of the group)``. Source: Dr.GRPO 2503.20783; RPG 2505.17508."""

    group: ClassVar[bool] = True

    def __call__(self, b: Batch) -> Tensor:
        return spread(b, group_centre(b, sequence_reward(b))).to(b.reward.dtype)


@dataclass(frozen=True)
class GroupNorm(Advantage):
    """``A = (R - mean) / (std + eps)`` over the group, unbiased std.

    ``scale: batch`` divides by the standard deviation of the centred rewards of the whole batch.

    Source: GRPO 2402.03300, section 4.1.2; ScaleRL 2510.13786 (``scale: batch``).
    """

    group: ClassVar[bool] = True
    eps: NonNegative = 1e-6
    scale: Literal["group", "batch"] = "group"

    def __call__(self, b: Batch) -> Tensor:
        centred = group_centre(b, sequence_reward(b))
        std_S = group_std(b, centred) if self.scale == "group" else centred.std(correction=0).expand_as(centred)
        scale_S = std_S + self.eps
        if rewarded(b) is None:  # one number a sequence: divided before it is spread, which is the same
            return (centred / scale_S).to(b.reward.dtype)[b.seq]
        return (spread(b, centred) / scale_S[b.seq]).to(b.reward.dtype)


@dataclass(frozen=True)
class RLOO(Advantage):
    """``A_i = R_i - mean_{j != i} R_j`` (0 for a group of one). Source: RLOO 2402.14740, eq. 6."""

    group: ClassVar[bool] = True

    def __call__(self, b: Batch) -> Tensor:
        size = b.group_size()[b.group]
        # R_i - (sum R - R_i) / (n - 1) = (R_i - mean R) n / (n - 1)
        left_out = group_centre(b, sequence_reward(b)) * size / (size - 1).clamp(min=1)
        return spread(b, left_out).to(b.reward.dtype)


@dataclass(frozen=True)
class ReinforcePlusPlus(Advantage):
    """Return of the token, then ``(A - mean) / std`` over all tokens of the batch.

    ``baseline: group`` first subtracts the group mean (REINFORCE++-baseline). Whitening is over the batch: equal rewards get exactly 0
    where they are those of the whole batch; beside other groups an all-equal group gets what the batch's mean leaves, as published.

    Source: REINFORCE++ 2501.03262 (the floor of the variance, 1e-8, is OpenRLHF's).
    """

    baseline: Literal["none", "group"] = "none"

    @property
    def group(self) -> bool:
        return self.baseline == "group"

    def __call__(self, b: Batch) -> Tensor:
        total = sequence_reward(b)
        return whiten(spread(b, group_centre(b, total) if self.group else total)).to(b.reward.dtype)


@dataclass(frozen=True)
class LogMeanExp(Advantage):
    """``A_i = R_i - tau log mean_{j != i} exp(R_j / tau)``: the leave-one-out soft value.

    Source: PMD 2602.05933, PMD-partition.
    """

    group: ClassVar[bool] = True
    tau: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau <= 0:
            raise ConfigError(
                f"LogMeanExp.tau is {self.tau}; it must be positive (0 would be the maximum of the others)."
            )

    def __call__(self, b: Batch) -> Tensor:
        r = sequence_reward(b)
        top = r.new_zeros(b.G).scatter_reduce(0, b.group, r, "amax", include_self=False)[b.group]
        below = r - top
        # exp((r_j - top) / tau) - 1, whose mean over the others is exactly 0 where all are equal
        e = torch.expm1(below / self.tau)
        count = b.group_size()[b.group] - 1
        mean = (b.group_sum(e)[b.group] - e) / count.clamp(min=1)
        # As in the released code, the mean of exp((r_j - top) / tau) over the others is at least 1e-8.
        soft = self.tau * torch.log1p(mean.clamp(min=1e-8 - 1))
        return spread(b, torch.where(count > 0, below - soft, 0.0)).to(b.reward.dtype)


@dataclass(frozen=True)
class GAE(Advantage):
    """Generalised advantage estimation with a value head; its returns are what ``ValueMSE`` trains the values towards.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = sum_k (gamma lam)^k delta_{t+k}``; the sequence's reward is at its last
    token; ``V`` after the last token is 0; the return is ``A_t + V_t``, before whitening. ``whiten`` gives advantages mean 0 and standard
    deviation 1 over the tokens of the batch; ``variance`` says how.

    Attributes:
        variance: ``population`` divides the sum of squares by the number of tokens N and keeps the variance at 1e-8 or above, as
            OpenRLHF does; ``sample`` divides by N - 1 and adds 1e-8 to the variance, as verl and TRL do. They differ by
            ``sqrt(1 - 1/N)``: by 0.5 % on 100 tokens, by nothing on a real batch; and where the spread is below 1e-4.

    Source: GAE 1506.02438, eq. 16.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten: bool = True
    variance: Variance = "population"

    def __call__(self, b: Batch) -> Advantages:
        assert b.value is not None
        r, last = at_tokens(b).to(b.value.dtype), ends(b.seq)
        following = torch.cat([b.value[1:], b.value.new_zeros(1)]).masked_fill(last, 0.0)
        a = discounted(r + self.gamma * following - b.value, last, self.gamma * self.lam)
        return Advantages(whiten(a, self.variance).to(a.dtype) if self.whiten else a, returns=a + b.value)


@dataclass(frozen=True)
class TokenKL(Advantage):
    """``A_t = log teacher - log mu`` of the sampled token: on-policy distillation, reverse KL to the teacher.

    ``minus: ref`` compares the teacher with the reference instead of the policy: what the teacher learned. ``clip``
    bounds each token's signal; ``centre`` subtracts the batch mean. ``early`` multiplies a token's signal by ``1 + early (1 - sum_{i<t}
    |A_i| / sum_i |A_i|)``: earlier tokens of a response count more (IW-OPD: 0.5).

    Source: ERPD 2605.25582 (reconstructed from the abstract); on-policy distillation as in Tinker's cookbook; IW-OPD (its weights).
    """

    teacher: Literal["teacher", "ref"] = "teacher"
    minus: Literal["behav", "ref"] = "behav"
    clip: Positive | None = None
    centre: bool = False
    early: NonNegative = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.teacher, self.minus})

    def __call__(self, b: Batch) -> Tensor:
        a = b.logp[self.teacher] - b.logp[self.minus]
        a = a if self.clip is None else a.clamp(-self.clip, self.clip)
        a = centre(a).to(a.dtype) if self.centre else a
        if not self.early:
            return a
        size = a.abs()
        before, whole = b.seq_cumsum(size) - size, b.seq_sum(size)[b.seq]
        return a * (1 + self.early * (1 - before / whole.clamp(min=1e-8)))


@dataclass(frozen=True)
class TeacherReturn(Advantage):
    """MiniLLM's return: what the teacher thinks more of than the policy, from the next token on, per remaining token.

    ``r_t = clip((log teacher - log old) / scale, ±clip)``, ``A_t = sum_{k > t} gamma^(k - t - 1) r_k / (tokens after t)``. The token's own
    part of the reverse KL is left to ``{type: FullDivergence, f: reverse_kl, anchor: teacher}``, which has no noise: with ``gamma: 1``,
    ``scale: 1`` and neither ``per_token`` nor ``whiten`` the two together are the exact gradient of ``KL(pi‖teacher)`` of responses.

    Attributes:
        start: ``next``, or ``own``: from the token itself on, as in the released code, which counts its own part twice.
        per_token: divides by how many tokens are summed. whiten: to mean 0 and standard deviation 1 over the batch.

    Source: MiniLLM 2306.08543 (the released code's reward and constants; the start is the paper's).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher", "old"})
    scale: Positive = 0.5
    clip: Positive = 100.0
    gamma: Share = 0.95
    start: Literal["next", "own"] = "next"
    per_token: bool = True
    whiten: bool = True

    def __call__(self, b: Batch) -> Tensor:
        r = ((b.logp["teacher"] - b.logp["old"]).double() / self.scale).clamp(-self.clip, self.clip)
        last = ends(b.seq)
        a, left = discounted(r, last, self.gamma), b.reward_to_go(torch.ones_like(r))
        if self.per_token:
            a = a / left
        if self.start == "next":
            a = torch.cat([a[1:], a.new_zeros(1)]).masked_fill(last, 0.0)
        return (whiten(a) if self.whiten else a).to(b.reward.dtype)


@dataclass(frozen=True, kw_only=True)
class LengthShaped(Advantage):
    """APO's STCR around the advantage ``of``: long wrong responses count more.

    A wrong response (reward <= 0.5) that is longer than the mean length ``L`` of its group's correct ones is multiplied by
    ``2 - rate^-(length - L)``; groups without a correct response stay as they are. The published rate is so near to 1 that only
    thousands of tokens matter.

    Source: APO 2506.21655 (the released code).
    """

    of: Advantage
    rate: float = 1.00001
    group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < 1:
            raise ConfigError(f"LengthShaped.rate is {self.rate}; it must be at least 1 (1 changes nothing).")

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    def __call__(self, b: Batch) -> Advantages:
        length, correct = b.seq_len(), (b.reward > 0.5).to(b.reward.dtype)
        count = b.group_sum(correct)
        mean_S = (b.group_sum(length * correct) / count.clamp(min=1))[b.group]
        longer = (length - mean_S).clamp(min=0) * (1 - correct) * (count > 0)[b.group]
        found = Advantages.of(self.of, b)
        return dataclasses.replace(found, adv=found.adv * (2 - self.rate**-longer)[b.seq])
