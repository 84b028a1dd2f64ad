"""A reference of your own: where the log-probs come from that the policy is held to. See custom_parts.yaml."""

from dataclasses import dataclass

from torch import Tensor

from rlkit import Batch, Reference, Sampling
from rlkit.model.reference import Frozen, ReferenceState, Trained


class FlooredState(ReferenceState):
    """On a learner rank. One that follows the policy would also have ``after_step``, ``state_dict`` and ``load_state_dict``."""

    def __init__(self, start: ReferenceState, floor: float) -> None:
        self.start, self.floor = start, floor

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:  # [N] tokens, no gradient
        return self.start.logprobs(b, sampling).clamp(min=self.floor)


@dataclass(frozen=True, kw_only=True)
class Floored(Reference):
    """The model that training started from, its log-probs at least ``floor``: one token that it never writes does not outweigh the rest."""

    floor: float = -10.0

    def build(self, trained: Trained) -> ReferenceState:
        return FlooredState(Frozen().build(trained), self.floor)
