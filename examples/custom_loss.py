"""A loss of your own: one small class in your own file, and its fields are YAML keys. See custom_loss.yaml."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlkit import Batch, New, Term


@dataclass(frozen=True)
class TOPR(Term):
    """Tapered off-policy REINFORCE: ``-A log pi`` for good responses, ``-sg(min(w, cap)) A log pi`` for bad ones.

    ``w = pi / mu``: what is bad and already unlikely is left alone. Source: 2503.14286 [memory].
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adv", "behav"})
    cap: float = 1.0

    def __call__(self, new: New, b: Batch) -> Tensor:  # [N] tokens; no mask, no padding, no mean
        w = (new.logp.detach() - b.logp["behav"]).exp().clamp(max=self.cap)
        return -b.adv * new.logp * w.where(b.adv < 0, 1.0)
