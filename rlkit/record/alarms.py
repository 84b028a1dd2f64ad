"""What a run says when its numbers look wrong: a reason and a remedy, from the metrics that it writes anyway.

An alarm is a pure function of the history of metrics, oldest step first. None of them stops a run or changes it. Each says its sentence
when it begins to hold, and again only after it has been silent for :data:`WINDOW` steps; ``alarm/NAME`` in ``metrics.jsonl`` counts the
steps in which it held. Thresholds are rules of thumb where no source is named.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

History = Sequence[Mapping[str, float]]

SHORT = 5  # steps that a mean is taken over
LONG = 20  # steps over which growth is looked at
WINDOW = 50  # newest steps that are remembered, beside the first SHORT
GAIN = frozenset({"reward/mean", "reward/std", "batch/sequences"})  # what `gained` reads


@dataclass(frozen=True)
class Alarm(ABC):
    """One thing that can be wrong: what it is called, what to do about it, which metrics it reads, and from which step it can tell."""

    name: ClassVar[str]
    remedy: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    after: ClassVar[int] = SHORT

    @abstractmethod
    def why(self, history: History) -> str | None:
        """What is wrong, in one sentence without its full stop; None as long as all is well. ``history`` has ``after`` steps at least."""

    def __call__(self, history: History) -> str | None:
        return self.why(history) if len(history) >= self.after else None


def mean(rows: History, key: str) -> float:
    """Mean over the rows that have the metric as a finite number; nan if none has."""
    found = [row[key] for row in rows if key in row and math.isfinite(row[key])]
    return math.fsum(found) / len(found) if found else math.nan


def gained(before: History, now: History) -> bool:
    """Whether the mean reward rose by more than two standard errors. A step's error is that of ``batch/sequences`` responses."""

    def error(rows: History) -> float:
        count = sum(row.get("batch/sequences", 1.0) for row in rows)
        return mean(rows, "reward/std") / math.sqrt(max(1.0, count))

    gain = mean(now, "reward/mean") - mean(before, "reward/mean")
    return gain > 2 * math.hypot(error(before), error(now))


def growth(history: History, key: str, least: float) -> tuple[float, float] | None:
    """(before, now) of a metric that doubled within ``LONG`` steps, by at least ``least``, while the reward did not rise; else None.

    A run that is shorter is compared with its beginning.
    """
    before, now = history[-LONG - SHORT :][:SHORT], history[-SHORT:]
    old, new = mean(before, key), mean(now, key)
    return (old, new) if new - old >= least and new >= 2 * old and not gained(before, now) else None


@dataclass(frozen=True)
class KLWithoutReward(Alarm):
    """The KL to the reference (else the drift from the start model) doubled in 20 steps, by ``least`` nats per token, and the reward did
    not rise: the policy pays and gets nothing."""

    name: ClassVar[str] = "kl_without_reward"
    reads: ClassVar[frozenset[str]] = GAIN | {"kl/ref", "drift/start"}
    after: ClassVar[int] = 2 * SHORT
    remedy: ClassVar[str] = (
        "Lower learner.lr, raise the coefficient of the divergence (or use coef: {type: KLBudget}), and look at what the policy writes now "
        "in rollouts.jsonl. If a term of your own is a KL, run `rlkit check` on it"
    )
    least: float = 0.05

    def why(self, history: History) -> str | None:
        for key in ("kl/ref", "drift/start"):
            found = growth(history, key, self.least)
            if found:
                return f"{key} grew from {found[0]:.3f} to {found[1]:.3f} nats per token within {LONG} steps, and the reward did not"
        return None


@dataclass(frozen=True)
class EntropyCollapse(Alarm):
    """The entropy is below ``share`` of that of the first steps.

    verl's own log of a GSM8K run that learns ends at 9 % of its first entropy (0.539 to 0.050 nats, 435 steps); half of that is less than
    such a run needs.

    Source: Entropy Mechanism 2505.22617 (entropy is what reward is paid with).
    """

    name: ClassVar[str] = "entropy_collapse"
    reads: ClassVar[frozenset[str]] = frozenset({"entropy/sampled"})
    after: ClassVar[int] = 2 * SHORT
    remedy: ClassVar[str] = (
        "Responses of one prompt become alike, and groups then teach nothing. Add {type: Entropy, coef: 0.001}, use ClipCov, KLCov or a "
        "larger eps_high, a divergence that covers mass (docs/regularizers.md), or a smaller learning rate"
    )
    share: float = 0.05

    def why(self, history: History) -> str | None:
        first, now = mean(history[:SHORT], "entropy/sampled"), mean(history[-SHORT:], "entropy/sampled")
        return f"the entropy fell from {first:.3f} to {now:.3f} nats per token" if now < self.share * first else None


@dataclass(frozen=True)
class Truncated(Alarm):
    """More than ``share`` of the responses end at the limit.

    Source: ScaleRL 2510.13786 (runs became unstable at 10 to 15 %).
    """

    name: ClassVar[str] = "truncated"
    reads: ClassVar[frozenset[str]] = frozenset({"length/truncated"})
    remedy: ClassVar[str] = (
        "What would have followed is not seen by the reward. Raise sampling.max_tokens, use rollout.interrupt or rollout.lengths, "
        "or drop such groups (data.drop: [{type: Overlong}])"
    )
    share: float = 0.1

    def why(self, history: History) -> str | None:
        now = mean(history[-SHORT:], "length/truncated")
        return f"{now:.0%} of the responses end at the length limit" if now > self.share else None


@dataclass(frozen=True)
class EqualGroups(Alarm):
    """In more than ``share`` of the prompt groups all responses have one reward: these groups have no advantage."""

    name: ClassVar[str] = "equal_groups"
    reads: ClassVar[frozenset[str]] = frozenset({"reward/equal_groups"})
    remedy: ClassVar[str] = (
        "Most of the sampling is spent on prompts that are too easy or too hard. Filter them (rlkit filter), sample by difficulty "
        "(data.sampler), or replace such groups (data.drop: [{type: ZeroVariance}])"
    )
    share: float = 0.8

    def why(self, history: History) -> str | None:
        now = mean(history[-SHORT:], "reward/equal_groups")
        if not now > self.share:
            return None
        return f"in {now:.0%} of the prompt groups all responses have the same reward"


@dataclass(frozen=True)
class EqualRewards(Alarm):
    """All rewards of every one of the last steps are one number."""

    name: ClassVar[str] = "equal_rewards"
    reads: ClassVar[frozenset[str]] = frozenset({"reward/mean", "reward/std"})
    remedy: ClassVar[str] = (
        "No advantage can be told from that. Look at responses and rewards in rollouts.jsonl: is the answer found where the reward looks "
        "for it, and does the model ever give a right one? `rlkit audit-reward` runs the reward over stored responses"
    )

    def why(self, history: History) -> str | None:
        rows = history[-SHORT:]
        if any(row.get("reward/std", 1.0) != 0 for row in rows):
            return None
        return f"all rewards of the last {SHORT} steps are equal ({rows[-1].get('reward/mean', math.nan):g})"


@dataclass(frozen=True)
class Mismatch(Alarm):
    """Engine and learner differ by ``times`` what they did in the first steps, and by more than ``least`` nats per token."""

    name: ClassVar[str] = "mismatch"
    reads: ClassVar[frozenset[str]] = frozenset({"mismatch/mean"})
    after: ClassVar[int] = 2 * SHORT
    remedy: ClassVar[str] = (
        "The engine no longer samples what the learner trains. Look at probe/*, set a correction (correction: {type: TruncatedIS}) or a "
        "loss against the engine's log-probs (CISPO), model.fp32_head: true with bfloat16, or a smaller rollout.max_lag"
    )
    times: float = 3.0
    least: float = 0.02

    def why(self, history: History) -> str | None:
        first, now = mean(history[:SHORT], "mismatch/mean"), mean(history[-SHORT:], "mismatch/mean")
        if not now > max(self.times * first, self.least):
            return None
        return f"the mean difference of engine and learner grew from {first:.2g} to {now:.2g} nats per token"


@dataclass(frozen=True)
class Disagreement(Alarm):
    """Engine and learner differ by more than numbers of their type explain (``mismatch/expected``), with the same weights."""

    name: ClassVar[str] = "disagreement"
    reads: ClassVar[frozenset[str]] = frozenset({"mismatch/mean", "mismatch/expected"})
    remedy: ClassVar[str] = (
        "Rounding is not the reason. Look at, in this order: a vllm: option that changes the model (quantization, kv_cache_dtype, rope), "
        "vllm.dtype against model.dtype, sampling settings that the engine applies and the learner does not, an adapter that was not "
        "merged. A correction weighs such tokens down and leaves the reason where it is"
    )

    def why(self, history: History) -> str | None:
        now, expected = (mean(history[-SHORT:], key) for key in ("mismatch/mean", "mismatch/expected"))
        if not now > expected:
            return None
        return (
            f"engine and learner differ by {now:.2g} nats per token, and numbers of their type by {expected:g} at most"
        )


@dataclass(frozen=True)
class Skipped(Alarm):
    """An optimizer step was not taken because its gradient was not finite."""

    name: ClassVar[str] = "skipped"
    reads: ClassVar[frozenset[str]] = frozenset({"learner/skipped"})
    after: ClassVar[int] = 1
    remedy: ClassVar[str] = (
        "The term and the token are named above; learner.max_skipped of them in a row end the run. If no term is to blame, lower learner.lr"
    )

    def why(self, history: History) -> str | None:
        count = history[-1].get("learner/skipped", 0.0)
        return f"{count:.0f} optimizer step(s) were skipped: the gradient was not finite" if count else None


@dataclass(frozen=True)
class Masked(Alarm):
    """The correction gives more than ``share`` of the tokens the weight 0."""

    name: ClassVar[str] = "masked"
    reads: ClassVar[frozenset[str]] = frozenset({"correction/masked"})
    remedy: ClassVar[str] = (
        "Next to nothing is trained on. Compare correction/mean_difference with the correction's bounds and widen those (SequenceMask has "
        "some for responses of thousands of tokens, over which rounding averages out), or take {type: TruncatedIS}, which masks nothing"
    )
    share: float = 0.9

    def why(self, history: History) -> str | None:
        now = mean(history[-SHORT:], "correction/masked")
        return f"the correction masks {now:.0%} of the tokens" if now > self.share else None


@dataclass(frozen=True)
class NothingLearned(Alarm):
    """The gradient of every one of the last steps was zero, though rewards differ."""

    name: ClassVar[str] = "nothing_learned"
    reads: ClassVar[frozenset[str]] = frozenset({"learner/grad_norm", "learner/skipped", "reward/std"})
    remedy: ClassVar[str] = (
        "The weights stay as they are. Look for what takes all tokens away: correction/masked, reward/equal_groups (groups without an "
        "advantage), a clip or mask of the objective, a coefficient of 0"
    )

    def why(self, history: History) -> str | None:
        rows = history[-SHORT:]
        if any(row.get("learner/grad_norm", 1.0) != 0 or row.get("learner/skipped") for row in rows):
            return None
        if all(row.get("reward/std", 1.0) == 0 for row in rows):  # said by `equal_rewards`
            return None
        return f"the gradient of the last {SHORT} steps was zero: they trained on nothing"


@dataclass(frozen=True)
class LengthExplosion(Alarm):
    """Responses are twice as long as 20 steps ago, by at least ``least`` tokens, and no better."""

    name: ClassVar[str] = "length_explosion"
    reads: ClassVar[frozenset[str]] = GAIN | {"length/mean"}
    after: ClassVar[int] = 2 * SHORT
    remedy: ClassVar[str] = (
        "Means per sequence (reduce: seq) make long wrong responses cheap: use reduce: token, prompt or const. Or reward brevity, or check "
        "that responses still end (an end token that is never sampled)"
    )
    least: float = 16.0

    def why(self, history: History) -> str | None:
        found = growth(history, "length/mean", self.least)
        if not found:
            return None
        return (
            f"responses grew from {found[0]:.0f} to {found[1]:.0f} tokens within {LONG} steps, and the reward did not"
        )


ALARMS: tuple[Alarm, ...] = (
    KLWithoutReward(),
    EntropyCollapse(),
    Truncated(),
    EqualGroups(),
    EqualRewards(),
    Mismatch(),
    Disagreement(),
    Skipped(),
    Masked(),
    NothingLearned(),
    LengthExplosion(),
)


class Alarms:
    """Watches a run: what holds is counted, and said once. Its state is plain data."""

    def __init__(self, alarms: Sequence[Alarm] = ALARMS) -> None:
        self.alarms = alarms
        self.reads = frozenset[str]().union(*(alarm.reads for alarm in alarms))
        self.first: list[dict[str, float]] = []
        self.newest: list[dict[str, float]] = []
        self.counts: Counter[str] = Counter()
        self.last: dict[str, int] = {}  # the step in which each held last

    def observe(self, step: int, values: Mapping[str, float], say: Callable[[str], object]) -> dict[str, float]:
        """Adds a step's metrics to the history; returns ``alarm/NAME`` of every alarm that ever held."""
        row = {name: values[name] for name in self.reads & values.keys()}
        if len(self.first) < SHORT:
            self.first.append(row)
        else:
            self.newest = [*self.newest[1 - WINDOW :], row]
        for alarm in self.alarms:
            why = alarm([*self.first, *self.newest])
            if why is None:
                continue
            self.counts[alarm.name] += 1
            if step - self.last.get(alarm.name, -WINDOW - 1) > WINDOW:
                say(f"warning ({alarm.name}, step {step}): {why}. {alarm.remedy}.")
            self.last[alarm.name] = step
        return {f"alarm/{name}": float(count) for name, count in sorted(self.counts.items())}

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "newest": self.newest, "counts": dict(self.counts), "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.newest = list(state["first"]), list(state["newest"])
        self.counts, self.last = Counter(state["counts"]), dict(state["last"])
