"""A penalty of your own: a cost of each token that is taken from rewards or advantages. See custom_parts.yaml."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlkit import Batch, Penalty


@dataclass(frozen=True, kw_only=True)
class Surprise(Penalty):
    """What a token's surprisal ``-log pi`` exceeds ``above`` nats by: what a fluent writer would not write."""

    needs: ClassVar[frozenset[str]] = frozenset({"old"})  # the learner's log-probs from before the update
    above: float = 3.0

    def __call__(self, b: Batch) -> Tensor:  # [N] tokens, no gradient
        return (-b.logp["old"] - self.above).clamp(min=0)
