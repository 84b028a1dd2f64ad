"""A loss of pairs of your own: say what the score of a response is, and its fields are YAML keys. See custom_pair_loss.yaml.

``rlkit check examples/custom_pair_loss.yaml`` finds where it leads: it weighs the reward against no divergence that has a name.
"""

from dataclasses import dataclass

from torch import Tensor

from rlkit import Batch, New, Pairwise


@dataclass(frozen=True, kw_only=True)
class PerToken(Pairwise):
    """DPO with log-ratios per token, so that length is no advantage; ``link: hinge`` and the like are keys of every such loss."""

    needs = frozenset({"ref"})
    beta: float = 1.0

    def score(self, new: New, b: Batch) -> Tensor:  # [S], a number for each response
        return self.beta * b.seq_mean(new.logp - b.logp["ref"])
