"""Which responses of a step are compared with each other: pairs for terms with ``on: policy``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlkit.bounds import NonNegative
from rlkit.errors import ConfigError
from rlkit.plug import Plug
from rlkit.types import SOURCES, Batch


@dataclass(frozen=True, kw_only=True)
class Pairing(Plug):
    """Base of every rule. A user's own is a subclass with ``__call__``."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.pairing",)

    @abstractmethod
    def __call__(self, b: Batch) -> Annotated[Tensor, "P two"]:
        """The sequences (better, worse) of each pair, by their index; ``b`` holds the step's own responses, and both are of one group."""


@dataclass(frozen=True, kw_only=True)
class BestWorst(Pairing):
    """The best response of a prompt against its worst, if their rewards differ by more than ``margin``; of equal ones the first."""

    margin: NonNegative = 0.0

    def __call__(self, b: Batch) -> Tensor:
        found = []
        for group in b.group.unique():
            rows = (b.group == group).nonzero()[:, 0]
            reward = b.reward[rows]
            best, worst = int(reward.argmax()), int(reward.argmin())
            if float(reward[best]) - float(reward[worst]) > self.margin:
                found.append([int(rows[best]), int(rows[worst])])
        return torch.tensor(found, dtype=torch.long).view(-1, 2)


def with_pairs(b: Batch, pairing: Pairing | None) -> Batch:
    """The batch with the pairs of its own responses beside those of the data.

    Raises:
        ConfigError: a rule that pairs responses to different prompts.
    """
    sampled = b.source == SOURCES.index("policy")
    if pairing is None or not bool(sampled.any()):
        return b
    made = sampled.nonzero()[:, 0][pairing(b.rows(sampled).replace(pairs=None))]
    better, worse = b.group[made].unbind(1)
    if not torch.equal(better, worse):
        raise ConfigError(
            f"pairing: {type(pairing).__name__} compares responses to different prompts; a pair is of one group."
        )
    return b.replace(pairs=made if b.pairs is None else torch.cat([b.pairs, made]))
