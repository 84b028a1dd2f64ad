"""A rule of your own for which responses of a step are compared: pairs for losses with ``on: policy``. See custom_parts.yaml."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit import Batch, Pairing


@dataclass(frozen=True, kw_only=True)
class Neighbours(Pairing):
    """Each response of a prompt against the next worse one, if it is worse by more than ``margin``: n - 1 pairs at most, none twice."""

    margin: float = 0.0

    def __call__(self, b: Batch, generator: torch.Generator) -> Tensor:  # [P, 2] rows (better, worse) of b
        pairs = []
        for group in b.group.unique():
            rows = (b.group == group).nonzero()[:, 0]
            ranked = rows[b.reward[rows].argsort(descending=True)].tolist()
            pairs += [[i, j] for i, j in itertools.pairwise(ranked) if float(b.reward[i] - b.reward[j]) > self.margin]
        return torch.tensor(pairs, dtype=torch.long).view(-1, 2)
