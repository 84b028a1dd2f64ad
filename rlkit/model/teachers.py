"""Several models as one teacher: a mixture of their distributions, with weights that may differ between sets of prompts, or the start model
with what fine-tuning changed in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Positive
from rlkit.errors import ModelError
from rlkit.model.reference import Frozen, Loaded, OwnWeights, Reference, ReferenceState, Trained
from rlkit.objective.full_vocab import CHUNK_ELEMENTS, Mixed, Product, TopK, Whole
from rlkit.types import Batch, Sampling, Stats


class _State(ReferenceState):
    def __init__(self, spec: Teachers, trained: Trained) -> None:
        self.spec = spec
        self.parts = {name: part.build(trained) for name, part in spec.of.items()}

    def _shares(self, b: Batch) -> Iterator[tuple[ReferenceState, Batch, Tensor, Tensor]]:
        """Each teacher with the rows that it has a share of, the places of their tokens in the batch, ``[n]``, and its share there."""
        sets = b.dataset or ("",) * b.S
        for name, state in self.parts.items():
            share_S = b.reward.new_tensor([self.spec.shares(where)[name] for where in sets])
            keep = share_S > 0
            if bool(keep.any()):
                place = keep[b.seq].nonzero()[:, 0]
                yield state, b.rows(keep), place, share_S[b.seq[place]]

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        """``log sum_i w_i q_i`` of each token, whose teachers see the same prefix."""
        out = torch.full((b.N,), -torch.inf, device=b.reward.device)
        for state, rows, place, share in self._shares(b):
            out[place] = torch.logaddexp(out[place], state.logprobs(rows, sampling) + share.log())
        return out

    def head(self, b: Batch) -> Whole:
        return Mixed(tuple((state.head(rows), place, share) for state, rows, place, share in self._shares(b)))

    def likely(self, b: Batch, k: int) -> tuple[Tensor, TopK]:
        """Every row has one teacher."""
        logp = torch.empty(b.N, device=b.reward.device)
        ids, top = torch.empty(b.N, k, dtype=torch.long, device=logp.device), torch.empty(b.N, k, device=logp.device)
        for state, rows, place, _ in self._shares(b):
            logp[place], found = state.likely(rows, k)
            ids[place], top[place] = found.ids.long(), found.logp
        return logp, TopK(ids, top)

    def require(self, k: int, last: int, classes: int) -> None:
        for state in self.parts.values():
            state.require(k, last, classes)

    def after_step(self, step: int, stats: Stats) -> None:
        for state in self.parts.values():
            state.after_step(step, stats)

    def state_dict(self) -> dict[str, Any]:
        return {name: state.state_dict() for name, state in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


@dataclass(frozen=True, kw_only=True)
class Teachers(Reference):
    """Several teachers: ``q = sum_i w_i q_i`` of the next token, after the same prefix.

    ::

        teacher:
          type: Teachers
          of: {maths: {type: Frozen, path: a}, code: {type: Frozen, path: b}}
          weights: {maths: 1, code: 3}
          per_set: {gsm8k: {maths: 1}, mbpp: {code: 1}}

    Attributes:
        of: the teachers by names of your own, each with a ``path`` or a ``url``.
        weights: how much each counts, which is normalised; null: all the same.
        per_set: weights for prompts of single sets, by the name in their column ``dataset`` (of a file among several, its name without
            the ending). A teacher that is left out there is not asked for them.

    Teachers that give their most likely tokens alone (``Served``) cannot be mixed, because two tails do not add up: each set has one.

    Raises:
        ModelError: fewer than two teachers, weights of one that is not there, no weight above 0, or a mixture that cannot be made.
    """

    of: dict[str, Reference]
    weights: dict[str, NonNegative] | None = None
    per_set: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.of) < 2:
            raise ModelError(
                f"Teachers.of names {len(self.of)} teacher(s); it needs two or more. A single one stands in its place."
            )
        for name, part in self.of.items():
            if isinstance(part, Loaded) and part.is_start:
                raise ModelError(f"Teachers.of.{name} has no `path`: it would be the model that training starts from.")
            if part.pooled:
                raise ModelError(
                    f"Teachers.of.{name} has engines of its own, and ranks mix: use type: Frozen or Served."
                )
            if part.kept is not None:
                raise ModelError(f"Teachers.of.{name}.precompute: what a mixture is made of is not kept. Leave it out.")
            if part.other_tokens:
                raise ModelError(
                    f"Teachers.of.{name} has a tokenizer of its own, and probabilities of other tokens cannot be mixed: use type: Frozen "
                    "with the policy's tokenizer, or this teacher alone."
                )
        if len({part.asked for part in self.of.values()}) > 1:
            raise ModelError(
                "Teachers.of has teachers of this process beside served ones: use one kind for all of them."
            )
        if not (self.whole or self.asked):
            raise ModelError(
                "Teachers.of has a teacher that gives log-probs of single tokens: use type: Frozen or Served."
            )
        self._check("weights", self.weights or dict.fromkeys(self.of, 1.0))
        for name, weights in self.per_set.items():
            self._check(f"per_set.{name}", weights)

    def _check(self, where: str, weights: Mapping[str, float]) -> None:
        strange = [name for name in weights if name not in self.of]
        if strange:
            raise ModelError(f"Teachers.{where} names {strange[0]!r}, but the teachers are {', '.join(self.of)}.")
        if min(weights.values(), default=0.0) < 0 or not 0 < sum(weights.values()) < math.inf:
            raise ModelError(
                f"Teachers.{where} is {dict(weights)}: weights are finite numbers from 0 on, and one is above 0."
            )
        if self.asked and sum(w > 0 for w in weights.values()) > 1:
            raise ModelError(
                f"Teachers.{where} mixes teachers that give their most likely tokens alone, and two tails do not add up: give one of them "
                "all the weight, or use type: Frozen."
            )

    def shares(self, dataset: str) -> dict[str, float]:
        """The share of each teacher for prompts of a set; they add up to 1."""
        given = self.per_set.get(dataset, self.weights or dict.fromkeys(self.of, 1.0))
        return {name: given.get(name, 0.0) / sum(given.values()) for name in self.of}

    @property
    def whole(self) -> bool:
        return all(part.whole for part in self.of.values())

    @property
    def asked(self) -> bool:
        return all(part.asked for part in self.of.values())

    @property
    def sets(self) -> tuple[str, ...]:
        return (*self.per_set, *(name for part in self.of.values() for name in part.sets))

    @property
    def held(self) -> tuple[Loaded, ...]:
        return tuple(x for part in self.of.values() for x in part.held)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(path for part in self.of.values() for path in part.models)

    def build(self, trained: Trained) -> ReferenceState:
        return _State(self, trained)


class _ShiftedState(ReferenceState):
    def __init__(self, spec: Shifted, trained: Trained) -> None:
        self.alpha, self.trained = spec.alpha, trained
        self.start = OwnWeights(trained, None, spec.offload)
        self.tuned, self.raw = spec.tuned.build(trained), spec.raw.build(trained)

    def head(self, b: Batch) -> Product:
        return Product(((self.start.head(b), 1.0), (self.tuned.head(b), self.alpha), (self.raw.head(b), -self.alpha)))

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        assert b.ids is not None and b.action is not None
        whole, target, fp32 = self.head(b), b.ids[b.action], self.start.model.fp32_head
        assert whole.table is not None
        classes = whole.table.shape[0]
        out, rows = torch.empty(b.N, device=self.trained.device), max(1, CHUNK_ELEMENTS // classes)
        for i in range(0, b.N, rows):
            at = slice(i, min(b.N, i + rows))
            out[at] = whole.log_probs(at, classes, sampling.temperature or 1.0, fp32).gather(-1, target[at, None])[:, 0]
        return out


@dataclass(frozen=True, kw_only=True)
class Shifted(Reference):
    """The model that training starts from, moved as fine-tuning moved a teacher: ``q ~ start (tuned / raw)^alpha`` of the next token.

    A student that cannot be its teacher may still learn what the teacher learned. Three models are held beside the policy.

    Raises:
        ModelError: ``tuned`` or ``raw`` is of another type than Frozen, or keeps its outputs in a file.

    Attributes:
        tuned, raw: the teacher after and before its fine-tuning, each with a ``path``.
        alpha: 1 takes the whole shift, less of it a part. offload: of the start model; the others have their own.

    Source: Delta-KD 2509.14526 (the target from search excerpts; alpha 1 assumed).
    """

    tuned: Reference
    raw: Reference
    alpha: Positive = 1.0
    offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, part in (("tuned", self.tuned), ("raw", self.raw)):
            if not isinstance(part, Frozen):
                raise ModelError(
                    f"Shifted.{name} is of type: {type(part).__name__}; the shift is between two models that stay: use type: Frozen."
                )
            if part.kept is not None:
                raise ModelError(f"Shifted.{name}.precompute: what is kept is no whole distribution. Leave it out.")

    @property
    def whole(self) -> bool:
        return True

    @property
    def held(self) -> tuple[Loaded, ...]:
        return (Frozen(offload=self.offload), *self.tuned.held, *self.raw.held)

    @property
    def models(self) -> tuple[str, ...]:
        return (*self.tuned.models, *self.raw.models)

    def build(self, trained: Trained) -> ReferenceState:
        return _ShiftedState(self, trained)
