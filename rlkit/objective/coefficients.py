"""Coefficients of terms and penalties: constants, schedules and controllers.

A coefficient is a frozen config object. Its state is a small dict of numbers, kept by the trainer, logged every step and
saved with every checkpoint; ``start`` makes it and ``next`` turns it into that of the following step. Nothing mutates a config.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlkit.bounds import Count, Natural, NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.objective.advantages import group_centre
from rlkit.plug import Plug
from rlkit.types import Batch, PerSequence, Stats

State = dict[str, float]


@dataclass(frozen=True)
class Coefficient(Plug):
    """Base of everything that ``coef`` may be beside a number.

    ``state["value"]`` is the coefficient; other keys are what it remembers or shows. A user's own overrides :meth:`start` and,
    if it changes, :meth:`next`; what depends on the step alone is a :class:`Schedule`, what holds a measured number a :class:`Controller`.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.coefficients",)

    @abstractmethod
    def start(self) -> State:
        """The state of the first step."""

    def next(self, state: State, step: int, stats: Stats) -> State:
        """The state for step ``step`` (0-based), given what the step before it measured."""
        return state

    def per_sequence(self, b: Batch) -> PerSequence | None:
        """What it is multiplied with for each response; None: it is the same for all."""
        return None


@dataclass(frozen=True)
class Constant(Coefficient):
    value: float

    def start(self) -> State:
        return {"value": self.value}


# -- schedules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule(Coefficient):
    """Base of coefficients that are a function of the step: override ``__call__``."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The coefficient of step ``step``, 0-based."""

    def start(self) -> State:
        return {"value": self(0)}

    def next(self, state: State, step: int, stats: Stats) -> State:
        return {"value": self(step)}


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start_value`` to ``end_value`` over ``steps`` steps, then constant.

    Source: KDRL 2506.02208 (anneals 5e-3 to 1e-3).
    """

    start_value: float
    end_value: float
    steps: Natural

    def __call__(self, step: int) -> float:
        done = min(1.0, step / max(1, self.steps))
        return self.start_value + (self.end_value - self.start_value) * done


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from ``start_value`` to ``end_value`` over ``steps`` steps, then constant."""

    start_value: float
    end_value: float
    steps: Natural

    def __call__(self, step: int) -> float:
        done = min(1.0, step / max(1, self.steps))
        return self.end_value + (self.start_value - self.end_value) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Step(Schedule):
    """``values[k]`` from step ``at[k-1]`` on; ``values[0]`` before."""

    values: tuple[float, ...]
    at: tuple[Natural, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != len(self.at) + 1 or list(self.at) != sorted(self.at):
            raise ConfigError(
                f"Step needs one more value than boundaries, boundaries ascending; found {self.values} and {self.at}."
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= b for b in self.at)]


# -- controllers ------------------------------------------------------------------------------------------------------


class Controller(Coefficient):
    """Base of coefficients that hold a measured number at ``target``, from ``init`` on: override :meth:`measured` and :meth:`respond`."""

    target: float
    init: float

    @abstractmethod
    def measured(self, stats: Stats) -> float:
        """What is held, as the last step measured it; NaN: it did not, and the coefficient stays."""

    @abstractmethod
    def respond(self, state: State, measured: float, stats: Stats) -> State:
        """What changes in the state: the next ``value``, the ``error``, and what else it remembers."""

    def start(self) -> State:
        return {"value": self.init, "target": self.target}

    def next(self, state: State, step: int, stats: Stats) -> State:
        measured = self.measured(stats)
        if math.isnan(measured):
            return state
        return {**state, "target": self.target, "measured": measured, **self.respond(state, measured, stats)}


@dataclass(frozen=True, kw_only=True)
class KLController(Controller):
    """Base of controllers of the KL to ``anchor``, in nats ``per`` token or sequence: override :meth:`respond`."""

    per: Literal["token", "sequence"] = "token"
    anchor: str = "ref"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target <= 0:
            raise ConfigError(
                f"{type(self).__name__}.target is {self.target}; a KL target must be positive (nats): the policy can only stay at "
                "KL 0 by not learning."
            )

    def measured(self, stats: Stats) -> float:
        return stats.get(f"kl/{self.anchor}" if self.per == "token" else f"kl/{self.anchor}_sequence")


@dataclass(frozen=True)
class AdaptiveKL(KLController):
    """Ziegler's proportional controller: ``c <- c (1 + clip(KL/target - 1, -0.2, 0.2) n / horizon)``.

    ``n`` is the number of sequences since the last update. Published targets are per sequence (6 nats).

    Source: Ziegler et al. 1909.08593, section 2.2.
    """

    init: NonNegative = 0.05
    target: float = 6.0
    horizon: Positive = 10000.0
    per: Literal["token", "sequence"] = field(default="sequence", kw_only=True)

    def respond(self, state: State, measured: float, stats: Stats) -> State:
        error = measured / self.target - 1
        share = min(0.2, max(-0.2, error)) * stats.get("batch/sequences", 1.0) / self.horizon
        return {"value": state["value"] * (1 + share), "error": error}


@dataclass(frozen=True)
class KLBudget(KLController):
    """Holds the KL at ``target`` nats: PI control of ``log c`` with anti-windup.

    ``e = clip(KL / target - 1, -1, 1)``, ``log c = log init + kp e + ki sum(e)``; the integral stands still while ``c`` is at
    ``low`` or ``high`` and the error pushes it further out.
    """

    target: float
    init: float = 0.01
    kp: NonNegative = 0.5
    ki: NonNegative = 0.1
    low: float = 1e-6
    high: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.init <= self.high:
            raise ConfigError(f"KLBudget needs 0 < low <= init <= high; found {self.low}, {self.init}, {self.high}.")

    def start(self) -> State:
        return {**super().start(), "integral": 0.0}

    def respond(self, state: State, measured: float, stats: Stats) -> State:
        error = min(1.0, max(-1.0, measured / self.target - 1))
        integral = state["integral"] + error
        log_c = math.log(self.init) + self.kp * error + self.ki * integral
        value = min(self.high, max(self.low, math.exp(min(log_c, 50.0))))
        saturated = (value == self.high and error > 0) or (value == self.low and error < 0)
        return {"value": value, "integral": state["integral"] if saturated else integral, "error": error}


@dataclass(frozen=True)
class DualAscent(KLController):
    """The Lagrange multiplier of ``KL <= target``: ``c <- min(high, max(0, c + lr (KL - target)))``."""

    target: float
    init: NonNegative = 0.01
    lr: Positive = 0.01
    high: Positive = 10.0

    def respond(self, state: State, measured: float, stats: Stats) -> State:
        error = measured - self.target
        return {"value": min(self.high, max(0.0, state["value"] + self.lr * error)), "error": error}


@dataclass(frozen=True)
class EntropyTarget(Controller):
    """Holds the policy's entropy at ``target`` nats per token, as the coefficient of an entropy bonus: ``{type: Entropy, coef: ...}``.

    ======  =====================================================================================
    rule    of a step in which the entropy of the samples was H
    ======  =====================================================================================
    dual    ``log c <- log c + rate clip(1 - H / target, -1, 1)``: the temperature of SAC, its error relative and bounded
    steps   ``c <- c + rate`` where H < target, else ``c - rate``; the bonus has ``c`` while H <= target, else ``low``
    ======  =====================================================================================

    ``rule`` is a row of the table. ``c`` stays in [``low``, ``high``]: with ``dual`` ``low`` must be positive, and is what the bonus falls
    to while the entropy is above the target. An entropy bonus cannot lower an entropy. H is ``entropy/sampled``: of the step's samples, at
    their temperature.

    Source: Soft Actor-Critic 1812.05905, section 5 (dual); Skywork-OR1 2505.22312, adaptive entropy control (steps; target 0.2, start 0,
    rate 0.005 there).
    """

    target: float
    init: float = 0.001
    rate: float = 0.05
    low: float = 1e-6
    high: float = 0.1
    rule: Literal["dual", "steps"] = "dual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target <= 0 or self.rate <= 0:
            raise ConfigError(
                f"EntropyTarget: target is {self.target} and rate is {self.rate}; both must be positive (target in nats per token)."
            )
        if not 0 <= self.low <= self.init <= self.high or (self.rule == "dual" and self.low == 0):
            raise ConfigError(
                f"EntropyTarget needs 0 <= low <= init <= high, and low above 0 for rule: dual; found {self.low}, {self.init}, {self.high}."
            )

    def measured(self, stats: Stats) -> float:
        return stats.get("entropy/sampled")

    def start(self) -> State:
        return {**super().start(), "bonus": self.init}

    def respond(self, state: State, measured: float, stats: Stats) -> State:
        error = 1 - measured / self.target
        if self.rule == "dual":
            bonus = state["bonus"] * math.exp(self.rate * min(1.0, max(-1.0, error)))
        else:
            bonus = state["bonus"] + (self.rate if error > 0 else -self.rate)
        bonus = min(self.high, max(self.low, bonus))
        value = bonus if self.rule == "dual" or error >= 0 else self.low
        return {"value": value, "bonus": bonus, "error": error}


@dataclass(frozen=True)
class WhenWorse(Coefficient):
    """A share that grows by ``by`` whenever a held-out score has fallen by ``worse`` since it last did: how much a distillation reads of
    the policy's own responses, beside given ones.

    ``phi`` starts at ``init``; an evaluation with ``eval/score <= score - worse`` makes it ``min(1, phi + by)``, and its score the one that
    later ones are compared with. The first evaluation of the run is the first such score. ``of: policy`` gives ``phi``, ``of: dataset``
    ``1 - phi``: one of each, on two terms, is the expectation of drawing each batch's source.

    The score of a run without held-out prompts (``eval.prompts: 0``) is the negated NLL of its held-out rows, which is the published one.

    Source: DistiLLM 2402.03898 (the released scheduler, 0.1 and 0.1; without its replay buffer, so that all own responses are fresh).
    """

    of: Literal["policy", "dataset"] = "policy"
    init: Share = 0.0
    by: Share = 0.1
    worse: float = 0.1

    def start(self) -> State:
        return self._at(self.init)

    def _at(self, phi: float) -> State:
        return {"value": phi if self.of == "policy" else 1 - phi, "phi": phi}

    def next(self, state: State, step: int, stats: Stats) -> State:
        score = stats.get("eval/score")
        if math.isnan(score):
            return state
        if "score" not in state:
            return {**state, "score": score}
        if score > state["score"] - self.worse:
            return state
        return {**self._at(min(1.0, state["phi"] + self.by)), "score": score}


# -- coefficients that weigh responses --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyScaled(Coefficient):
    """``base * (tanh(accuracy) + 1) / 2``, accuracy = the batch's mean reward in [0, 1]: weak on hard batches.

    The batch's own accuracy scales its own update (``current``); the state shows the last one.

    Source: FG-ExPO 2605.11403, accuracy-conditioned KL scaling.
    """

    base: float = 0.02

    def start(self) -> State:
        return {"value": self.base}

    def next(self, state: State, step: int, stats: Stats) -> State:
        return {"value": self.base, "accuracy": stats.get("reward/mean")}

    def per_sequence(self, b: Batch) -> Tensor:
        accuracy = b.reward.clamp(0, 1).mean()
        return ((torch.tanh(accuracy) + 1) / 2).expand(b.S)


@dataclass(frozen=True)
class DifficultyWeighted(Coefficient):
    """APO's DADS: ``base * (1 - exp(-e (1 - d)))`` on responses with positive advantage, ``d`` = 1 - pass rate of the group.

    Responses with a negative advantage, and groups with d of exactly 0 or 1, keep weight 1.

    Source: APO 2506.21655 (the released code).
    """

    base: float = 1e-3

    def start(self) -> State:
        return {"value": self.base}

    def per_sequence(self, b: Batch) -> Tensor:
        correct = (b.reward > 0.5).to(b.reward.dtype)
        p = (b.group_sum(correct) / b.group_size())[b.group]
        weight = 1 - torch.exp(-math.e * p)
        # A penalty in the reward comes before advantages: there the sign is that of the reward against its group.
        good = group_centre(b, b.reward) > 0 if b.adv is None else b.seq_mean(b.adv) > 0
        return torch.where(good & (p > 0) & (p < 1), weight, torch.ones_like(weight))


@dataclass(frozen=True)
class RewardMasked(Coefficient):
    """``base`` only on incorrect responses (``by: response``) or on groups without a correct one (``by: group``).

    Source: KDRL 2506.02208, reward-guided masking.
    """

    base: float = 1e-3
    by: Literal["response", "group"] = "response"

    def start(self) -> State:
        return {"value": self.base}

    def per_sequence(self, b: Batch) -> Tensor:
        correct = (b.reward > 0.5).to(b.reward.dtype)
        solved = correct if self.by == "response" else (b.group_sum(correct) > 0).to(correct.dtype)[b.group]
        return 1 - solved


@dataclass(frozen=True)
class BestOfGroup(Coefficient):
    """``base`` on the ``keep`` responses of each prompt with the highest rewards, 0 on the others: rejection sampling as a coefficient.

    Kept responses are multiplied by responses / kept (of their source), so that under ``reduce: seq`` and ``sum`` the mean is that over
    the kept ones. Of equal rewards the first counts.

    Source: SuperHF 2310.16763 (best of S; number from memory, rule from the released code).
    """

    base: float = 1.0
    keep: Count = 1

    def start(self) -> State:
        return {"value": self.base}

    def per_sequence(self, b: Batch) -> Tensor:
        order = torch.argsort(b.reward, descending=True, stable=True)
        order = order[torch.argsort(b.group[order], stable=True)]
        group = b.group[order]
        rank = torch.arange(b.S, device=order.device) - torch.searchsorted(group, group)
        kept = torch.zeros_like(b.reward).index_fill(0, order[rank < self.keep], 1.0)
        return kept * (torch.bincount(b.source) / torch.bincount(b.source, kept))[b.source]


@dataclass(frozen=True)
class RewardGap(Coefficient):
    """``base`` times the difference of the rewards of a pair: what is known better counts more.

    Of a loss of pairs, each pair has that weight. Of a loss of single responses (``half: better``: of the better ones of pairs alone, as
    for an NLL beside it), the mean is over pairs, too. Where the reward is a response's share of votes, it is ScPO's weight.

    Source: ScPO 2411.04109 (from search excerpts).
    """

    base: float = 1.0
    half: Literal["both", "better"] = "both"

    def start(self) -> State:
        return {"value": self.base}

    def per_sequence(self, b: Batch) -> Tensor:
        gap = torch.zeros_like(b.reward)
        if b.pairs is None:
            return gap
        better, worse = b.halves(b.reward)
        for column in range(1 if self.half == "better" else 2):
            gap = gap.scatter_reduce(0, b.pairs[:, column], better - worse, "amax")
        if self.half == "both":
            return gap
        rows = (b.source == b.source[b.pairs[0, 0]]).sum() if b.P else b.S
        return gap * rows / max(1, b.P)


def as_coefficient(x: float | Coefficient) -> Coefficient:
    """A plain number becomes a Constant.

    Raises:
        ConfigError: it is neither a number nor a coefficient.
    """
    if isinstance(x, int | float) and not isinstance(x, bool):
        return Constant(float(x))
    if not isinstance(x, Coefficient):
        raise ConfigError(f"coef is {x!r}; it must be a number or a coefficient, e.g. {{type: Linear, ...}}.")
    return x


class Weighed(Protocol):
    """A term or a penalty."""

    @property
    def coef(self) -> float | Coefficient: ...

    @property
    def name(self) -> str: ...


def distinct(parts: Iterable[Weighed]) -> list[str]:
    """The names of a run's terms or penalties in metrics; of several of one name (the same loss on two kinds of rows) the second is
    ``NAME#2``, and so on.
    """
    seen, out = dict[str, int](), list[str]()
    for part in parts:
        seen[part.name] = seen.get(part.name, 0) + 1
        out.append(part.name if seen[part.name] == 1 else f"{part.name}#{seen[part.name]}")
    return out


class Coefficients:
    """The states of all coefficients of a run, in the order of terms and penalties."""

    def __init__(self, parts: Iterable[Weighed]) -> None:
        self.parts = list(parts)
        self.names = distinct(self.parts)
        self.specs = [as_coefficient(part.coef) for part in self.parts]
        self.states = [spec.start() for spec in self.specs]

    def values(self) -> list[float]:
        return [s["value"] for s in self.states]

    def named(self) -> dict[str, float]:
        return dict(zip(self.names, self.values(), strict=True))

    def hold(self, name: str, value: float) -> None:
        """Holds the coefficient of a part at ``value`` from now on: ``held`` in its state says that its rule no longer moves it.

        Raises:
            ConfigError: there is no such part, or the value is not a number.
        """
        names = list(self.named())
        if name not in names:
            raise ConfigError(f"there is no coefficient of {name!r}; there are those of {', '.join(names)}.")
        if not math.isfinite(value):
            raise ConfigError(f"the coefficient of {name} cannot be {value}; it must be finite.")
        self.states[names.index(name)] = {"value": float(value), "held": 1.0}

    def update(self, step: int, stats: Stats) -> None:
        self.states = [
            s if "held" in s else spec.next(s, step, stats) for spec, s in zip(self.specs, self.states, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        out = {}
        for name, state in zip(self.names, self.states, strict=True):
            for key, v in state.items():
                out[f"coef/{name}" + ("" if key == "value" else f"/{key}")] = v
        return out

    def state_dict(self) -> list[State]:
        return self.states

    def load_state_dict(self, states: list[State]) -> None:
        assert len(states) == len(self.specs), "the checkpoint has other terms"
        self.states = states
