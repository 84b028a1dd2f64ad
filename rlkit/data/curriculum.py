"""Which prompt comes next, and which finished groups are replaced.

A sampler's config is a frozen dataclass; ``build`` makes its state. ``__next__`` and ``observe`` are called from the driver's
loop only (one thread). ``observe`` sees every finished group, dropped ones too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rlkit.types import Prompt, Rollout  # types only: a reward's process must not import torch



class SamplerState(Protocol):
    def __next__(self) -> Prompt: ...
    def observe(self, group: Sequence[Rollout]) -> None: ...
    def metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Sampler(Protocol):
    def build(self, prompts: Sequence[Prompt], seed: int) -> SamplerState: ...


class DropRule(Protocol):
    """Says why a finished group is not trained on (it is replaced by another), or None."""

    def __call__(self, group: Sequence[Rollout]) -> str | None: ...


def pass_rate(group: Sequence[Rollout]) -> float:
    """Mean reward of the scored responses, bounded to [0, 1]; nan if none was scored."""
    rewards = [min(1.0, max(0.0, r.reward)) for r in group if not math.isnan(r.reward)]
    return sum(rewards) / len(rewards) if rewards else math.nan


class _ShuffleState:
    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts, self.seed, self.epoch, self.cursor = prompts, seed, 0, 0
        self.order = self._order()

    def _order(self) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order

    def __next__(self) -> Prompt:
        if self.cursor == len(self.order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self.order = self._order()
        self.cursor += 1
        return self.prompts[self.order[self.cursor - 1]]

    def observe(self, group: Sequence[Rollout]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {"data/epoch": self.epoch + self.cursor / max(1, len(self.order))}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self.order = self._order()


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """Every prompt once an epoch, in an order that depends on the seed and the epoch alone."""

    def build(self, prompts: Sequence[Prompt], seed: int) -> SamplerState:
        return _ShuffleState(prompts, seed)


class _WeightedState:
    """Draws with weights that follow an EMA of each prompt's pass rate."""

    def __init__(self, prompts: Sequence[Prompt], seed: int, spec: Any) -> None:
        self.prompts, self.spec, self.rng = prompts, spec, random.Random(f"weighted/{seed}")
        self.index = {p.id: i for i, p in enumerate(prompts)}
        self.rate = [spec.initial] * len(prompts)

    def __next__(self) -> Prompt:
        weights = [self.spec.weight(p) for p in self.rate]
        return self.rng.choices(self.prompts, weights)[0]

    def observe(self, group: Sequence[Rollout]) -> None:
        p = pass_rate(group)
        if not math.isnan(p):
            i = self.index[group[0].prompt.id]
            self.rate[i] = self.spec.decay * self.rate[i] + (1 - self.spec.decay) * p

    def metrics(self) -> dict[str, float]:
        return {"data/pass_rate_ema": sum(self.rate) / len(self.rate)}

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.rng.getstate()
        return {"rate": self.rate, "rng": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["rate"]) != len(self.prompts):
            raise ValueError(f"the checkpoint's sampler has seen {len(state['rate'])} prompts, the data set has "
                             f"{len(self.prompts)}: it is another data set.")
        self.rate = state["rate"]
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))


@dataclass(frozen=True, kw_only=True)
class GaussianDifficulty:
    """Draws a prompt with weight ``exp(-(p - center)^2 / (2 width^2))``, ``p`` an EMA of its pass rate, 0.5 at first.

    Source: FG-ExPO 2605.11403, Gaussian curriculum sampling.
    """

    center: float = 0.5
    width: float = 0.35
    decay: float = 0.9
    initial: float = 0.5

    def __post_init__(self) -> None:
        if self.width <= 0 or not 0 <= self.decay < 1:
            raise ValueError(f"GaussianDifficulty: width is {self.width} (must be > 0), decay is {self.decay} (in [0, 1)).")

    def weight(self, p: float) -> float:
        return math.exp(-((p - self.center) ** 2) / (2 * self.width**2))

    def build(self, prompts: Sequence[Prompt], seed: int) -> SamplerState:
        return _WeightedState(prompts, seed, self)


@dataclass(frozen=True, kw_only=True)
class Learnability:
    """Draws a prompt with weight ``p (1 - p) + floor``: where rewards vary most."""

    decay: float = 0.9
    initial: float = 0.5
    floor: float = 0.01

    def weight(self, p: float) -> float:
        return p * (1 - p) + self.floor

    def build(self, prompts: Sequence[Prompt], seed: int) -> SamplerState:
        return _WeightedState(prompts, seed, self)


@dataclass(frozen=True, kw_only=True)
class ZeroVariance:
    """Replaces groups whose rewards are all equal (dynamic sampling, DAPO 2503.14476)."""

    def __call__(self, group: Sequence[Rollout]) -> str | None:
        rewards = {r.reward for r in group if not math.isnan(r.reward)}
        return "zero_variance" if len(rewards) < 2 else None


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """Replaces groups in which more than ``share`` of the responses were cut at the token limit."""

    share: float = 0.5

    def __call__(self, group: Sequence[Rollout]) -> str | None:
        return "overlong" if sum(r.finish == "length" for r in group) > self.share * len(group) else None
