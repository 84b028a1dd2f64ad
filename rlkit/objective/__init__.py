"""How loss terms become one loss.

An algorithm is a list of terms::

    loss = sum_i coef_i(step) * sum_s norm_is * sum_{t in s} term_i(new, batch)_t

A term is a frozen dataclass with ``__call__``: its fields are its YAML keys, and its pickle travels to the workers.
The weights ``norm`` come from the *whole* batch of an optimizer step (:func:`normalise`), so adding up micro-batches
and ranks gives the full-batch loss exactly, however the batch was cut.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlkit.bounds import Positive
from rlkit.errors import ConfigError
from rlkit.objective.anchors import Anchor, anchors_of
from rlkit.objective.coefficients import Coefficient, as_coefficient, distinct
from rlkit.plug import Plug
from rlkit.types import SOURCES, Batch, New, PerPair, PerSequence, PerToken, Source, Stats

Reduce = Literal["token", "seq", "sum", "const", "prompt"]
On = Literal["policy", "reference", "dataset", "labelled", "chosen", "rejected", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Term(Plug):
    """Base of every loss term. A user's loss is a subclass with ``__call__``, in the user's own file.

    ``needs`` says what it reads, so that nothing else is computed: ``adv`` and ``returns`` (advantages), ``old``, ``behav``, ``ref`` and
    ``teacher`` (log-probs of a policy), ``value``, ``entropy``, ``ref_full`` and ``teacher_full`` (whole distributions), ``col:NAME`` (a
    column of the data), ``part:NAME`` (a reward on its own, ``b.cols["part:NAME"]``), ``mismatched`` (``b.cols["mismatched"]``: ``log old
    - log ref`` of another labelled response to the prompt).

    Attributes:
        coef: a float, or a Coefficient that changes it over the run.
        reduce: how per-token costs become one number.
            ``token``: mean over all tokens of the batch (DAPO).
            ``seq``: mean over sequences of the mean over tokens (GRPO).
            ``sum``: mean over sequences of the sum over tokens (REINFORCE).
            ``const``: like ``sum``, divided by ``const`` (Dr.GRPO: the maximal response length).
            ``prompt``: mean over prompts of the mean over all tokens of the prompt's group (ScaleRL).
            A per-sequence cost ``[S]`` counts as the same cost on each of its tokens under ``token``, ``seq`` and
            ``prompt``, and once under ``sum`` and ``const``.
        const: the divisor of ``reduce: const``.
        on: which rows the term reads.
            ``policy``: sampled in this step. ``reference``: stored responses (``data.stored``).
            ``dataset``: demonstrations (``data.demonstrations``). ``labelled``: responses with a label or score (``data.labelled``).
            ``chosen``, ``rejected``: one half of each pair, ``pairs``: both (``data.pairs``).
        acknowledge: ``rlkit check`` accepts that the term follows another gradient than its name says.
    """

    homes: ClassVar[tuple[str, ...]] = (
        "rlkit.objective.losses",
        "rlkit.objective.divergences",
        "rlkit.objective.full_vocab",
        "rlkit.objective.supervised",
        "rlkit.objective.preference",
        "rlkit.objective.labelled",
        "rlkit.objective.distillation",
    )
    # The cost of a token with advantage 0 has no gradient: such rows need not be computed.
    only_advantage: ClassVar[bool] = False
    # It compares the responses of a prompt, so that all that it reads of a group stays in one micro-batch.
    whole_groups: ClassVar[bool] = False
    # Its cost is one number for each pair.
    pairwise: ClassVar[bool] = False

    coef: float | Coefficient = 1.0
    reduce: Reduce = "token"
    const: Positive = 1.0
    on: On = "policy"
    acknowledge: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """What it reads."""
        return frozenset()

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The policies that it measures a distance to, for ``rlkit check``."""
        return anchors_of(self.needs)

    @abstractmethod
    def __call__(self, new: New, b: Batch) -> PerToken | PerSequence | PerPair:
        """The cost, per token or per sequence; that of a :class:`PairTerm` per pair."""

    def score(self, new: New, b: Batch) -> PerSequence | None:
        """What the term takes for the reward of each sequence, for metrics alone; None: it has no such thing."""
        return None

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        """What cannot be known from a shard: a number for each token, computed once on the driver from the whole batch of an
        optimizer step, with log-probs from before the update. ``__call__`` finds it in ``b.marks[self.name]``.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The term's name in metrics."""
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class PairTerm(Term):
    """Base of a loss on pairs of responses to one prompt, a better and a worse one: its cost is one number for each pair.

    ``b.halves`` takes what is known of sequences apart into the better and the worse ones. The loss is the mean over the pairs of an
    optimizer step (``reduce: sum``), or that divided by ``const``. With ``on: policy`` the pairs are those that ``pairing`` makes of a
    step's responses.

    Raises:
        ConfigError: a reduction by tokens, which pairs do not have.
    """

    whole_groups: ClassVar[bool] = True
    pairwise: ClassVar[bool] = True

    on: On = "pairs"
    reduce: Reduce = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce not in ("sum", "const"):
            raise ConfigError(
                f"{type(self).__name__}.reduce is {self.reduce!r}; the cost of a pair is one number, and the loss their mean: leave it out."
            )
        if self.on not in ("pairs", "policy"):
            raise ConfigError(
                f"{type(self).__name__}.on is {self.on!r}, where there are no pairs; it reads pairs of the data (on: pairs) or of a step's "
                "responses (on: policy)."
            )

    @abstractmethod
    def __call__(self, new: New, b: Batch) -> PerPair:
        """The cost of each pair."""

    def score(self, new: New, b: Batch) -> PerSequence:
        """The implicit reward of each sequence: its log-ratio to the reference in nats, or its log-prob where there is no reference."""
        return b.seq_sum(new.logp - b.logp["ref"] if "ref" in self.needs else new.logp)


def is_marking(term: Term) -> bool:
    """Whether the term has a ``mark`` of its own."""
    return type(term).mark is not Term.mark


class Reads(Protocol):
    """A term, an advantage, a penalty or a correction."""

    @property
    def needs(self) -> frozenset[str]: ...


def needs(parts: Iterable[Reads]) -> frozenset[str]:
    """The union of what terms, advantages and penalties read; decides what the learner computes."""
    return frozenset().union(*(part.needs for part in parts))


def sources_of(term: Term) -> tuple[Source, ...]:
    """What the rows that a term reads are in a batch."""
    return ("chosen", "rejected") if term.on == "pairs" else (term.on,)


def read_by(term: Term, b: Batch) -> PerSequence:
    """Which sequences of a batch a term reads (bool): those of its source that have an action token, and for a pairwise term a partner."""
    keep = sum(
        (b.source == SOURCES.index(name) for name in sources_of(term)), torch.zeros_like(b.source, dtype=torch.bool)
    )
    keep &= b.count() > 0
    if term.pairwise:
        pairs = torch.empty(0, 2, dtype=torch.long) if b.pairs is None else b.pairs
        paired = torch.zeros_like(keep)
        paired[pairs[keep[pairs].all(1)].flatten()] = True
        keep = paired
    return keep


def normalise(objective: Sequence[Term], b: Batch) -> Annotated[Tensor, "terms S"]:
    """The weight of each token of each sequence in each term's mean, over the whole batch of one optimizer step.

    Means are over episodes: one that was cut into several sequences weighs as much as if it had not been.

    Shapes:
        returns ``[terms, S]``; 0 on rows that a term does not read. A coefficient that differs between sequences
        (``per_sequence``) is folded in here. A pair has the weight of its better sequence.
    """
    row = b.episode_of()
    b = b.by_episode()
    tokens = b.count().to(torch.float64)
    out = torch.zeros(len(objective), b.S, dtype=torch.float64)
    for i, term in enumerate(objective):
        keep = read_by(term, b)
        if not bool(keep.any()):
            continue
        n = b.rows(keep).P if term.pairwise else keep.sum()
        if term.reduce == "token":
            weight = torch.ones_like(tokens) / tokens[keep].sum()
        elif term.reduce == "seq":
            weight = 1.0 / (n * tokens.clamp(min=1))
        elif term.reduce in ("sum", "const"):
            weight = torch.ones_like(tokens) / (n * (term.const if term.reduce == "const" else 1.0))
        else:
            per_group = tokens.new_zeros(b.G).index_add(0, b.group[keep], tokens[keep])
            weight = 1.0 / ((per_group > 0).sum() * per_group[b.group].clamp(min=1))
        scale = as_coefficient(term.coef).per_sequence(b)
        if scale is not None:
            weight = weight * scale
        out[i] = torch.where(keep, weight, 0.0)
    return out[:, row].to(b.reward.dtype)


def loss(
    objective: Sequence[Term], new: New, b: Batch, coefs: Sequence[float], parts: list[Tensor] | None = None
) -> tuple[Tensor, Stats]:
    """This shard's share of the loss, and what each term contributed; shares add up over micro-batches and ranks.

    ``parts`` receives each term's share with its coefficient, for :mod:`rlkit.objective.diagnostics`.

    Raises:
        ConfigError: a term whose cost is not one number for each of what it is a cost of.
    """
    assert b.norm is not None, "normalise() fills batch.norm before the batch is cut"
    total = new.logp.sum() * 0.0
    stats = Stats()
    for i, (name, term, coef) in enumerate(zip(distinct(objective), objective, coefs, strict=True)):
        keep = b.norm[i] > 0
        if not bool(keep.any()):
            if parts is not None:
                parts.append(total.detach() * 0.0)
            continue
        sub = b.rows(keep)
        assert sub.norm is not None
        part = new.rows(keep[b.seq])
        cost = term(part, sub)
        _require_shape(term, cost, sub)
        weight_S = sub.norm[i]
        if term.pairwise:
            value = (cost * sub.halves(weight_S)[0]).sum()
        elif cost.shape[0] == sub.S and cost.shape[0] != sub.N:
            once = term.reduce in ("sum", "const")
            value = (cost * (weight_S if once else weight_S * sub.seq_len())).sum()
        else:
            value = (cost * weight_S[sub.seq]).sum()
        total = total + coef * value
        if parts is not None:
            parts.append(coef * value)
        stats.add(f"loss/{name}", float(value.detach()), "sum")
        _add_scores(stats, name, term, part, sub)
    stats.add("loss/total", float(total.detach()), "sum")
    return total, stats


def _require_shape(term: Term, cost: Tensor, b: Batch) -> None:
    sizes = {"pair": b.P} if term.pairwise else {"token": b.N, "sequence": b.S}
    if cost.dim() != 1 or cost.shape[0] not in sizes.values():
        wanted = " or ".join(f"{what} ({n} here)" for what, n in sizes.items())
        raise ConfigError(
            f"objective: the cost of {term.name} has the shape {list(cost.shape)}; it must be one number for each {wanted}, whose mean "
            "`reduce` takes."
        )


def _add_scores(stats: Stats, name: str, term: Term, new: New, b: Batch) -> None:
    """What a term takes for rewards: those of better and of worse responses, of pairs or by their own reward, and how they compare."""
    with torch.no_grad():
        score = term.score(new, b)
    if score is None:
        return
    if term.pairwise:
        good, bad = b.halves(score)
        stats.add(f"margin/{name}", (good - bad).mean(), "mean", float(b.P))
        stats.add(f"accuracy/{name}", (good > bad).float().mean(), "mean", float(b.P))
    else:
        good, bad = score[b.reward > 0.5], score[b.reward <= 0.5]
    for half, x in (("chosen", good), ("rejected", bad)):
        if len(x):
            stats.add(f"{half}/{name}", x.mean(), "mean", float(len(x)))
