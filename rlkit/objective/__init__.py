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
from rlkit.objective.anchors import Anchor, anchors_of
from rlkit.objective.coefficients import Coefficient, as_coefficient
from rlkit.plug import Plug
from rlkit.types import SOURCES, Batch, New, PerSequence, PerToken, Source, Stats

Reduce = Literal["token", "seq", "sum", "const", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Term(Plug):
    """Base of every loss term. A user's loss is a subclass with ``__call__``, in the user's own file.

    ``needs`` says what it reads, so that nothing else is computed: ``adv`` and ``returns`` (advantages), ``old``, ``behav``, ``ref`` and
    ``teacher`` (log-probs of a policy), ``value``, ``entropy``, ``ref_full`` and ``teacher_full`` (whole distributions), ``col:NAME`` (a
    column of the data).

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
        on: which rows the term reads: sampled by the policy, stored reference rows, or data set rows.
        acknowledge: ``rlkit check`` accepts that the term follows another gradient than its name says.
    """

    homes: ClassVar[tuple[str, ...]] = (
        "rlkit.objective.losses",
        "rlkit.objective.divergences",
        "rlkit.objective.full_vocab",
        "rlkit.objective.supervised",
    )
    # The cost of a token with advantage 0 has no gradient: such rows need not be computed.
    only_advantage: ClassVar[bool] = False
    # It compares the responses of a prompt, so that no rank may see a part of them.
    whole_groups: ClassVar[bool] = False

    coef: float | Coefficient = 1.0
    reduce: Reduce = "token"
    const: Positive = 1.0
    on: Source = "policy"
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
    def __call__(self, new: New, b: Batch) -> PerToken | PerSequence:
        """The cost, per token or per sequence."""

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        """What cannot be known from a shard: a number for each token, computed once on the driver from the whole batch of an
        optimizer step, with log-probs from before the update. ``__call__`` finds it in ``b.marks[self.name]``.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The term's name in metrics."""
        return type(self).__name__


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


def normalise(objective: Sequence[Term], b: Batch) -> Annotated[Tensor, "terms S"]:
    """The weight of each token of each sequence in each term's mean, over the whole batch of one optimizer step.

    Shapes:
        returns ``[terms, S]``; 0 on rows that a term does not read. A coefficient that differs between sequences
        (``per_sequence``) is folded in here.
    """
    tokens = torch.bincount(b.seq, minlength=b.S).to(torch.float64)
    out = torch.zeros(len(objective), b.S, dtype=torch.float64)
    for i, term in enumerate(objective):
        keep = (b.source == SOURCES.index(term.on)) & (tokens > 0)
        if not bool(keep.any()):
            continue
        n = keep.sum()
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
    return out.to(b.reward.dtype)


def loss(
    objective: Sequence[Term], new: New, b: Batch, coefs: Sequence[float], parts: list[Tensor] | None = None
) -> tuple[Tensor, Stats]:
    """This shard's share of the loss, and what each term contributed; shares add up over micro-batches and ranks.

    ``parts`` receives each term's share with its coefficient, for :mod:`rlkit.objective.diagnostics`.
    """
    assert b.norm is not None, "normalise() fills batch.norm before the batch is cut"
    total = new.logp.sum() * 0.0
    stats = Stats()
    for i, (term, coef) in enumerate(zip(objective, coefs, strict=True)):
        keep = b.norm[i] > 0
        if not bool(keep.any()):
            if parts is not None:
                parts.append(total.detach() * 0.0)
            continue
        sub = b.rows(keep)
        assert sub.norm is not None
        cost = term(new.rows(keep[b.seq]), sub)
        weight_S = sub.norm[i]
        if cost.shape[0] == sub.S and cost.shape[0] != sub.N:
            once = term.reduce in ("sum", "const")
            value = (cost * (weight_S if once else weight_S * sub.seq_len())).sum()
        else:
            value = (cost * weight_S[sub.seq]).sum()
        total = total + coef * value
        if parts is not None:
            parts.append(coef * value)
        stats.add(f"loss/{term.name}", float(value.detach()), "sum")
    stats.add("loss/total", float(total.detach()), "sum")
    return total, stats
