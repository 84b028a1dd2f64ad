"""Losses of single responses with a label, good or bad, and no partner to compare with.

``D = sum_t log pi - log ref``, ``r = beta D``; a response is good where its reward (its label or score) is above ``above``. What such a
loss compares a response with is a number of the whole batch: KTO an estimate of KL(pi‖ref), KLDO the partition of the bad ones. Both are
made on the driver once per optimizer step (``Term.mark``), from log-probs before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlkit.bounds import Finite, Positive
from rlkit.objective import On, Reduce, Term
from rlkit.objective.preference import log_ratio
from rlkit.types import Batch, New, PerSequence, PerToken


@dataclass(frozen=True, kw_only=True)
class LabelTerm(Term):
    """Base of losses of labelled responses.

    Attributes:
        beta: the reward that the policy implies is ``beta D``. above: a response with a larger reward is good.
    """

    on: On = "labelled"
    reduce: Reduce = "sum"
    beta: Positive = 0.1
    above: Finite = 0.5

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref"})

    def score(self, new: New, b: Batch) -> PerSequence:
        return self.beta * log_ratio(new, b)

    def good(self, b: Batch) -> PerSequence:
        """Which responses are (bool)."""
        return b.reward > self.above

    def advice(self, good: int, bad: int) -> str | None:
        """What there is to say of data with so many good and bad responses, if anything."""
        return None


@dataclass(frozen=True, kw_only=True)
class KTO(LabelTerm):
    """``lambda (1 - sigmoid(r - beta z0))`` for good responses, ``lambda (1 - sigmoid(beta z0 - r))`` for bad ones.

    ``z0 = max(0, mean D)`` over responses under prompts that are not theirs estimates KL(pi‖ref). It is that of the whole batch of an
    optimizer step (the released code: of a micro-batch, over all ranks), before the update. The paper advises that ``desirable *
    good responses / (undesirable * bad responses)`` be in [1, 4/3].

    ``variant: s`` (KTO-S): ``r' = beta (D + sign(D) z0)`` in place of ``r - beta z0`` for both: drift makes gradients smaller on both
    sides. ``baseline: zero`` leaves z0 out (TRL's ``apo_zero_unpaired``), and is what responses sampled in the run need
    (``on: policy``), which have no partner under another prompt.

    Source: KTO 2402.01306 (z0 as in TRL and HALOs); KTO-S 2502.12485 (reconstructed from a third party's code and the abstract).
    """

    desirable: Positive = 1.0
    undesirable: Positive = 1.0
    variant: Literal["kto", "s"] = "kto"
    baseline: Literal["mismatched", "zero"] = "mismatched"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref", "mismatched"} if self.baseline == "mismatched" else {"ref"})

    def advice(self, good: int, bad: int) -> str | None:
        ratio, even = self.desirable * good / (self.undesirable * bad), self.undesirable * bad / good
        if 0.95 < ratio < 1.4:
            return None
        return (
            f"{good} responses are good and {bad} bad, so that desirable * good / (undesirable * bad) is {ratio:.2f}; the paper advises 1 "
            f"to 4/3, which is `desirable` from {even:.2f} to {even * 4 / 3:.2f}."
        )

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        if self.baseline == "zero":
            return b.reward.new_zeros(b.N)
        return b.cols["mismatched"].mean().clamp(min=0).expand(b.N)

    def __call__(self, new: New, b: Batch) -> PerSequence:
        moved, z0 = log_ratio(new, b), b.seq_mean(b.marks[self.name])
        r = self.beta * (moved - z0 if self.variant == "kto" else moved + moved.detach().sign() * z0)
        # 1 - sigmoid(x) = sigmoid(-x)
        return torch.where(self.good(b), self.desirable * torch.sigmoid(-r), self.undesirable * torch.sigmoid(r))


@dataclass(frozen=True, kw_only=True)
class KLDO(LabelTerm):
    """``-mean over good of r + log mean over bad of e^r``: the Donsker-Varadhan bound of KL(good‖bad), with the policy as its critic.

    Its optimum is ``pi ~ ref (p_good / p_bad)^(1 / beta)``. The second term's gradient is ``mean of e^r grad r / M`` with
    ``M = mean of e^r`` over the bad responses of the whole optimizer step, before the update: exact in the first update of a batch.
    The released code keeps a running mean over micro-batches instead, because it does not see the batch. ``r`` is at most 20.

    The value that is logged is ``-mean r + mean e^r / M``, whose second part is 1 where the policy has not moved.

    Source: KLDO 2502.00657 (the released code, but for M).
    """

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        """What a response's ``-r``, or its ``e^r``, is multiplied with: the number of responses over that of its class, and over M."""
        good = self.good(b)
        r = self._bounded(self.beta * b.seq_sum(b.logp["old"] - b.logp["ref"]))
        weight = torch.where(good, b.S / good.sum(), b.S / torch.where(good, 0.0, r.exp()).sum())
        return weight.to(torch.float32)[b.seq]

    @staticmethod
    def _bounded(r: Tensor) -> Tensor:
        return r.clamp(max=20.0)

    def __call__(self, new: New, b: Batch) -> PerSequence:
        r, weight = self.score(new, b), b.seq_mean(b.marks[self.name])
        return weight * torch.where(self.good(b), -r, self._bounded(r).exp())
