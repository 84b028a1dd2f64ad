"""An advantage of your own: from rewards to a number for each token. See custom_parts.yaml."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlkit import Advantage, Batch


@dataclass(frozen=True)
class AgainstMedian(Advantage):
    """``A = R - median(R of the group)``: one response with an extreme reward does not move the others' advantages."""

    group: ClassVar[bool] = True  # it compares the responses of a prompt

    def __call__(self, b: Batch) -> Tensor:  # [N] tokens
        median = torch.stack([b.reward[b.group == g].median() for g in range(b.G)])
        return (b.reward - median[b.group])[b.seq]
