"""Corrections of the mismatch between the engine that sampled and the learner that trains.

``c_t = exp(log old - log behav)``, the learner's own log-probs against the engine's, both frozen. A correction fills
``Batch.weight [N]``; policy-gradient terms multiply their cost by it. Terms whose ratio is already against ``behav``
(ISGradient, CISPO, DPPO, PMD) carry the correction themselves and do not multiply twice.

By default means keep the denominator of the whole batch: masking a token removes its cost and does not inflate the others.
``denominator: kept`` counts kept tokens only, ``mean_one`` scales the weights to mean 1 over the batch.

Source: released code: of verl and TRL for TIS, of prime-rl, OpenRLHF and slime for IcePop, seq-mask-TIS and the geometric forms.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Positive
from rlkit.errors import ConfigError
from rlkit.plug import Plug
from rlkit.types import Batch, PerToken, Stats

Denominator = Literal["all", "kept", "mean_one"]


@dataclass(frozen=True, kw_only=True)
class Correction(Plug):
    """Base of every correction. A user's own is a subclass with ``__call__``.

    Attributes:
        denominator: of means: ``all`` tokens of the batch, ``kept`` ones only, or ``mean_one``: the weights are scaled to mean 1.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.corrections",)

    denominator: Denominator = "all"

    @property
    def needs(self) -> frozenset[str]:
        """What it reads."""
        return frozenset({"old", "behav"})

    @abstractmethod
    def __call__(self, b: Batch) -> PerToken:
        """The weight of each token."""


def weights(correction: Correction, b: Batch) -> PerToken:
    """The correction's weights with its denominator."""
    w = correction(b)
    if correction.denominator == "all":
        return w
    divisor = (w != 0).to(w.dtype).mean() if correction.denominator == "kept" else w.mean()
    return w / divisor.clamp(min=1e-8)


def _log_c(b: Batch) -> Tensor:
    return (b.logp["old"] - b.logp["behav"]).clamp(-20, 20)


def _bounds(name: str, low: float, high: float) -> None:
    if not 0 <= low < high:
        raise ConfigError(f"{name}: bounds must satisfy 0 <= low < high; found {low} and {high}.")


@dataclass(frozen=True)
class TruncatedIS(Correction):
    """TIS: ``min(c, cap)`` per token, or ``min(prod_t c_t, cap)`` with ``level: sequence``."""

    cap: Positive = 2.0
    level: Literal["token", "sequence"] = "token"

    def __call__(self, b: Batch) -> Tensor:
        log_c = _log_c(b)
        if self.level == "sequence":
            log_c = b.seq_sum(log_c).clamp(-20, 20)[b.seq]
        return log_c.exp().clamp(max=self.cap)


@dataclass(frozen=True)
class IcePop(Correction):
    """``c`` inside ``[low, high]``, else 0."""

    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounds("IcePop", self.low, self.high)

    def __call__(self, b: Batch) -> Tensor:
        c = _log_c(b).exp()
        return c * ((c >= self.low) & (c <= self.high))


@dataclass(frozen=True)
class SequenceMask(Correction):
    """Keeps a sequence iff ``exp`` of the mean (``geometric``) or the sum (``product``) of ``log c`` is in ``[low, high]``.

    Kept tokens weigh ``c`` (``weigh: true``, seq-mask-TIS) or 1 (Geo-RS).

    The default bounds are those of released runs with responses of thousands of tokens. Rounding that moves ``log c`` of a token by ``s``
    nats moves the mean of ``T`` tokens by ``s / sqrt(T)``: with the 0.05 of bfloat16 by 0.001 at 2,500 tokens, and by 0.01 at 25, of which
    they keep next to nothing. The alarm ``masked`` says so.
    """

    low: float = 0.999
    high: float = 1.002
    of: Literal["geometric", "product"] = "geometric"
    weigh: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounds("SequenceMask", self.low, self.high)

    def __call__(self, b: Batch) -> Tensor:
        log_c = _log_c(b)
        whole = (b.seq_mean(log_c) if self.of == "geometric" else b.seq_sum(log_c).clamp(-20, 20)).exp()
        keep = ((whole >= self.low) & (whole <= self.high))[b.seq]
        return keep * (log_c.exp() if self.weigh else torch.ones_like(log_c))


@dataclass(frozen=True)
class K3Mask(Correction):
    """Keeps a sequence iff the mean over its tokens of k3(behav‖old) = ``c - 1 - log c`` is at most ``bound``."""

    bound: Positive = 0.01

    def __call__(self, b: Batch) -> Tensor:
        log_c = _log_c(b)
        return (b.seq_mean(torch.expm1(log_c) - log_c) <= self.bound)[b.seq].to(log_c.dtype)


@dataclass(frozen=True)
class OffPolicySequenceMask(Correction):
    """Drops sequences with a negative advantage whose tokens became less likely by more than ``delta`` nats on average:
    ``mean_t(log behav - log old) > delta``. Others weigh 1.

    Source: DeepSeek-V3.2, off-policy sequence masking (delta 0.5 as in TRL).
    """

    delta: NonNegative = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"old", "behav", "adv"})

    def __call__(self, b: Batch) -> Tensor:
        assert b.adv is not None
        drop = (b.seq_mean(b.adv) < 0) & (b.seq_mean(-_log_c(b)) > self.delta)
        return (~drop)[b.seq].to(b.adv.dtype)


def correction_stats(b: Batch, stats: Stats) -> None:
    """Mean and largest difference, effective sample size, masked share."""
    log_c = b.logp["old"] - b.logp["behav"]
    c = log_c.clamp(-20, 20).exp()
    stats.add("correction/mean_difference", log_c.abs().mean())
    stats.add("correction/max_difference", log_c.abs().max(), "max")
    stats.add("correction/ess", c.sum() ** 2 / (c**2).sum() / max(1, b.N))
    if b.weight is not None:
        stats.add("correction/masked", (b.weight == 0).to(torch.float32).mean())
        stats.add("correction/mean_weight", b.weight.mean())
