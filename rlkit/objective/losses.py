"""Policy-gradient losses. Each is a few lines of mathematics on flat action tokens.

``r = log pi_new - log pi_old`` is the log-ratio of a token, ``w = exp(r)``, ``A`` its advantage, ``sg`` stops the gradient.
A term whose docstring says *corrected* multiplies its cost by ``Batch.weight``, the train/inference correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from rlkit.bounds import Bound, Count, NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.objective import Term
from rlkit.objective.advantages import centre, group_centre
from rlkit.types import Batch, New, PerToken

ADV_OLD = frozenset({"adv", "old"})
ADV_BEHAV = frozenset({"adv", "behav"})
MAX_LOG_RATIO = 20.0


def log_ratio(new_N: Tensor, old_N: Tensor) -> PerToken:
    """``new - old``, bounded to ±20 so that its exponential stays finite in float32; its gradient is that of ``new`` everywhere.

    A plain clamp has no gradient beyond the bound: a token of negative advantage that has become e^20 times as likely would stay so.
    """
    r = new_N - old_N
    return r + (r.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) - r).detach()


def advantage(b: Batch) -> PerToken:
    assert b.adv is not None
    return b.adv


def corrected(cost_N: Tensor, b: Batch) -> PerToken:
    return cost_N if b.weight is None else cost_N * b.weight


@dataclass(frozen=True)
class PPOClip(Term):
    """Clipped surrogate: ``-min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)``; corrected.

    With ``dual_clip = c > 1``, the cost of a negative advantage is at most ``-c A``.

    Source: PPO 1707.06347, eq. 7; DAPO 2503.14476, eq. 10 (two bounds); Ye et al. 1912.09729 (dual clip).
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = ADV_OLD
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eps_low <= 1 or self.eps_high < 0:
            raise ConfigError(
                f"PPOClip: eps_low is {self.eps_low} and eps_high is {self.eps_high}; they must be in [0, 1] and >= 0."
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ConfigError(f"PPOClip.dual_clip is {self.dual_clip}; it must be above 1.")

    def __call__(self, new: New, b: Batch) -> Tensor:
        a, w = advantage(b), log_ratio(new.logp, b.logp["old"]).exp()
        cost = torch.maximum(-w * a, -w.clamp(1 - self.eps_low, 1 + self.eps_high) * a)
        if self.dual_clip is not None:
            cost = torch.where(a < 0, torch.minimum(cost, -self.dual_clip * a), cost)
        return corrected(cost, b)


@dataclass(frozen=True)
class ISGradient(Term):
    """``-w A`` with ``w = pi_new / mu`` against the sampling policy: the exact off-policy gradient, unclipped.

    Source: RPG 2505.17508, section 2.
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = ADV_BEHAV

    def __call__(self, new: New, b: Batch) -> Tensor:
        return -log_ratio(new.logp, b.logp["behav"]).exp() * advantage(b)


@dataclass(frozen=True)
class Reinforce(Term):
    """``-A log pi_new``; corrected. On-policy only: it has no importance weight of its own.

    Source: Williams 1992.
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"adv"})

    def __call__(self, new: New, b: Batch) -> Tensor:
        return corrected(-advantage(b) * new.logp, b)


@dataclass(frozen=True)
class CISPO(Term):
    """``-sg(clip(w, 1 - eps_low, eps_max)) A log pi_new``: every token keeps a gradient; corrected if against ``old``.

    ``eps_max`` is the absolute upper bound of the weight. ``against: behav`` corrects staleness and engine mismatch with
    the same ratio (ScaleRL); ``against: old`` is MiniMax-M1's form.

    Source: MiniMax-M1 2506.13585; ScaleRL 2510.13786.
    """

    only_advantage: ClassVar[bool] = True
    eps_low: Share | None = None
    eps_max: Positive = 5.0
    against: Literal["behav", "old"] = "behav"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adv", self.against})

    def __call__(self, new: New, b: Batch) -> Tensor:
        w = (
            log_ratio(new.logp.detach(), b.logp[self.against])
            .exp()
            .clamp(0.0 if self.eps_low is None else 1 - self.eps_low, self.eps_max)
        )
        cost = -w * advantage(b) * new.logp
        return corrected(cost, b) if self.against == "old" else cost


@dataclass(frozen=True)
class GSPO(Term):
    """Sequence ratio ``s = exp(mean_t r_t)``: ``-min(s A, clip(s, 1 - eps_low, 1 + eps_high) A)``; corrected.

    The ratio enters each token as ``log s_t = log pi - sg(log pi) + sg(mean r)``, which keeps per-token advantages.

    Source: GSPO 2507.18071, eq. 5 (the token form is verl's).
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = ADV_OLD
    eps_low: Share = 3e-4
    eps_high: NonNegative = 4e-4

    def __call__(self, new: New, b: Batch) -> Tensor:
        mean_S = b.seq_mean(new.logp.detach() - b.logp["old"]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        s, a = (new.logp - new.logp.detach() + mean_S[b.seq]).exp(), advantage(b)
        return corrected(torch.maximum(-s * a, -s.clamp(1 - self.eps_low, 1 + self.eps_high) * a), b)


@dataclass(frozen=True)
class SAPO(Term):
    """Soft gate: ``-A * sigmoid(tau (w - 1)) * 4 / tau``; corrected. ``tau`` is ``tau_pos`` where A > 0, else ``tau_neg``.

    Source: SAPO 2511.20347.
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = ADV_OLD
    tau_pos: Positive = 1.0
    tau_neg: Positive = 1.05

    def __call__(self, new: New, b: Batch) -> Tensor:
        a, w = advantage(b), log_ratio(new.logp, b.logp["old"]).exp()
        tau = torch.where(a > 0, self.tau_pos, self.tau_neg)
        return corrected(-a * torch.sigmoid(tau * (w - 1)) * 4 / tau, b)


@dataclass(frozen=True)
class GMPO(Term):
    """Geometric mean of clipped ratios: ``-A exp(mean_t clipped r_t)`` per sequence, clip at ±``eps`` in log space.

    As in PPO the clip is one-sided, by the sign of the advantage.

    Source: GMPO 2507.20673.
    """

    only_advantage: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = ADV_OLD
    eps: NonNegative = 0.4

    def __call__(self, new: New, b: Batch) -> Tensor:
        a_S = b.seq_mean(advantage(b))
        sign = a_S.sign()[b.seq]
        r = sign * log_ratio(new.logp, b.logp["old"])
        kept = sign * torch.minimum(r, r.clamp(-self.eps, self.eps))
        return -a_S * b.seq_mean(kept).exp()


@dataclass(frozen=True)
class DPPO(Term):
    """``-w A`` where the *probability* moved at most ``bound`` in the advantage's direction, plus ``quadratic * r^2``.

    The mask is ``pi - pi_behav <= bound`` for A > 0 and ``>= -bound`` for A < 0; masked tokens cost nothing.

    Source: DPPO 2602.04879 (the quadratic term and its 1e-3 are prime-rl's).
    """

    needs: ClassVar[frozenset[str]] = ADV_BEHAV
    bound: Positive = 0.2
    quadratic: NonNegative = 1e-3

    def __call__(self, new: New, b: Batch) -> Tensor:
        a, behav = advantage(b), b.logp["behav"]
        moved = new.logp.detach().exp() - behav.exp()
        keep = torch.where(a > 0, moved <= self.bound, moved >= -self.bound)
        return -log_ratio(new.logp, behav).exp() * a * keep + self.quadratic * (new.logp - behav) ** 2


def covariance(b: Batch) -> Tensor:
    """``(A - mean A) (log pi - mean log pi)`` of each token over the whole batch, ``[N]``; its mean drives the entropy's change."""
    a, logp = advantage(b), b.logp["old"]
    return (centre(a) * centre(logp)).to(a.dtype)


@dataclass(frozen=True)
class ClipCov(PPOClip):
    """PPO's clip without the gradient of a few tokens: ``share`` of all, drawn among those with a covariance in (``low``, ``high``).

    The covariance is that of advantage and log-prob over the whole batch of the optimizer step, before the update; the released code has it
    for each micro-batch, and with current log-probs.

    Source: Entropy Mechanism 2505.22617, Clip-Cov (as in the released code).
    """

    share: Share = 2e-4
    low: float = 1.0
    high: float = 5.0

    def mark(self, b: Batch, generator: torch.Generator) -> Tensor:
        cov = covariance(b)
        found = ((cov > self.low) & (cov < self.high)).nonzero()[:, 0]
        count = max(1, int(self.share * b.N))
        chosen = found[torch.randperm(len(found), generator=generator)[:count]]
        return torch.zeros_like(cov).index_fill(0, chosen, 1.0)

    def __call__(self, new: New, b: Batch) -> Tensor:
        return super().__call__(new, b) * (1 - b.marks[self.name])


@dataclass(frozen=True)
class KLCov(Term):
    """``-w A``, plus ``beta |r|`` on the ``share`` of tokens with the largest covariance of advantage and log-prob; corrected.

    The covariance is that of the whole batch of the optimizer step, before the update (see :class:`ClipCov`).

    Source: Entropy Mechanism 2505.22617, KL-Cov (as in the released code).
    """

    needs: ClassVar[frozenset[str]] = ADV_OLD
    share: Share = 2e-4
    beta: NonNegative = 1.0

    def mark(self, b: Batch, generator: torch.Generator) -> Tensor:
        cov = covariance(b)
        return torch.zeros_like(cov).index_fill(0, cov.topk(max(1, int(self.share * b.N))).indices, 1.0)

    def __call__(self, new: New, b: Batch) -> Tensor:
        w, moved = log_ratio(new.logp, b.logp["old"]).exp(), (new.logp - b.logp["old"]).abs()
        return corrected(-w * advantage(b) + self.beta * moved * b.marks[self.name], b)


@dataclass(frozen=True)
class RPG(Term):
    """REINFORCE-style regularised policy gradient with RPG-Style Clip: ``sg(A' w) * (-log pi)``, ``A' = A + C / w``.

    ``C`` by ``kl``: forward_kl ``beta``; forward_ukl ``beta (1 - w)``; reverse_kl ``-beta w (log w + 1)``; reverse_ukl
    ``-beta w log w``. The KL is to the previous iterate (``old``). For ``A' >= 0`` a token with ``w >= 1 + eps_high`` gets no
    gradient; for ``A' < 0`` one with ``w <= 1 - eps_low`` or ``w >= dual_clip``. ``clip: false`` keeps every token.

    Source: RPG 2505.17508, Algorithm 2 and eq. 4.1 (the released code branches on other signs; this is the paper's rule).
    """

    needs: ClassVar[frozenset[str]] = ADV_OLD
    kl: Literal["forward_kl", "forward_ukl", "reverse_kl", "reverse_ukl"] = "reverse_ukl"
    beta: NonNegative = 1e-4
    clip: bool = True
    eps_low: Share = 0.2
    eps_high: NonNegative = 0.28
    dual_clip: Annotated[float, Bound(above=1)] = 10.0

    def __call__(self, new: New, b: Batch) -> Tensor:
        r = log_ratio(new.logp.detach(), b.logp["old"])
        w, a = r.exp(), advantage(b)
        c = {
            "forward_kl": torch.full_like(w, self.beta),
            "forward_ukl": self.beta * (1 - w),
            "reverse_kl": -self.beta * w * (r + 1),
            "reverse_ukl": -self.beta * w * r,
        }[self.kl]
        weight = a * w + c  # = A' w
        if not self.clip:
            return corrected(-weight * new.logp, b)
        up = weight >= 0  # w > 0: the sign of A'
        bound = torch.where(up, torch.full_like(w, 1 + self.eps_high), w.clamp(1 - self.eps_low, self.dual_clip))
        dropped = torch.where(up, w >= 1 + self.eps_high, (w <= 1 - self.eps_low) | (w >= self.dual_clip))
        flat = -(a * bound + c) * new.logp.detach()
        return corrected(torch.where(dropped, flat, -weight * new.logp), b)


@dataclass(frozen=True)
class PMD(Term):
    """Policy mirror descent as regression: ``tau/2 * (A / tau - sum_t r_t)^2 / T`` per sequence.

    The population minimiser over normalised policies solves ``log u + lam u = A / tau`` (Lambert W): mirror descent
    with ``KL(pi‖old) + lam/2 chi2(pi‖old)``. Advantages are per sequence (RLOO in the released code).

    Source: PMD 2602.05933, PMD-mean; Kimi K2 (the same regression with a mean baseline; from memory, not checked against the report).
    """

    needs: ClassVar[frozenset[str]] = ADV_BEHAV
    tau: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau <= 0:
            raise ConfigError(f"PMD.tau is {self.tau}; it must be positive.")

    def __call__(self, new: New, b: Batch) -> Tensor:
        delta = b.seq_sum(new.logp - b.logp["behav"])
        return 0.5 * self.tau * (b.seq_mean(advantage(b)) / self.tau - delta) ** 2 / b.seq_len()


@dataclass(frozen=True)
class AStar(Term):
    """A*-PO stage 2: ``(beta * sum_t log(pi / ref) - (reward - V*))^2`` per sequence; ``v_star`` is a data column.

    Source: A*-PO 2505.20686, eq. 4 (stage 1 writes ``V* = beta1 log mean exp(r / beta1)``).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref", "col:v_star"})
    beta: Positive = 1e-3

    def __call__(self, new: New, b: Batch) -> Tensor:
        return (self.beta * b.seq_sum(new.logp - b.logp["ref"]) - (b.reward - b.cols["v_star"])) ** 2


@dataclass(frozen=True)
class REBEL(Term):
    """``((D_i - mean D) - eta (R_i - mean R))^2`` over a prompt's responses, ``D = sum_t r_t``.

    For two responses this is half the squared pairwise regression of the paper; for more, its average over pairs.

    Source: REBEL 2404.16767, eq. 2 (pairs).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"behav"})
    eta: Positive = 1.0
    whole_groups: ClassVar[bool] = True

    def __call__(self, new: New, b: Batch) -> Tensor:
        moved = group_centre(b, b.seq_sum(new.logp - b.logp["behav"]))
        return ((moved - self.eta * group_centre(b, b.reward)) ** 2).to(new.logp.dtype)


@dataclass(frozen=True)
class NLL(Term):
    """``-log pi_new``: supervised learning."""

    def __call__(self, new: New, b: Batch) -> Tensor:
        return -new.logp


@dataclass(frozen=True)
class Unlikelihood(Term):
    """``-log(1 - pi_new)`` of the tokens of every run of ``n`` that the response had before, 0 elsewhere: what repeats becomes unlikely.

    Source: Unlikelihood Training 1908.04319, sequence level (the released mask leaves out a response's last n-gram).
    """

    n: Count = 4

    def mark(self, b: Batch, generator: torch.Generator) -> Tensor:
        assert b.ids is not None and b.action is not None
        repeated, start = torch.zeros(b.N, dtype=b.reward.dtype), 0
        for count in b.count().tolist():
            tokens, seen = b.ids[b.action[start : start + count]].tolist(), set[tuple[int, ...]]()
            for i in range(count - self.n + 1):
                gram = tuple(tokens[i : i + self.n])
                if gram in seen:
                    repeated[start + i : start + i + self.n] = 1
                seen.add(gram)
            start += count
        return repeated

    def __call__(self, new: New, b: Batch) -> Tensor:
        # a token of probability 1 has an infinite cost: its value is bounded, its gradient is not taken away
        logp = new.logp + (new.logp.clamp(max=-1e-6) - new.logp).detach()
        return -torch.log(-torch.expm1(logp)) * b.marks[self.name]


@dataclass(frozen=True)
class Entropy(Term):
    """``-H(pi_new)`` of each token's distribution: with a positive coefficient it is an entropy bonus."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, new: New, b: Batch) -> Tensor:
        assert new.entropy is not None
        return -new.entropy


@dataclass(frozen=True)
class ValueMSE(Term):
    """``max((V - R)^2, (clip(V, V_old ± clip) - R)^2) / 2`` with the return ``R = A_gae + V_old``.

    Source: the released code of PPO (values are clipped as in verl and TRL).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value", "returns"})
    clip: Positive | None = 0.2

    def __call__(self, new: New, b: Batch) -> Tensor:
        assert new.value is not None and b.value is not None and b.returns is not None
        error = (new.value - b.returns) ** 2
        if self.clip is not None:
            bounded = b.value + (new.value - b.value).clamp(-self.clip, self.clip)
            error = torch.maximum(error, (bounded - b.returns) ** 2)
        return 0.5 * error
