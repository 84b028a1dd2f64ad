"""Losses that learn from which of two responses is the better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import softplus

from rlkit.bounds import Positive
from rlkit.objective import PairTerm
from rlkit.types import Batch, New, PerPair, PerSequence


def log_ratio(new: New, b: Batch) -> PerSequence:
    """``Delta(y) = sum_t (log pi_new - log ref)`` of each sequence, in nats."""
    return b.seq_sum(new.logp - b.logp["ref"])


@dataclass(frozen=True, kw_only=True)
class DPO(PairTerm):
    """``-log sigmoid(beta (Delta_chosen - Delta_rejected))`` with ``Delta(y) = log pi_new(y) - log ref(y)``: the implicit reward
    ``beta Delta`` in the model of Bradley and Terry.

    Its optimum for rewards ``r`` that follow Bradley-Terry is ``ref(y) exp(r(y) / beta) / Z``, as that of ``E[r] - beta KL(pi‖ref)``.

    Source: DPO 2305.18290, eq. 7 (TRL's released code computes the same).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})
    beta: Positive = 0.1

    def score(self, new: New, b: Batch) -> PerSequence:
        return self.beta * log_ratio(new, b)

    def __call__(self, new: New, b: Batch) -> PerPair:
        chosen, rejected = b.halves(self.score(new, b))
        return softplus(rejected - chosen)
