"""What a learner needs to know of a run: the only thing about it that travels to the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rlkit.learner.section import Critic, LearnerSection
from rlkit.model.reference import Reference
from rlkit.objective import Term
from rlkit.types import TOLERANCE, Sampling


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model that training starts from, ``path`` a folder or a hub name, and how it and those beside it are loaded."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str | None = None
    fp32_head: bool = False

    @property
    def type(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def tolerance(self) -> float:
        """How far log-probs of one model may be apart that were computed in two ways, in nats."""
        return TOLERANCE[self.dtype]


@dataclass(frozen=True, kw_only=True)
class LearnerSetup:
    """What all ranks know of a run.

    Attributes:
        needs: what the terms, the advantage and the penalties of the run read. steps: its optimizer steps, over which the learning rate
            changes. bucket: bytes of weights that are gathered and travel at a time. shared: an engine in this process generates
            with the model that is trained.
    """

    start: Start
    objective: tuple[Term, ...]
    needs: frozenset[str]
    sampling: Sampling
    learner: LearnerSection
    steps: int
    seed: int
    critic: Critic | None = None
    reference: Reference | None = None
    teacher: Reference | None = None
    deepspeed: Mapping[str, Any] | None = None
    peft: dict[str, Any] | None = None
    bucket: int = 64 << 20
    shared: bool = False

    @property
    def updates(self) -> int:
        """Optimizer steps that are made of one rollout batch."""
        return self.learner.epochs * self.learner.minibatches
