"""A correction of your own: how much a token counts whose engine and learner disagree. See custom_parts.yaml."""

from dataclasses import dataclass

from torch import Tensor

from rlkit import Batch, Correction


@dataclass(frozen=True, kw_only=True)
class Damped(Correction):
    """``c^power``, at most ``cap``, for ``c = pi_learner / pi_engine``: between no correction (0) and the exact one (1)."""

    power: float = 0.5
    cap: float = 2.0

    def __call__(self, b: Batch) -> Tensor:  # [N] tokens
        return (self.power * (b.logp["old"] - b.logp["behav"])).exp().clamp(max=self.cap)
