"""What decoding makes of a model: its next-token distribution changed at every token, without a change of its weights.

A :class:`Control` is settings, as every part is; :class:`rlkit.rollout.controlled.Controlled` is the engine that samples under one. Most
are a :class:`Steering`: a function of the model's logits and of what :attr:`Steering.companions`, models that read the same tokens, make
of them. Temperature, top-k and top-p come after it, and the log-probs that an engine reports are those of what it sampled from.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlkit.bounds import Count, NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.model.hub import require_model
from rlkit.model.load import load_tokenizer, same_tokens
from rlkit.place import Place
from rlkit.plug import Plug


@dataclass(frozen=True, kw_only=True)
class Control(Plug):
    """Base of what an engine may do with a model instead of sampling from it. A user's own is a :class:`Steering`.

    ``engines``: those that can do it.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.rollout.control",)
    engines: ClassVar[tuple[str, ...]] = ("vllm", "hf")

    def check(self, path: str) -> None:
        """Raises ConfigError or ModelError, before anything is loaded, for what cannot control the model in ``path``."""


@dataclass(frozen=True)
class Companion:
    """A model that reads along. ``where`` names the setting that gave its path.

    ``values``: it is a token classifier (``AutoModelForTokenClassification``) that says something of every prefix; else a causal language
    model with the tokenizer of the one that is sampled from.
    """

    path: str
    where: str
    values: bool = False


class Seen(Protocol):
    """What the companions make of the rows of a batch, before the token that is sampled now; ``i`` counts :attr:`Steering.companions`."""

    def logits(self, i: int) -> Tensor:
        """Of a language model, ``[R, V]``."""
        ...

    def after(self, i: int, ids: Tensor) -> Tensor:
        """What a token classifier says of every row with one of the tokens ``ids`` ``[R, K]`` behind it, ``[R, K, C]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Steering(Control):
    """Base of controls that are a function of logits. A user's own has :meth:`steer`, and ``companions`` if it asks other models."""

    @property
    def companions(self) -> tuple[Companion, ...]:
        return ()

    @abstractmethod
    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        """The logits of the distribution to sample from, ``[R, V]`` of ``[R, V]`` in float32; ``-inf`` for what must not come."""

    def over(self, tokenizer: Any) -> Steering:
        """This control for models with that tokenizer, before the first token."""
        return self

    def check(self, path: str) -> None:
        for one in self.companions:
            require_model(one.path, one.where)
        tokenizer = load_tokenizer(path)
        for one in self.companions:
            same_tokens(one.path, one.where, tokenizer)
        self.over(tokenizer)


def dera_logits(aligned: Tensor, ref: Tensor, lam: float) -> Tensor:
    """``lam * aligned + (1 - lam) * ref``: the log of ``ref (aligned / ref)^lam`` up to a constant.

    For a policy that was aligned with KL coefficient ``beta`` this is the next-token approximation of one aligned with ``beta / lam``:
    0 is the reference, 1 the aligned policy, more than 1 extrapolates. ``[..., V]``, float32 or better.

    Source: DeRa 2402.02992.

    Raises:
        ConfigError: vocabularies of different size.
    """
    if aligned.shape[-1] != ref.shape[-1]:
        raise ConfigError(
            f"DeRa: the aligned model has {aligned.shape[-1]} logits and the reference {ref.shape[-1]}; both models need one "
            "vocabulary."
        )
    wide = torch.promote_types(aligned.dtype, torch.float32)
    # Normalised first: the mixture of log-probs has the same softmax, and no large constant is multiplied by lam.
    return torch.lerp(ref.to(wide).log_softmax(-1), aligned.to(wide).log_softmax(-1), float(lam))


@dataclass(frozen=True, kw_only=True)
class DeRa(Steering):
    """Realignment while decoding: :func:`dera_logits` of the model and a ``reference``.

    Attributes:
        reference: the other model. lam: 0 is the reference, 1 the model, above 1 goes on in the direction from the one to the other; above
            2 use top-p, because extrapolation amplifies the noise of the tail.

    Source: DeRa 2402.02992.
    """

    reference: Place
    lam: NonNegative = 1.0

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion(self.reference, "DeRa.reference"),)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        return dera_logits(logits, seen.logits(0), self.lam)


@dataclass(frozen=True, kw_only=True)
class Blend(Steering):
    """The arithmetic mixture ``weight * other + (1 - weight) * model`` of two next-token distributions: what MiniLLM samples from, with the
    teacher as the ``other``.

    Attributes:
        other: the second model. weight: its share.

    Source: MiniLLM 2306.08543, teacher-mixed sampling (the released code).
    """

    other: Place
    weight: Share = 0.2

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion(self.other, "Blend.other"),)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        share = logits.new_tensor([self.weight, 1 - self.weight]).log()
        other = seen.logits(0).to(logits.dtype)
        return torch.logaddexp(share[0] + other.log_softmax(-1), share[1] + logits.log_softmax(-1))


@dataclass(frozen=True, kw_only=True)
class Interleaved(Steering):
    """Speculative distillation: the model proposes a token, and where it is none of the ``top_k`` that the ``teacher`` finds most likely,
    the teacher draws another in its place.

    Whoever drew it, a token has the probability ``mu = pi 1[K] + (1 - pi(K)) p``, K the teacher's most likely tokens and p its
    distribution, and is sampled from that at once. With ``top_k`` the vocabulary it is the model, with 1 nearly the teacher. Temperature
    comes after it: at 1 it is the method's.

    Source: SKD 2410.11325 (from memory; there the teacher checks several proposals in one pass, which draws from the same distribution).
    """

    teacher: Place
    top_k: Count = 25

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion(self.teacher, "Interleaved.teacher"),)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        own, p = logits.log_softmax(-1), seen.logits(0).to(logits.dtype).log_softmax(-1)
        kept = p.topk(min(self.top_k, p.shape[-1]), dim=-1).indices
        accepted = torch.full_like(own, -torch.inf).scatter(-1, kept, own.gather(-1, kept))
        refused = own.scatter(-1, kept, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.logaddexp(accepted, refused + p)


@dataclass(frozen=True, kw_only=True)
class LogitsFusion(Steering):
    """Weak to strong: ``softmax(z + sum_t a_t (z_t - z_base))``, a large model with what small ``experts`` learned over their ``base``.

    ``a_t`` is sought at every token such that the large model moves as far as the experts did,

        ``sum_t (KL(P'‖P) - KL(Q_t‖Q))^2 + (KL(P‖P') - KL(Q‖Q_t))^2``,

    with P' and P the large model with and without the shift, Q_t and Q the experts and their base: on a grid of ``steps`` points up to
    ``most``; for several experts one after the other, ``rounds`` times, from 0.

    Attributes:
        base: the small model before it was trained. experts: what became of it.
        steps, most, rounds: of the search for weights.
        weights: one for each expert, used at every token; null: they are sought. With 1 it is proxy tuning.

    Source: dynamic logits fusion 2406.15480 (the grid and its bounds as it has them, the search over several experts after it).
    """

    base: Place
    experts: tuple[Place, ...]
    weights: tuple[float, ...] | None = None
    most: Positive = 2.0
    steps: Count = 20
    rounds: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.experts:
            raise ConfigError("LogitsFusion.experts is empty: name at least one model that was trained from the base.")
        if self.weights is not None and len(self.weights) != len(self.experts):
            raise ConfigError(f"LogitsFusion has {len(self.experts)} experts but {len(self.weights)} weights.")

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (
            Companion(self.base, "LogitsFusion.base"),
            *(Companion(path, "LogitsFusion.experts") for path in self.experts),
        )

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        own, base = logits.log_softmax(-1), seen.logits(0).to(logits.dtype).log_softmax(-1)
        shifts = [seen.logits(1 + t).to(logits.dtype).log_softmax(-1) - base for t in range(len(self.experts))]
        if self.weights is not None:
            weights = logits.new_tensor(self.weights).expand(len(logits), -1)
        else:
            # KL(Q_t‖Q) and KL(Q‖Q_t) of every expert, [R] each.
            sizes = [(((base + d).exp() * d).sum(-1), -(base.exp() * d).sum(-1)) for d in shifts]
            weights = self._search(own, shifts, sizes)
        return own + _weighed(weights, shifts)

    def _search(self, own: Tensor, shifts: Sequence[Tensor], sizes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The weights of every row, ``[R, T]``."""
        grid = torch.linspace(0, self.most, self.steps + 1, device=own.device)
        found = own.new_zeros(len(own), len(shifts))
        for _ in range(self.rounds if len(shifts) > 1 else 1):
            for t, d in enumerate(shifts):
                found[:, t] = 0
                rest = _weighed(found, shifts)
                errors = torch.stack([self._error(own, torch.add(rest, d, alpha=float(a)), sizes) for a in grid])
                found[:, t] = grid[errors.argmin(0)]
        return found

    @staticmethod
    def _error(own: Tensor, shift: Tensor, sizes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """By ``log P' = log P + shift - log Z``."""
        z = own + shift
        norm = z.logsumexp(-1, keepdim=True)
        there = ((z - norm).exp() * shift).sum(-1) - norm[:, 0]  # KL(P'‖P)
        back = norm[:, 0] - (own.exp() * shift).sum(-1)  # KL(P‖P')
        return torch.stack([(there - a) ** 2 + (back - b) ** 2 for a, b in sizes]).sum(0)


def _weighed(weights: Tensor, shifts: Sequence[Tensor]) -> Tensor:
    """``sum_t a_t d_t``, ``[R, V]``."""
    return torch.stack([weights[:, t, None] * d for t, d in enumerate(shifts)]).sum(0)


@dataclass(frozen=True, kw_only=True)
class IDLE(Steering):
    """Tokens that must not come: the distribution without them that is nearest to the model's, ``q = argmin KL(q‖p)`` with ``q(B) = 0``.

    It is ``p / (1 - p(B))`` on the rest; a step costs ``-log(1 - p(B))`` nats of KL. Made on normalised log-probs, so that temperature and
    top-p see the nearest distribution, and log-probs are those of what was sampled from.

    Attributes:
        tokens: texts that are one token each. pattern: a regular expression; it bans every token in whose text it is found. ids: token
            ids.

    Source: GI-DLE 2503.18050, (G)I-DLE (its closed form).
    """

    tokens: tuple[str, ...] = ()
    pattern: str | None = None
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tokens or self.pattern or self.ids):
            raise ConfigError("IDLE bans nothing: set tokens, pattern or ids.")

    def over(self, tokenizer: Any) -> IDLE:
        if not (self.tokens or self.pattern):
            return self
        banned = {*self.ids, *self._of_texts(tokenizer), *self._of_pattern(tokenizer)}
        if banned >= set(range(len(tokenizer))):
            raise ConfigError("IDLE bans every token of the vocabulary: nothing could be sampled.")
        return replace(self, tokens=(), pattern=None, ids=tuple(sorted(banned)))

    def _of_texts(self, tokenizer: Any) -> Iterable[int]:
        for text in self.tokens:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) != 1:
                raise ConfigError(
                    f"IDLE.tokens: {text!r} is {len(ids)} tokens; only single ones can be banned. Write `pattern` for all tokens that "
                    "contain a text."
                )
            yield ids[0]

    def _of_pattern(self, tokenizer: Any) -> list[int]:
        if self.pattern is None:
            return []
        try:
            pattern = re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"IDLE.pattern: {self.pattern!r} is no regular expression ({error}).") from None
        special = set(tokenizer.all_special_ids)
        found = [i for i in range(len(tokenizer)) if i not in special and pattern.search(tokenizer.decode([i]))]
        if not found:
            raise ConfigError(f"IDLE.pattern: {self.pattern!r} is found in no token of this tokenizer.")
        return found

    @functools.cached_property
    def _banned(self) -> Tensor:
        return torch.tensor(self.ids)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        # logsumexp over the rest is log(1 - p(B)) without a difference of nearly equal numbers where p(B) is nearly 1.
        rest = logits.index_fill(-1, self._banned.to(logits.device), -torch.inf)
        return rest - rest.logsumexp(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class QSharp(Steering):
    """``pi E_{z ~ Z}[exp(z / eta)]``: a model led by what the return will be, without training it.

    Z is the distribution of the reward of responses that go on from a token, if the model itself goes on. Where ``value`` knows it, this
    is the policy that maximises reward minus ``eta`` times the KL to the model, exactly. ``value`` is a token classifier that was trained
    on the model's own responses and their rewards: with one output it gives the log-odds of the reward ``high`` against ``low``, with more
    the logits of equally spaced rewards between them.

    Attributes:
        value: the token classifier. eta: strength of the KL, in units of reward for a nat. low, high: the smallest and the largest reward.
        top_k: only the model's k most likely tokens are asked about, and only they can come; null: all.

    Source: Q# 2502.20548 (read in excerpts; that tokens beyond the candidates are left out is ours to say).
    """

    value: Place
    eta: Positive = 0.1
    top_k: Count | None = 20
    low: float = 0.0
    high: float = 1.0

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (Companion(self.value, "QSharp.value", values=True),)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        ids = logits.topk(min(self.top_k or logits.shape[-1], logits.shape[-1]), dim=-1).indices
        led = logits.gather(-1, ids) + self.gain(seen.after(0, ids).to(logits.dtype))
        return torch.full_like(logits, -torch.inf).scatter(-1, ids, led)

    def gain(self, values: Tensor) -> Tensor:
        """``log E exp(z / eta)`` of outputs ``[..., C]``."""
        if values.shape[-1] == 1:
            odds = values[..., 0]
            return torch.logaddexp(logsigmoid(-odds) + self.low / self.eta, logsigmoid(odds) + self.high / self.eta)
        rewards = torch.linspace(self.low, self.high, values.shape[-1], device=values.device)
        return (values.log_softmax(-1) + rewards / self.eta).logsumexp(-1)


@dataclass(frozen=True, kw_only=True)
class CopT(Control):
    """An answer first, and thought only where the model does not stand by it: a draft behind the end-of-thinking mark is kept if the model
    is as sure of it when it sees its own doubts.

    The doubts of a token are the embedding ``softmax(z) E`` of its whole distribution, in the place of the one that was sampled. A draft's
    score is ``mean_t (log pi(y_t | tokens) - log pi(y_t | doubts))``; the first token, before which there are none, does not count. At
    most ``accept``: the draft is the response. Else the model thinks, from ``think`` on, and after every quarter of the draft's length the
    same score of the newest thought says whether it sees the draft (below ``show``) or does not.

    Attributes:
        accept, show: bounds of the scores, nats a token. draft_tokens: a draft that has not ended by then is not kept.
        think, answer: the texts with which the model's thinking begins and ends.

    A draft that was not kept is no part of the response. Log-probs are those of what each token was sampled from, with the draft in sight
    or not. It needs a second pass in which embeddings are given, so vLLM cannot do it.

    Source: CopT (the released code, sdc17/CopT: its defaults for MATH-500). There the first thought is scored with what the model would
    have said in the place of ``think``, and in mathematics the end of the thinking ends the response; here it goes on to its answer.
    """

    engines: ClassVar[tuple[str, ...]] = ("hf",)
    accept: NonNegative = 0.6
    show: NonNegative = 0.4
    draft_tokens: Count = 1024
    think: str = "<think>"
    answer: str = "</think>"

    def check(self, path: str) -> None:
        self.marks(load_tokenizer(path))

    def marks(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The tokens of ``think`` and ``answer``."""
        out = []
        for name, text in (("think", self.think), ("answer", self.answer)):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not text or not ids or tokenizer.unk_token_id in ids:
                raise ConfigError(
                    f"CopT.{name}: the model's tokenizer has no tokens for {text!r}. Set it to the text with which its thinking "
                    f"{'begins' if name == 'think' else 'ends'}."
                )
            out.append(ids)
        return out[0], out[1]
