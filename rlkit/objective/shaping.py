"""Advantages around an advantage: every response gets another reward, made of the whole batch, before responses are compared.

Each keeps what the advantage ``of`` does with rewards (baseline, scale, whitening) and gives it others: a likelihood, a density ratio, how
much responses agree. What stands in ``Batch.reward`` stays there for coefficients and metrics.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.objective.advantages import Advantage, Advantages, GroupMean, GroupNorm, group_centre
from rlkit.objective.divergences import BOUND, Generator, generator, of_samples
from rlkit.types import Batch, PerSequence, PerToken


@dataclass(frozen=True, kw_only=True)
class Shaped(Advantage):
    """Base of advantages that replace rewards: override :meth:`reward`; ``needs`` and ``group`` where it reads more than ``of``."""

    of: Advantage = field(default_factory=GroupNorm)

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs

    @property
    def group(self) -> bool:
        return self.of.group

    @abstractmethod
    def reward(self, b: Batch) -> PerSequence:
        """What the advantage ``of`` takes for the reward of each response."""

    def __call__(self, b: Batch) -> Advantages:
        return Advantages.of(self.of, b.replace(reward=self.reward(b).to(b.reward.dtype)))


@dataclass(frozen=True, kw_only=True)
class Confident(Shaped):
    """GRPO-CARE's consistency bonus: ``R_i + bonus * acc_i`` for accurate responses whose answer the reference finds likely.

    The likelihood of response i is ``c_i = min(cap, exp(mean_t log ref(y_t | prompt, y_<t)))`` over the tokens of its answer: how sure a
    slowly following reference (``reference: {type: EMA}``) is of the answer, given the reasoning. A response is accurate if its ``acc`` is
    above ``least`` and not below its group's mean; of those, the ones with ``c_i >= mean(c of the group's accurate ones) - margin`` get
    the bonus.

    Attributes:
        after: token ids of what stands before the answer, e.g. those of ``<answer>``; the answer is what comes after its last occurrence,
            and a response without it has the likelihood 0. Empty: the whole response is the answer.
        correct: name of the reward that is ``acc``, where others (format) are added to it; null: their sum.

    Source: GRPO-CARE 2506.16141, the consistency bonus (the released code; ids instead of a text).
    """

    of: Advantage = field(default_factory=lambda: GroupNorm(eps=1e-4))
    after: tuple[int, ...] = ()
    bonus: NonNegative = 0.5
    cap: Share = 0.95
    margin: NonNegative = 0.0
    least: float = 0.1
    correct: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs | {"ref"} | (frozenset() if self.correct is None else {f"part:{self.correct}"})

    @property
    def group(self) -> bool:
        return True

    def reward(self, b: Batch) -> Tensor:
        likely = self.likelihood(b)
        acc = b.reward if self.correct is None else b.cols[f"part:{self.correct}"]
        accurate = (acc > self.least) & (group_centre(b, acc) >= 0)
        count = b.group_sum(accurate.to(likely.dtype)).clamp(min=1)
        mean = (b.group_sum(likely * accurate) / count)[b.group]
        return b.reward + self.bonus * acc * (accurate & (likely >= mean - self.margin))

    def likelihood(self, b: Batch) -> PerSequence:
        """``c``: the geometric mean of the reference's probabilities of the answer's tokens, at most ``cap``; float64."""
        answer = after_last(b, self.after).double()
        count = b.seq_sum(answer)
        mean = b.seq_sum(b.logp["ref"].double() * answer) / count.clamp(min=1)
        return torch.where(count > 0, mean.exp().clamp(max=self.cap), 0.0)


def sampled_ids(b: Batch) -> PerToken:
    """The ids of the action tokens.

    Raises:
        ConfigError: an episode was cut into several sequences, which have no row of ids together.
    """
    if b.ids is None or b.action is None:
        raise ConfigError(
            "the advantage reads token ids, which an episode that is cut into several sequences does not have in one row. Use another "
            "advantage, or Confident without `after`."
        )
    return b.ids[b.action]


def after_last(b: Batch, what: Sequence[int]) -> PerToken:
    """Which action tokens come after the last occurrence of the ids ``what`` in their response; all of them if ``what`` is empty."""
    if not what:
        return torch.ones_like(b.seq, dtype=torch.bool)
    tokens, place = sampled_ids(b), torch.arange(b.N, device=b.seq.device)
    found = torch.ones_like(b.seq, dtype=torch.bool)  # where an occurrence ends
    for back, token in enumerate(reversed(what)):
        shifted = (place - back).clamp(min=0)
        found &= (place >= back) & (b.seq[shifted] == b.seq) & (tokens[shifted] == token)
    ends = torch.where(found, place, b.N)
    last = torch.full((b.S,), -1, device=place.device)
    last = last.scatter_reduce(0, b.seq[found], ends[found], "amax")
    return (last[b.seq] >= 0) & (place > last[b.seq])


@dataclass(frozen=True, kw_only=True)
class ToTarget(Shaped):
    """f-DPG: the gradient of ``D_f(pi‖p)`` of whole responses, ``p(y) = ref(y) exp(R(y) / beta) / Z``, by the score function.

    The reward of a response becomes ``-f'(t)``, ``t = pi(y) / p(y) = pi(y) Z / (ref(y) exp(R(y) / beta))``, with ``pi`` the policy that
    sampled; ``log t`` is bounded to ±20. ``E_pi[f'(t) grad log pi] = grad D_f(pi‖p)``, so with ``{type: Reinforce, reduce: sum}`` and one
    update a batch the expected gradient is exact, and any baseline of ``of`` leaves it so. The reverse KL is RL with a KL penalty; the
    forward KL is GDC (DPG), whose weight is ``P(y) / q(y)``.

    Attributes:
        f, parameter: as of ``Divergence``. Constants of ``f'`` are the baseline's business.
        beta: of the target; 1 where the reward is already the log of the target's weight, as with GDC's features and multipliers.
        z: where ``Z`` of a prompt comes from. ``group``: ``mean exp(R / beta) ref(y) / pi(y)`` over its responses, new in each step
            (released code keeps a moving average for each prompt). ``v_star``: the column of that name, ``exp(v_star / beta)``, as `rlkit
            filter --soft-value BETA` writes it from responses of the reference.

    Source: f-DPG 2302.08215 (as in the released code but for its moving averages); GDC 2012.11635 (forward KL).
    """

    of: Advantage = field(default_factory=GroupMean)
    f: str | Generator = "forward_kl"
    parameter: float | None = None
    beta: Positive = 1.0
    z: Literal["group", "v_star"] = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        of_samples(self.f, self.parameter, type(self).__name__)

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs | {"ref", "behav"} | ({"col:v_star"} if self.z == "v_star" else frozenset())

    @property
    def group(self) -> bool:
        return self.of.group or self.z == "group"

    def reward(self, b: Batch) -> Tensor:
        target = b.seq_sum(b.logp["ref"].double()) + b.reward.double() / self.beta  # log p + log Z
        sampled = b.seq_sum(b.logp["behav"].double())
        log_z = b.cols["v_star"].double() / self.beta if self.z == "v_star" else log_mean_exp(b, target - sampled)
        t = (sampled + log_z - target).clamp(-BOUND, BOUND)
        return -generator(self.f, self.parameter).slope(t)


def log_mean_exp(b: Batch, x_S: Tensor) -> PerSequence:
    """``log mean exp(x)`` over the responses of each response's group."""
    top = x_S.new_full((b.G,), -math.inf).scatter_reduce(0, b.group, x_S, "amax")[b.group]
    return top + (b.group_sum((x_S - top).exp()) / b.group_size())[b.group].log()


@dataclass(frozen=True, kw_only=True)
class Agreement(Shaped):
    """PS-GRPO: ``share * agreement + weight * R``, how much a response agrees with those to other wordings of its question.

    The agreement of a response is its mean :func:`bleu` (on token ids, up to pairs) with all responses of the batch to *other* prompts of
    the same ``column``; published are 3 wordings and one response of each, drawn at random, whose mean this is. A question of which the
    batch has one wording has no agreement to reward. Groups are the wordings: ``of`` compares responses to one wording. The sampler
    ``{type: Together, column: ...}`` brings the wordings of a question into one step.

    Source: PS-GRPO 2510.04392 (from a secondary description; the weights of the two parts are assumed to be 1).
    """

    column: str = "question_id"
    share: NonNegative = 1.0
    weight: NonNegative = 1.0

    @property
    def needs(self) -> frozenset[str]:
        return self.of.needs | {f"col:{self.column}"}

    def reward(self, b: Batch) -> Tensor:
        tokens = [part.tolist() for part in sampled_ids(b).split(b.count().tolist())]
        question, group, agreement = b.cols[self.column].tolist(), b.group.tolist(), list[float]()
        asked = dict[float, list[int]]()
        for i, q in enumerate(question):
            asked.setdefault(q, []).append(i)
        for i in range(b.S):
            others = [j for j in asked[question[i]] if group[j] != group[i]]
            agreement.append(sum(bleu(tokens[i], tokens[j]) for j in others) / max(1, len(others)))
        return self.share * b.reward.new_tensor(agreement) + self.weight * b.reward


def bleu(candidate: Sequence[int], reference: Sequence[int], order: int = 2) -> float:
    """Sentence BLEU: the geometric mean of clipped n-gram precisions up to ``order`` (or the shorter length) times the brevity penalty."""
    most = min(order, len(candidate), len(reference))
    if not most:
        return 0.0
    total = 0.0
    for n in range(1, most + 1):
        found, there = (Counter(zip(*(x[k:] for k in range(n)), strict=False)) for x in (candidate, reference))
        matched = (found & there).total()
        if not matched:
            return 0.0
        total += math.log(matched / found.total())
    return math.exp(total / most + min(0.0, 1 - len(reference) / len(candidate)))
