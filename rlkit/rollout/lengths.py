"""A curriculum over the response limit that stops growing when the policy has lost its entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.bounds import Bounded, Count, NonNegative
from rlkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Lengths(Bounded):
    """``sampling.max_tokens`` takes the values of ``limits``, ``every`` steps each.

    The next limit comes only if the entropy of sampled tokens (nats, averaged over the last steps) is at least ``min_entropy``; null: half
    of what it was at first. Otherwise the limit stays for the rest of the run.

    Source: Decoupling KL and Trajectories 2605.16826, entropy-gated length curriculum (the threshold is our assumption).
    """

    limits: tuple[Count, ...]
    every: Count = 50
    min_entropy: NonNegative | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limits or list(self.limits) != sorted(set(self.limits)) or self.limits[0] < 1:
            raise ConfigError(f"rollout.lengths: limits must be positive and ascending; found {list(self.limits)}.")


class LengthState:
    """Where a run is in its :class:`Lengths`."""

    def __init__(self, spec: Lengths) -> None:
        self.spec, self.stage, self.stopped, self.entropy, self.first = spec, 0, False, 0.0, 0.0

    @property
    def limit(self) -> int:
        return self.spec.limits[self.stage]

    def observe(self, step: int, entropy: float) -> None:
        """The entropy that step ``step`` (from 1) measured."""
        self.entropy = entropy if step == 1 else 0.9 * self.entropy + 0.1 * entropy
        self.first = entropy if step == 1 else self.first
        if step % self.spec.every or self.stopped or self.stage + 1 == len(self.spec.limits):
            return
        enough = self.entropy >= (0.5 * self.first if self.spec.min_entropy is None else self.spec.min_entropy)
        self.stage, self.stopped = self.stage + enough, not enough

    def metrics(self) -> dict[str, float]:
        return {"length/limit": float(self.limit), "length/gate_entropy": self.entropy}

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "stopped": self.stopped, "entropy": self.entropy, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stage, self.stopped, self.entropy, self.first = (
            state["stage"],
            state["stopped"],
            state["entropy"],
            state["first"],
        )
