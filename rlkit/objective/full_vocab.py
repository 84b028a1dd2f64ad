"""f-divergences over the whole vocabulary, from hidden states, without ever holding ``[N, V]``.

``D_f(pi‖q)(s) = sum_v q_v f(pi_v / q_v)`` has no sampling noise. Its gradient with respect to the policy's logits is
``p_j (f'(u_j) - sum_v p_v f'(u_v))``, so a chunk of tokens needs its own logits only. Where the weight of each token in the loss is known
beforehand, as in training, the gradient is made together with the value; else the logits are computed again in the backward pass.

With ``top_k`` only the k most likely tokens (of the anchor or of the policy) stay apart and the rest is one tail bucket: the divergence of
the coarser distributions, never above the true one.

Source: the definition above (gradients are checked by enumeration in the tests).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlkit.bounds import Count, Positive
from rlkit.errors import ConfigError, ModelError
from rlkit.objective import Term
from rlkit.objective.anchors import Anchor
from rlkit.objective.divergences import Generator, generator, label, transport
from rlkit.types import Batch, New

CHUNK_ELEMENTS = 1 << 23
CPU_ELEMENTS = 1 << 19  # of log-probs that a divergence is made of at once on a CPU
EXTREME = 40.0  # squared, e^40 is still a float32; beyond it a token counts as if its log-ratio were this


class Whole(ABC):
    """What a whole-vocabulary term reads of an anchor: the next token's distribution after each of ``N`` prefixes.

    A :class:`Head` has all of it; :class:`TopK` the most likely tokens and one number for the rest; :class:`Mixed` joins several;
    :class:`Ranked` is of another vocabulary.
    """

    @abstractmethod
    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        """Log-probs of the distributions ``rows`` at this temperature, ``[n, classes]`` in float32, new memory."""

    def likely(self, rows: slice, log_q: Tensor, k: int) -> Tensor:
        """The ids of their ``k`` most likely tokens, ``[n, k]``; ``log_q`` is what :meth:`log_probs` gave for ``rows``."""
        return log_q.topk(k, dim=-1).indices

    @property
    def table(self) -> Tensor | None:
        """Its output layer ``[V, H]``, in which :class:`Wasserstein` measures how far tokens are apart; None: it has none."""
        return None

    def over(self, own: Callable[[Tensor], Head]) -> Whole:
        """The same, where ``own`` is the policy's output layer over hidden states, which some references share."""
        return self


@dataclass
class Head(Whole):
    """An output layer over hidden states: ``logits = hidden W^T + b``; shapes ``[N, H]``, ``[V, H]``, ``[V]``.

    ``weight: None`` means the policy's own layer (a reference with its adapter switched off). With a ``cap`` (Gemma 2) logits are
    ``cap * tanh(logits / cap)``.
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    cap: float | None = None

    @property
    def classes(self) -> int:
        assert self.weight is not None
        return int(self.weight.shape[0])

    @property
    def table(self) -> Tensor:
        assert self.weight is not None
        return self.weight.detach()

    def over(self, own: Callable[[Tensor], Head]) -> Head:
        return own(self.hidden) if self.weight is None else self

    def logits(self, rows: slice, temperature: float, fp32: bool) -> Tensor:
        assert self.weight is not None
        h = self.hidden[rows]
        z = (
            torch.nn.functional.linear(h.float(), self.weight.float())
            if fp32
            else torch.nn.functional.linear(h, self.weight).float()
        )
        if self.bias is not None:
            z += self.bias.float()
        if self.cap is not None:
            z = z.div_(self.cap).tanh_().mul_(self.cap)
        return z.div_(temperature) if temperature != 1 else z

    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        return normalised(self.logits(rows, temperature, fp32))


@dataclass(frozen=True)
class TopK(Whole):
    """The ``k`` most likely tokens of each distribution, most likely first, with their log-probs: ``[N, k]`` each. The rest is one tail.

    It is what a server, an engine or a file gives of an anchor, where an output layer and hidden states would be too much to send or to
    keep. ``temperature`` is that at which log-probs were taken: those of another one do not follow from them.
    """

    ids: Tensor
    logp: Tensor
    temperature: float = 1.0

    @property
    def k(self) -> int:
        return int(self.ids.shape[1])

    @classmethod
    def of(cls, whole: Whole, n: int, k: int, classes: int, temperature: float = 1.0, fp32: bool = False) -> TopK:
        """Those of ``n`` distributions of another form."""
        parts, size = list[tuple[Tensor, Tensor]](), max(1, CHUNK_ELEMENTS // classes)
        for i in range(0, n, size):
            at = slice(i, min(n, i + size))
            log_q = whole.log_probs(at, classes, temperature, fp32)
            ids = whole.likely(at, log_q, min(k, classes))
            parts.append((ids, log_q.gather(-1, ids)))
        ids, logp = (torch.cat(x) for x in zip(*parts, strict=True))
        return cls(ids, logp, temperature)

    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        """The tail's mass is spread evenly over its tokens, none of which can then be more likely than one that is kept."""
        self._check(temperature)
        kept = self.logp[rows].float()
        each = tail(kept) - math.log(max(1, classes - self.k))
        if self.k >= classes:
            each = torch.full_like(each, -math.inf)
        return each.expand(-1, classes).scatter(-1, self.ids[rows].long(), kept)

    def likely(self, rows: slice, log_q: Tensor, k: int) -> Tensor:
        if k > self.k:
            raise ModelError(
                f"a term tells the {k} most likely tokens apart, but the anchor gives {self.k}: lower its top_k, or ask for more of them."
            )
        return self.ids[rows, :k].long()

    def _check(self, temperature: float) -> None:
        if temperature != self.temperature:
            raise ModelError(
                f"the log-probs of an anchor's most likely tokens are of temperature {self.temperature:g}, and the policy's of "
                f"{temperature:g}: set sampling.temperature: {self.temperature:g}, or use an anchor of type: Frozen."
            )


@dataclass(frozen=True)
class Mixed(Whole):
    """The mixture of anchors, ``q = sum_i w_i q_i`` at every prefix.

    ``parts`` are ``(anchor, place, weight)``: the anchor has the distributions of those prefixes whose number is in ``place``, ``[n_i]``
    ascending, and ``weight``, ``[n_i]``, is its share there. The shares at a prefix add up to 1.
    """

    parts: tuple[tuple[Whole, Tensor, Tensor], ...]

    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        out: Tensor | None = None
        for anchor, place, weight in self.parts:
            first, last = (int(torch.searchsorted(place, edge)) for edge in (rows.start, rows.stop))
            if first == last:
                continue
            log_q = anchor.log_probs(slice(first, last), classes, temperature, fp32)
            log_q += weight[first:last, None].log()
            at = place[first:last] - rows.start
            if out is None:
                out = log_q.new_full((rows.stop - rows.start, classes), -math.inf)
            out[at] = torch.logaddexp(out[at], log_q)
        assert out is not None, "every prefix has an anchor"
        return out

    @property
    def table(self) -> Tensor | None:
        return self.parts[0][0].table

    def over(self, own: Callable[[Tensor], Head]) -> Mixed:
        return Mixed(tuple((anchor.over(own), place, weight) for anchor, place, weight in self.parts))


@dataclass(frozen=True)
class Product(Whole):
    """``q ~ prod_i q_i^w_i`` at every prefix, normalised; weights may be negative."""

    parts: tuple[tuple[Whole, float], ...]

    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        out: Tensor | None = None
        for anchor, weight in self.parts:
            log_q = anchor.log_probs(rows, classes, temperature, fp32)
            out = log_q.mul_(weight) if out is None else out.add_(log_q, alpha=weight)
        assert out is not None, "a product has factors"
        out -= out.logsumexp(-1, keepdim=True)
        return out

    @property
    def table(self) -> Tensor | None:
        return self.parts[0][0].table

    def over(self, own: Callable[[Tensor], Head]) -> Product:
        return Product(tuple((anchor.over(own), weight) for anchor, weight in self.parts))


@dataclass(frozen=True)
class Ranked(Whole):
    """An anchor with another vocabulary and other prefixes: the probability of its likeliest token, of its second, and so on.

    ``place``, ``[M]`` ascending, are the numbers of those prefixes that ``head`` has, too; at the others there is no distribution, and all
    log-probs are ``-inf``. Only :class:`UniversalLogit` reads it.
    """

    head: Head
    place: Tensor

    def log_probs(self, rows: slice, classes: int, temperature: float, fp32: bool) -> Tensor:
        first, last = (int(torch.searchsorted(self.place, edge)) for edge in (rows.start, rows.stop))
        out = self.head.hidden.new_full((rows.stop - rows.start, classes), -math.inf, dtype=torch.float32)
        if first < last:
            log_q = self.head.log_probs(slice(first, last), self.head.classes, temperature, fp32)
            best = log_q.sort(dim=-1, descending=True).values[:, :classes]
            out[self.place[first:last] - rows.start, : best.shape[1]] = best
        return out


def normalised(logits: Tensor) -> Tensor:
    """``logits`` ``[n, V]``, which become log-probs in place; on CPUs a few rows at a time, which need little room beside them."""
    rows = CPU_ELEMENTS // logits.shape[-1] if logits.device.type == "cpu" else len(logits)
    for part in logits.split(max(1, rows)):
        part -= part.logsumexp(-1, keepdim=True)
    return logits


def tail(kept: Tensor) -> Tensor:
    """The log of what probabilities ``[n, k]``, given by their logs, leave of 1, ``[n, 1]``; never below a millionth."""
    return torch.log1p(-kept.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))


def _ratio(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """``a = log u``, bounded, and the weight that goes with it: ``p``, or ``q u`` where ``u`` was bounded from below.

    Uses up ``log_q``, which becomes ``a``.
    """
    a = torch.sub(log_p, log_q, out=log_q)
    low, high = (float(x) for x in a.aminmax())
    weight = torch.where(a < -EXTREME, log_p - a - EXTREME, log_p).exp_() if low < -EXTREME else log_p.exp()
    return (a.clamp_(-EXTREME, EXTREME) if low < -EXTREME or high > EXTREME else a), weight


def _buckets(log_p: Tensor, log_q: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the chosen tokens ``ids``, ``[n, k]``, and of the tail, ``[n, k + 1]`` each."""
    kept_p, kept_q = log_p.gather(-1, ids), log_q.gather(-1, ids)
    return torch.cat([kept_p, tail(kept_p)], -1), torch.cat([kept_q, tail(kept_q)], -1)


def _chunk(
    log_p: Tensor,
    log_q: Tensor,
    f: Generator,
    ids: Tensor | None,
    slope: bool,
    anchor: Whole,
    target: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Divergences ``[n]`` and, if asked for, their gradients with respect to the policy's logits ``[n, V]``. Uses up its arguments.

    ``ids``, ``[n, k]``: the tokens that stay apart; None: all. ``target``, ``[n]``: those that stand in the text, where that is known.
    """
    log_q = f.beside(log_p, log_q)
    if ids is None:
        f = f if target is None else f.with_token(target[:, None])
        f = f.among(None, anchor.table).at(log_p, log_q)
        a, w = _ratio(log_p, log_q)
        value = (f.value(a) * w).sum(-1)
        if not slope:
            return value, None
        dz = f.slope(a) * w  # p f'(u)
        return value, dz.addcmul_(log_p.exp_(), dz.sum(-1, keepdim=True), value=-1)
    few_p, few_q = _buckets(log_p, log_q, ids)
    if target is not None:
        apart = ids == target[:, None]
        f = f.with_token(torch.where(apart.any(-1), apart.int().argmax(-1), ids.shape[1])[:, None])
    p_few, f = few_p.exp(), f.among(ids, anchor.table).at(few_p, few_q)
    a, w = _ratio(few_p, few_q)
    value = (f.value(a) * w).sum(-1)
    if not slope:
        return value, None
    g = f.slope(a)
    total = (g * w).sum(-1, keepdim=True)
    dz = log_p.exp_() * (g[:, -1:] - total)
    return value, dz.scatter_(-1, ids, (g * w - p_few * total)[:, :-1])


class _Pass:
    """Goes over the tokens in chunks; collects values, and gradients for given weights of the tokens."""

    def __init__(
        self,
        head: Head,
        anchor: Whole,
        f: Generator,
        top_k: int | None,
        of: str,
        temperature: float,
        fp32: bool,
        target: Tensor | None,
        seq: Tensor | None,
    ) -> None:
        self.head, self.anchor, self.f, self.of, self.temperature, self.fp32 = head, anchor, f, of, temperature, fp32
        self.target, self.seq = target, seq
        self.top_k = None if top_k is None or top_k >= head.classes else top_k

    def _parts(self, n: int, rows: int) -> Iterator[slice]:
        """Chunks of at most ``rows`` of ``n`` tokens; of a divergence that is of many tokens together, those of one response."""
        edges = [0, n]
        if self.f.joint is not None:
            assert self.seq is not None, "whose tokens they are is known in training"
            rows = self.f.joint
            edges = [0, *((self.seq[1:] != self.seq[:-1]).nonzero()[:, 0] + 1).tolist(), n]
        for first, last in itertools.pairwise(edges):
            yield from (slice(i, min(last, i + rows)) for i in range(first, last, rows))

    def _apart(self, rows: slice, log_p: Tensor, log_q: Tensor) -> Tensor | None:
        """The ids of the tokens that stay apart, ``[n, k]``; None: all of them."""
        if self.top_k is None:
            return None
        if self.of == "anchor":
            return self.anchor.likely(rows, log_q, self.top_k)
        likely = log_p if self.of == "policy" else torch.maximum(log_p, log_q)
        return likely.topk(self.top_k, dim=-1).indices

    def _together(
        self, log_p: Tensor, log_q: Tensor, ids: Tensor | None, target: Tensor | None, slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """:func:`_chunk`, on CPUs a few tokens at a time: what a divergence makes on its way stays in the cache, and is small."""
        n, rows = len(log_p), max(1, CPU_ELEMENTS // self.head.classes)
        if log_p.device.type != "cpu" or self.f.joint is not None or n <= rows:
            return _chunk(log_p, log_q, self.f, ids, slope, self.anchor, target)
        value = log_p.new_empty(n)
        for first in range(0, n, rows):
            part = slice(first, first + rows)
            apart, own = (None if x is None else x[part] for x in (ids, target))
            value[part], dz = _chunk(log_p[part], log_q[part], self.f, apart, slope, self.anchor, own)
            if dz is not None:
                log_p[part] = dz  # which is used up
        return value, log_p if slope else None

    def __call__(
        self, g_N: Tensor | None, weight: bool, bias: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """``(values, d_hidden, d_weight, d_bias)`` of ``sum_n g_n D_n``; gradients are None without ``g_N`` or where not wanted."""
        hidden, w = self.head.hidden, self.head.weight
        assert w is not None
        n, rows = hidden.shape[0], max(1, CHUNK_ELEMENTS // self.head.classes)
        wide = w.float() if self.fp32 else w
        out = hidden.new_empty(n, dtype=torch.float32)
        d_hidden = None if g_N is None else torch.empty_like(hidden)
        d_weight = torch.zeros_like(w, dtype=torch.float32) if g_N is not None and weight else None
        d_bias = torch.zeros(self.head.classes, device=w.device) if g_N is not None and bias else None
        for at in self._parts(n, rows):
            log_p = self.head.logits(at, self.temperature, self.fp32)
            log_q = self.anchor.log_probs(at, self.head.classes, self.temperature, self.fp32)
            cap = self.head.cap
            slope = None if cap is None else 1 - (log_p * (self.temperature / cap)).square_()
            normalised(log_p)
            ids = self._apart(at, log_p, log_q)
            target = None if self.target is None else self.target[at]
            out[at], dz = self._together(log_p, log_q, ids, target, g_N is not None)
            if dz is None or g_N is None or d_hidden is None:
                continue
            dz *= g_N[at, None] / self.temperature
            if slope is not None:
                dz *= slope
            d_hidden[at] = (dz if self.fp32 else dz.to(w.dtype)) @ wide
            if d_weight is not None:
                if self.fp32 or w.dtype == torch.float32:
                    d_weight.addmm_(dz.T, hidden[at].float())
                else:
                    d_weight += dz.to(w.dtype).T @ hidden[at]
            if d_bias is not None:
                d_bias += dz.sum(0)
        return out, d_hidden, d_weight, d_bias


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cap: float | None,
        anchor: Whole,
        expected: Tensor | None,
        *options: Any,
    ) -> Tensor:
        wants = (ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
        ahead = expected if any(ctx.needs_input_grad) else None
        out, *grads = _Pass(Head(hidden, weight, bias, cap), anchor, *options)(ahead, *wants)
        ctx.options, ctx.wants, ctx.cap, ctx.anchor, ctx.expected, ctx.ahead = options, wants, cap, anchor, ahead, grads
        ctx.save_for_backward(hidden, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        g, grads, factor = upstream[0], ctx.ahead, 1.0
        if ctx.expected is not None:
            factor = float((g * ctx.expected).sum() / ctx.expected.pow(2).sum().clamp(min=1e-30))
        if ctx.expected is None or not torch.allclose(g, factor * ctx.expected, rtol=1e-4, atol=1e-12):
            _, *grads = _Pass(Head(hidden, weight, bias, ctx.cap), ctx.anchor, *ctx.options)(g, *ctx.wants)
            factor = 1.0
        ctx.ahead = None
        own = [
            None if d is None else (d if factor == 1 else d * factor).to(x.dtype)
            for d, x in zip(grads, (hidden, weight, bias), strict=True)
        ]
        return (*own, *([None] * 10))


def full_divergence(
    policy: Head,
    anchor: Whole,
    f: Generator,
    *,
    top_k: int | None = None,
    of: Literal["anchor", "policy", "either"] = "anchor",
    temperature: float = 1.0,
    fp32: bool = False,
    expected: Tensor | None = None,
    target: Tensor | None = None,
    seq: Tensor | None = None,
) -> Tensor:
    """``D_f(pi‖anchor)`` of each token's distribution, ``[N]`` in nats for the KLs; gradient to the policy's hidden states and weights.

    ``expected`` is the gradient that each token's value will get, up to a common factor (its weight in the loss). Then gradients are made
    in the forward pass and logits are computed once; if another gradient arrives, they are computed again. ``target``, ``[N]``, is the
    token that stands in the text, and ``seq``, ``[N]`` ascending, the response it belongs to, for generators that ask for them.
    """
    options = (f, top_k, of, temperature, fp32, target, seq)
    value: Tensor = _Full.apply(policy.hidden, policy.weight, policy.bias, policy.cap, anchor, expected, *options)
    return value


@dataclass(frozen=True, kw_only=True)
class WholeVocabulary(Term):
    """Base of terms that compare the next token's whole distribution with that of ``anchor`` at every prefix of a response.

    What :attr:`generator` makes of the two stands in ``new.full[self.name]``, ``[N]``.

    Attributes:
        top_k: keep so many tokens apart (the most likely ones ``of`` the anchor, the policy, or either) and join the rest in one bucket.
    """

    # Each token's value has the gradient that its weight in the loss says: it can be made together with the value.
    linear: ClassVar[bool] = True
    # It compares what an anchor of any vocabulary says (``Ranked``).
    any_tokens: ClassVar[bool] = False

    top_k: int | None = None
    of: Literal["anchor", "policy", "either"] = "anchor"
    anchor: Literal["ref", "teacher"] = "ref"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"{type(self).__name__}.top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary."
            )
        if self.top_k is not None and not self.generator.coarse:
            raise ConfigError(
                f"{type(self).__name__}: {self.generator.label} is of single tokens, which top_k joins in a bucket. Leave top_k out."
            )

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.anchor}_full"})

    @property
    @abstractmethod
    def generator(self) -> Generator:
        """The divergence."""

    @property
    def compared(self) -> tuple[object, ...]:
        """All that its value depends on beside the two distributions."""
        return (self.top_k, self.of)

    @property
    def reads(self) -> int | None:
        """How many of the anchor's most likely tokens it tells apart; None: all."""
        return self.generator.reads if self.top_k is None else self.top_k


def told_apart(objective: Iterable[Term], anchor: str) -> int:
    """How many of an anchor's most likely tokens some term tells apart (the largest ``top_k``); 0: none does, or one reads all of them."""
    asked = [t.reads for t in objective if isinstance(t, WholeVocabulary) and t.anchor == anchor]
    return 0 if None in asked else max((k for k in asked if k is not None), default=0)


@dataclass(frozen=True, kw_only=True)
class FullDivergence(WholeVocabulary):
    """``D_f(pi‖anchor)`` over the whole vocabulary at every sampled prefix: no sampling noise, one more pass through both output layers.

    Attributes:
        f, parameter: as in ``Divergence``, or a divergence of whole distributions (:mod:`rlkit.objective.distillation`).
        level: ``token`` is the direct term, prefixes frozen: what most libraries call the KL loss. ``sequence`` adds the prefix credit
            ``sg(sum_{k>t} D_k) log pi_t``: on-policy and with ``reduce: sum``, the exact gradient of ``E[sum_t D_t]``; for the KLs that is
            the KL of whole responses.

    Source: the product rule on ``E[sum_t D_t]``, which has a direct and a prefix term (exact by enumeration in the tests).
    """

    f: str | Generator = "reverse_kl"
    parameter: float | None = None
    level: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        generator(self.f, self.parameter)

    @property
    def generator(self) -> Generator:
        return generator(self.f, self.parameter)

    @property
    def compared(self) -> tuple[object, ...]:
        return (self.f, self.parameter, self.top_k, self.of)

    @property
    def name(self) -> str:
        return f"{label(self.f, self.parameter)}_{'full' if self.top_k is None else f'top{self.top_k}'}({self.anchor})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        d = new.full[self.name]
        if self.level == "token":
            return d
        later = b.reward_to_go(d.detach()) - d.detach()
        return d + later * (new.logp - new.logp.detach())


@dataclass(frozen=True, kw_only=True)
class Wasserstein(WholeVocabulary):
    """Entropic optimal transport from the policy's next-token distribution to the anchor's: probability that moves to a token that means
    nearly the same costs little.

    Costs are Euclidean distances of tokens in the anchor's output layer; Sinkhorn's iteration goes (``rounds`` times) over the ``top_k``
    tokens that are most likely for either of the two, and one bucket of all others. The gradient is ``pi (f - E f)``, ``f`` its potential:
    that of WPR's reward ``-f(y_t)``, in its expectation over the token.

    The released code gives ``-f(y_t)`` as a reward, which credits earlier tokens, too; joins the tokens of a whole batch into one support;
    thins costs out to 512 neighbours; and lets the bucket exchange nothing, where here it is as far away as the farthest two tokens are.
    Distances have the scale of the model's embeddings, and so has ``eps``.

    Source: Wasserstein Policy Regularization (the released code of aailab-kaist/WPR, with these differences).
    """

    top_k: int | None = 128
    of: Literal["anchor", "policy", "either"] = "either"
    eps: Positive = 0.01
    rounds: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is None:
            raise ConfigError(
                "Wasserstein.top_k is null; costs between all tokens do not fit anywhere. Set it, e.g. to 128."
            )

    @property
    def generator(self) -> Generator:
        return transport(self.eps, self.rounds)

    @property
    def name(self) -> str:
        return f"Wasserstein({self.anchor})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        return new.full[self.name]


class _ByRank(Generator):
    """``sum_i |p_(i) - q_(i)|`` over probabilities that are sorted, each by itself; 0 where the anchor has no distribution."""

    def value(self, a: Tensor) -> Tensor:
        return torch.expm1(-a).abs()

    def slope(self, a: Tensor) -> Tensor:
        return a.sign()

    def beside(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        order = log_p.sort(dim=-1, descending=True).indices
        best = log_q.sort(dim=-1, descending=True).values
        return torch.where(best[:, :1] > -math.inf, torch.empty_like(log_q).scatter_(-1, order, best), log_p)


@dataclass(frozen=True, kw_only=True)
class UniversalLogit(WholeVocabulary):
    """How far the policy's sorted next-token probabilities are from the anchor's, ``sum_i |p_(i) - q_(i)|``: the closed form of an optimal
    transport whose costs know nothing of the tokens, so the vocabularies may be any two.

    With a teacher of another tokenizer (``type: Translated``), it compares at those tokens before which both have the same text, and is 0
    at all others. Where the teacher's vocabulary is the larger one, the mass of its least likely tokens, which have no partner, is left
    out of the value; it has no gradient. The paper adds a cross entropy (``NLL``) and pairs the i-th tokens of both.

    Source: ULD 2402.12030, eq. 6 (the loss, as TRL's GOLD has it).
    """

    any_tokens: ClassVar[bool] = True
    anchor: Literal["ref", "teacher"] = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None:
            raise ConfigError("UniversalLogit.top_k: sorted probabilities are compared all; leave it out.")

    @property
    def generator(self) -> Generator:
        return _ByRank()

    @property
    def name(self) -> str:
        return f"UniversalLogit({self.anchor})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        return new.full[self.name]
