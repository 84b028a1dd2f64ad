"""Which prompt comes next, which are not worth asking, and which finished groups are replaced.

A sampler is a frozen dataclass; ``build`` makes what draws in a run. That is called from the driver's loop only (one thread). What is known
about prompts is in one place, :class:`~rlkit.data.statistics.PromptStatistics`; samplers read it.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from rlkit.bounds import Bound, Count, Decay, NonNegative, Positive, Share
from rlkit.data.statistics import PromptStatistics, pass_rate
from rlkit.errors import ConfigError
from rlkit.plug import Plug
from rlkit.samples import Prompt, Rollout


class SamplerState(ABC):
    """Base of what draws prompts in a run: override ``__next__``.

    It has a random generator of its own, ``rng``, whose state is saved with a checkpoint. What else a subclass remembers it adds to
    :meth:`state_dict` and takes back in :meth:`load_state_dict`.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> None:
        self.prompts, self.statistics, self.rng = prompts, statistics, random.Random(f"{type(self).__name__}/{seed}")

    @abstractmethod
    def __next__(self) -> Prompt:
        """The prompt of the next group."""

    def observe(self, group: Sequence[Rollout]) -> None:  # noqa: B027 (a sampler may have nothing to learn from a group)
        """A finished group, dropped ones too; the statistics know it already."""

    def metrics(self) -> dict[str, float]:
        """What is logged every step, e.g. ``data/stage``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: numbers, texts, lists and mappings of them."""
        version, internal, gauss = self.rng.getstate()
        return {"rng": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))


@dataclass(frozen=True, kw_only=True)
class Sampler(Plug):
    """Base of orders of prompts. A user's own overrides :meth:`choose`, or :meth:`build` if it remembers more than the statistics do."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.data.curriculum",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self).choose is Sampler.choose and type(self).build is Sampler.build:
            raise ConfigError(
                f"{type(self).__name__} defines neither choose(prompts, statistics, rng), which says what prompt comes next, nor build."
            )

    def choose(self, prompts: Sequence[Prompt], statistics: PromptStatistics, rng: random.Random) -> int:
        """The index of the next prompt. All randomness comes from ``rng``: then a resumed run draws the same prompts."""
        raise NotImplementedError

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        """What draws in a run whose training prompts are these."""
        return _Choosing(self, prompts, seed, statistics)


class _Choosing(SamplerState):
    """Asks the sampler; the random generator is its whole state."""

    def __init__(self, spec: Sampler, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> None:
        super().__init__(prompts, seed, statistics)
        self.spec, self.rng = spec, random.Random(f"_{type(spec).__name__}State/{seed}")

    def __next__(self) -> Prompt:
        return self.prompts[self.spec.choose(self.prompts, self.statistics, self.rng)]


@dataclass(frozen=True, kw_only=True)
class DropRule(Plug):
    """Base of the rules that say why a finished group is not trained on (it is replaced by another)."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.data.curriculum",)

    @abstractmethod
    def __call__(self, group: Sequence[Rollout]) -> str | None:
        """The reason in a word, under which dropped groups are counted in the metrics; None: it is trained on."""


@dataclass(frozen=True, kw_only=True)
class AdmitRule(Plug):
    """Base of the rules that say why a prompt is not worth a group."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.data.curriculum",)

    @abstractmethod
    def __call__(self, prompt: Prompt, ask: Callable[[int, bool], Sequence[Rollout]]) -> str | None:
        """The reason in a word; None: it is worth one. ``ask(n, greedy)`` gives scored responses of the current policy."""


class NoPrompts(SamplerState):
    """That of a run in which nothing is sampled."""

    def __init__(self) -> None:
        super().__init__([], 0, PromptStatistics([]))

    def __next__(self) -> Prompt:
        raise AssertionError("a run without prompts to sample asked for one")


# -- every prompt once an epoch ---------------------------------------------------------------------------------------


class _ShuffleState(SamplerState):
    def __init__(
        self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, retire_above: float | None
    ) -> None:
        super().__init__(prompts, seed, statistics)
        self.seed, self.retire_above, self.epoch, self.cursor = seed, retire_above, 0, 0
        self.order = self._order(list(range(len(prompts))))

    def _order(self, active: list[int]) -> list[int]:
        order = list(active)
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order

    def __next__(self) -> Prompt:
        if self.cursor == len(self.order):
            self.epoch, self.cursor = self.epoch + 1, 0
            active = list(range(len(self.prompts)))
            if self.retire_above is not None:
                scored = self.statistics["responses"] - self.statistics["failures"]
                rate = np.where(scored > 0, self.statistics["passes"] / np.maximum(scored, 1), 0.0)
                active = np.flatnonzero(rate < self.retire_above).tolist() or active
            self.order = self._order(active)
        self.cursor += 1
        return self.prompts[self.order[self.cursor - 1]]

    def metrics(self) -> dict[str, float]:
        return {
            "data/epoch": self.epoch + self.cursor / max(1, len(self.order)),
            "data/active": len(self.order) / len(self.prompts),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor, self.order = state["epoch"], state["cursor"], state["order"]


@dataclass(frozen=True, kw_only=True)
class Shuffle(Sampler):
    """Every prompt once an epoch, in an order that depends on the seed and the epoch alone.

    ``retire_above``: prompts whose pass rate so far is at least this are left out of later epochs (no-positive-resampling). If all
    are, all come back.

    Source: ScaleRL 2510.13786 (``retire_above: 0.9``).
    """

    retire_above: Share | None = None

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _ShuffleState(prompts, seed, statistics, self.retire_above)


# -- by difficulty ----------------------------------------------------------------------------------------------------


class _WeightedState(SamplerState):
    """The weights are computed again after a group was observed."""

    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, spec: ByDifficulty) -> None:
        super().__init__(prompts, seed, statistics)
        self.spec = spec
        self.sums: Any = None
        statistics.decay = spec.decay
        statistics["pass_rate_ema"][statistics["groups"] == 0] = spec.initial

    def __next__(self) -> Prompt:
        if self.sums is None:
            self.sums = np.cumsum(self.spec.weight(self.statistics["pass_rate_ema"]))
        return self.prompts[
            min(int(np.searchsorted(self.sums, self.rng.random() * self.sums[-1], side="right")), len(self.prompts) - 1)
        ]

    def observe(self, group: Sequence[Rollout]) -> None:
        self.sums = None


@dataclass(frozen=True, kw_only=True)
class ByDifficulty(Sampler):
    """Base of samplers that draw with a weight by an EMA of the pass rate: override :meth:`weight`.

    Attributes:
        decay: of the moving average, for each group of a prompt. initial: the pass rate of a prompt that was not asked yet.
    """

    decay: Decay = 0.9
    initial: Share = 0.5

    @abstractmethod
    def weight(self, p: Any) -> Any:
        """Of prompts with these pass rates, an array each."""

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _WeightedState(prompts, seed, statistics, self)


@dataclass(frozen=True, kw_only=True)
class GaussianDifficulty(ByDifficulty):
    """Draws a prompt with weight ``exp(-(p - center)^2 / (2 width^2))``, ``p`` an EMA of its pass rate, ``initial`` at first.

    Source: FG-ExPO 2605.11403, Gaussian curriculum sampling.
    """

    center: float = 0.5
    width: Positive = 0.35

    def weight(self, p: Any) -> Any:
        return np.exp(-((p - self.center) ** 2) / (2 * self.width**2))


@dataclass(frozen=True, kw_only=True)
class Learnability(ByDifficulty):
    """Draws a prompt with weight ``p (1 - p) + floor``: where rewards vary most."""

    floor: Positive = 0.01

    def weight(self, p: Any) -> Any:
        return p * (1 - p) + self.floor


@dataclass(frozen=True, kw_only=True)
class Thompson(Sampler):
    """Draws a pass rate for each of ``candidates`` random prompts from its Beta posterior, and takes the one closest to ``target``.

    What was seldom asked has a wide posterior and keeps being tried; what is surely too easy or too hard is not.
    """

    target: Share = 0.5
    candidates: Count = 16

    def choose(self, prompts: Sequence[Prompt], statistics: PromptStatistics, rng: random.Random) -> int:
        among = rng.sample(range(len(prompts)), min(self.candidates, len(prompts)))
        a, b = statistics.posterior()
        return min(among, key=lambda i: abs(rng.betavariate(float(a[i]), float(b[i])) - self.target))


# -- by a column of the data ------------------------------------------------------------------------------------------


def _by_column(name: str, prompts: Sequence[Prompt], column: str, wanted: Sequence[Any]) -> list[list[int]]:
    """Indices of the prompts with each wanted value."""
    out = [
        [i for i, p in enumerate(prompts) if column in p.columns and str(p.columns[column]) == str(value)]
        for value in wanted
    ]
    empty = [value for value, found in zip(wanted, out, strict=True) if not found]
    if empty:
        there = sorted({str(p.columns.get(column)) for p in prompts})[:10]
        raise ConfigError(
            f"data.sampler {name}: no prompt has {column} = {empty[0]!r}; its values are {', '.join(there)}."
        )
    return out


class _PoolsState(SamplerState):
    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, spec: Pools) -> None:
        super().__init__(prompts, seed, statistics)
        self.spec, self.pools = spec, _by_column("Pools", prompts, spec.column, spec.order)
        self.stage, self.groups, self.rate = 0, 0, 0.0

    def __next__(self) -> Prompt:
        old = self.stage > 0 and self.rng.random() < self.spec.keep
        pool = self.pools[self.rng.randrange(self.stage) if old else self.stage]
        return self.prompts[self.rng.choice(pool)]

    def observe(self, group: Sequence[Rollout]) -> None:
        if str(group[0].prompt.columns[self.spec.column]) != str(self.spec.order[self.stage]):
            return
        rate = pass_rate(group)
        self.groups += 1
        self.rate = rate if self.groups == 1 else 0.95 * self.rate + 0.05 * (self.rate if math.isnan(rate) else rate)
        enough = self.spec.after is not None and self.groups >= self.spec.after
        good = self.spec.gate is not None and self.groups >= 20 and self.rate >= self.spec.gate
        if (enough or good) and self.stage + 1 < len(self.pools):
            self.stage, self.groups, self.rate = self.stage + 1, 0, 0.0

    def metrics(self) -> dict[str, float]:
        return {"data/stage": float(self.stage), "data/stage_pass_rate": self.rate}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stage": self.stage, "groups": self.groups, "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.stage, self.groups, self.rate = state["stage"], state["groups"], state["rate"]


@dataclass(frozen=True, kw_only=True)
class Pools(Sampler):
    """Stages: prompts come from the pool ``column = order[stage]``; earlier pools keep a share ``keep``.

    The next stage starts after ``after`` groups of this one, or when the moving average of its pass rate reaches ``gate`` (after 20
    groups at least), whichever comes first.
    """

    column: str
    order: tuple[str | int | float | bool, ...]
    after: Count | None = None
    gate: Share | None = None
    keep: Decay = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is None and self.gate is None:
            raise ConfigError(
                "data.sampler Pools never leaves its first pool: set `after` (groups) or `gate` (pass rate)."
            )
        if not self.order:
            raise ConfigError("data.sampler Pools: order is empty: name the values of `column`, the first stage first.")

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _PoolsState(prompts, seed, statistics, self)


class _ProportionsState(SamplerState):
    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, spec: Proportions) -> None:
        super().__init__(prompts, seed, statistics)
        self.weights = list(spec.weights.values())
        self.parts = _by_column("Proportions", prompts, spec.column, list(spec.weights))

    def __next__(self) -> Prompt:
        return self.prompts[self.rng.choice(self.rng.choices(self.parts, self.weights)[0])]


@dataclass(frozen=True, kw_only=True)
class Proportions(Sampler):
    """A mixture of data sets: first a value of ``column`` with probability proportional to its weight in ``weights``, then one of its
    prompts.

    With several files in ``data.train``, the column ``dataset`` holds the name of each row's file.
    """

    weights: dict[str, NonNegative]
    column: str = "dataset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
            raise ConfigError(
                f"data.sampler Proportions: weights are {dict(self.weights)}; they must be >= 0 and not all 0."
            )

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _ProportionsState(prompts, seed, statistics, self)


class _TogetherState(SamplerState):
    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, column: str) -> None:
        super().__init__(prompts, seed, statistics)
        sets = dict[str, list[int]]()
        for i, p in enumerate(prompts):
            if column not in p.columns:
                raise ConfigError(f"data.sampler Together: prompt {p.id} has no column {column!r}.")
            sets.setdefault(str(p.columns[column]), []).append(i)
        self.sets, self.queue = list(sets.values()), list[int]()

    def __next__(self) -> Prompt:
        if not self.queue:
            self.queue = [i for one in self.rng.sample(self.sets, len(self.sets)) for i in one][::-1]
        return self.prompts[self.queue.pop()]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "queue": self.queue}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.queue = state["queue"]


@dataclass(frozen=True, kw_only=True)
class Together(Sampler):
    """Every prompt once an epoch, those with the same value of ``column`` one after the other: the wordings of a question.

    With ``rollout.prompts`` a multiple of the number of wordings, and no groups dropped, a step holds whole sets.

    Source: PS-GRPO 2510.04392 (6 wordings of each question there; from a secondary description).
    """

    column: str = "question_id"

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _TogetherState(prompts, seed, statistics, self.column)


class _ReplayState(_ProportionsState):
    def __init__(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics, spec: Replay) -> None:
        super().__init__(prompts, seed, statistics, spec)
        self.replay, self.shares = spec, list(self.weights)
        self.names = {str(value): k for k, value in enumerate(spec.weights)}
        self.history: list[list[float]] = [[] for _ in self.weights]

    def observe(self, group: Sequence[Rollout]) -> None:
        k, rewards = self.names.get(str(group[0].prompt.columns.get(self.replay.column))), [r.reward for r in group]
        scored = [x for x in rewards if not math.isnan(x)]
        if k is None or not scored:
            return
        self.history[k] = [*self.history[k], sum(scored) / len(scored)][-self.replay.window :]
        factors = replay_weights(self.history, self.replay.window, self.replay.temperature)
        self.weights = [share * factor for share, factor in zip(self.shares, factors, strict=True)]

    def metrics(self) -> dict[str, float]:
        total = sum(self.weights)
        return {f"data/share_{name}": self.weights[k] / total for name, k in self.names.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "history": self.history, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.history, self.weights = state["history"], state["weights"]


def replay_weights(history: Sequence[Sequence[float]], window: int, temperature: float) -> list[float]:
    """``K softmax_k((h_k c_k + v_k) / temperature)`` from the last rewards of each of K objectives; 1 for all until every window is full.

    ``h = 1 - mean`` of the newer half is what is left to gain, ``c`` the loss ``1 - reward`` of the newer half over that of the older one
    (1 and more: it does not get better; bounded to [0, 2]), ``v = std / (mean + 0.01)`` of the whole window how unstable it is.
    """
    if any(len(rewards) < window for rewards in history):
        return [1.0] * len(history)
    scores = []
    for rewards in history:
        x = np.clip(np.array(rewards), 0.0, 1.0)
        older, newer = 1 - x[: window // 2].mean(), 1 - x[window // 2 :].mean()
        ratio = min(2.0, newer / older) if older else 1.0 if not newer else 2.0
        scores.append((newer * ratio + x.std() / (x.mean() + 0.01)) / temperature)
    e = np.exp(np.array(scores) - max(scores))
    return [float(w) for w in len(scores) * e / e.sum()]


@dataclass(frozen=True, kw_only=True)
class Replay(Proportions):
    """A mixture of data sets, new ones and replayed ones, whose weights follow what each still has to gain: :func:`replay_weights`.

    A data set that is solved and steady is drawn less, one that gets worse or is unstable more. A weight here is the share of a data set
    in the batch, which in expectation is the same as a factor on its loss and spares the responses that would count little. Rewards are
    taken as parts of 1.

    Attributes:
        weights: where they begin; the factors multiply them. window: groups of each data set that are looked at.
        temperature: of the softmax that makes factors: larger ones are more alike.

    Source: RECAP 2510.21978 (a reconstruction from the abstract: short-horizon signals of convergence and instability).
    """

    weights: dict[str, Positive]
    window: Annotated[int, Bound(at_least=2)] = 20
    temperature: Positive = 1.0

    def build(self, prompts: Sequence[Prompt], seed: int, statistics: PromptStatistics) -> SamplerState:
        return _ReplayState(prompts, seed, statistics, self)


# -- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ZeroVariance(DropRule):
    """Replaces groups whose rewards are all equal (dynamic sampling).

    Attributes:
        of: the reward that is looked at, by its name in the metrics without ``reward/`` (``math``, ``task``); null: the sum of all. DAPO's
            rule is about accuracy: beside a length penalty, a group that is all right or all wrong still differs in its sum, and is
            replaced only where ``of`` names the reward that says what is right.

    Raises:
        ConfigError: no response of a group has a reward of that name.

    Source: DAPO 2503.14476, eq. 11.
    """

    of: str | None = None

    def __call__(self, group: Sequence[Rollout]) -> str | None:
        scored = [r for r in group if not math.isnan(r.reward)]
        names = {name for r in scored for name in r.parts}
        if self.of is not None and scored and self.of not in names:
            raise ConfigError(
                f"data.drop: ZeroVariance: of is {self.of!r}, but the rewards of prompt {scored[0].prompt.id} are "
                f"{', '.join(sorted(names)) or 'without names'}."
            )
        rewards = [r.reward if self.of is None else r.parts.get(self.of, math.nan) for r in scored]
        # As a batch holds them: 0.1 + 0.2 and 0.3 are one reward in float32, and their advantage is 0.
        return "zero_variance" if len(np.unique(np.array(rewards, dtype=np.float32))) < 2 else None


@dataclass(frozen=True, kw_only=True)
class Overlong(DropRule):
    """Replaces groups in which more than ``share`` of the responses were cut at the token limit."""

    share: Share = 0.5

    def __call__(self, group: Sequence[Rollout]) -> str | None:
        return "overlong" if sum(r.finish == "length" for r in group) > self.share * len(group) else None


@dataclass(frozen=True, kw_only=True)
class GreedyUnsolved(AdmitRule):
    """Asks only for prompts whose greedy response is not already fully right (reward >= ``solved``).

    Source: SELF 2510.02230 (reinforcing what is already likely suppresses other solutions).
    """

    solved: float = 1.0

    def __call__(self, prompt: Prompt, ask: Callable[[int, bool], Sequence[Rollout]]) -> str | None:
        return "greedy_solved" if ask(1, True)[0].reward >= self.solved else None
