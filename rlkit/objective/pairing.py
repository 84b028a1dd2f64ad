"""Which responses of a step are compared with each other: pairs for terms with ``on: policy``."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlkit.bounds import Bound, Finite, NonNegative, Positive
from rlkit.errors import ConfigError
from rlkit.plug import Plug
from rlkit.types import SOURCES, Batch


@dataclass(frozen=True, kw_only=True)
class Pairing(Plug):
    """Base of every rule. A user's own is a subclass with ``__call__``."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.pairing",)

    @abstractmethod
    def __call__(self, b: Batch, generator: torch.Generator) -> Annotated[Tensor, "P two"]:
        """The sequences (better, worse) of each pair, by their index; ``b`` holds the step's own responses, and both are of one group.

        All randomness comes from ``generator``, which a step makes anew from the run's seed.
        """


def as_pairs(found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``[P, 2]`` of what was found."""
    return torch.tensor([[int(better), int(worse)] for better, worse in found], dtype=torch.long).view(-1, 2)


@dataclass(frozen=True, kw_only=True)
class BestWorst(Pairing):
    """The best response of a prompt against its worst, if their rewards differ by more than ``margin``; of equal ones the first.

    Attributes:
        least: the best must have this reward at least. ScPO's threshold, where the reward is the share of votes.

    Source: RLHF Workflow 2405.07863 (iterative DPO); ScPO 2411.04109 (``least``).
    """

    margin: NonNegative = 0.0
    least: Finite | None = None

    def __call__(self, b: Batch, generator: torch.Generator) -> Tensor:
        found = []
        for rows in b.groups():
            reward = b.reward[rows]
            best, worst = reward.argmax(), reward.argmin()
            known = self.least is None or float(reward[best]) >= self.least
            if known and float(reward[best]) - float(reward[worst]) > self.margin:
                found.append((rows[best], rows[worst]))
        return as_pairs(found)


@dataclass(frozen=True, kw_only=True)
class Everybody(Pairing):
    """Every response of a prompt against every one whose reward is lower by more than ``margin``."""

    margin: NonNegative = 0.0

    def __call__(self, b: Batch, generator: torch.Generator) -> Tensor:
        found = [torch.empty(0, 2, dtype=torch.long)]
        for rows in b.groups():  # a table of all sequences of the batch would grow with their square
            reward = b.reward[rows]
            found.append(rows[(reward[:, None] - reward[None] > self.margin).nonzero()])
        pairs = torch.cat(found)
        return pairs[pairs[:, 0].argsort(stable=True)]


@dataclass(frozen=True, kw_only=True)
class RejectionSampled(Pairing):
    """RSO: responses as the optimal policy would give them, ``ref exp(reward / eta)``, by rejection; then two and two of them at random.

    A response is accepted with the chance ``exp((reward - highest reward of those that are left) / eta)``, round after round, until
    ``keep`` of the prompt's responses are. The paper samples from the reference; so does the first step of a run, and a run that makes
    a file of pairs.

    Source: RSO 2309.06657 (its algorithm from memory: published 64 responses, keep 8, eta 0.5).
    """

    eta: Positive = 0.5
    keep: Annotated[int, Bound(at_least=2)] = 8

    def accepted(self, reward: Tensor, generator: torch.Generator) -> list[int]:
        """Which responses to one prompt are accepted, in the order in which they were."""
        left, kept = list(range(len(reward))), list[int]()
        while left and len(kept) < self.keep:
            highest = max(float(reward[i]) for i in left)
            drawn = torch.rand(len(left), generator=generator, dtype=torch.float64).tolist()
            now = [
                i for i, u in zip(left, drawn, strict=True) if u <= math.exp((float(reward[i]) - highest) / self.eta)
            ]
            kept += now[: self.keep - len(kept)]
            left = [i for i in left if i not in now]
        return kept

    def __call__(self, b: Batch, generator: torch.Generator) -> Tensor:
        found = []
        for rows in b.groups():
            kept = rows[self.accepted(b.reward[rows], generator)]
            kept = kept[torch.randperm(len(kept), generator=generator)]
            for one, other in zip(kept[::2], kept[1::2], strict=False):
                apart = float(b.reward[one] - b.reward[other])
                if apart:
                    found.append((one, other) if apart > 0 else (other, one))
        return as_pairs(found)


def with_pairs(b: Batch, pairing: Pairing | None, seed: int) -> Batch:
    """The batch with the pairs of its own responses beside those of the data; ``seed`` is the step's.

    Raises:
        ConfigError: a rule that pairs responses to different prompts.
    """
    sampled = b.source == SOURCES.index("policy")
    if pairing is None or not bool(sampled.any()):
        return b
    generator = torch.Generator().manual_seed(seed)
    made = sampled.nonzero()[:, 0][pairing(b.rows(sampled).replace(pairs=None), generator)]
    better, worse = b.group[made].unbind(1)
    if not torch.equal(better, worse):
        raise ConfigError(
            f"pairing: {type(pairing).__name__} compares responses to different prompts; a pair is of one group."
        )
    return b.replace(pairs=made if b.pairs is None else torch.cat([b.pairs, made]))
