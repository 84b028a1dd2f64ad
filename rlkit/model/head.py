"""Token log-probabilities from hidden states, without ever holding ``[N, V]`` logits.

The output layer is evaluated on action positions only, a tile of tokens and vocabulary at a time, and evaluated again in the backward
pass. The extra memory is one tile of logits, whatever the batch. Where the layer's weight is trained, its gradient needs memory in the
backward pass; until then this holds as many products as fit, which are not computed again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlkit.objective.full_vocab import Head, Whole, full_divergence

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in float32
CPU_ELEMENTS = 1 << 22  # on a CPU, where larger tiles are no faster (benchmarks/logprob.py)
# Of up to FEW rows and a weight of LARGE numbers and more, which no cache holds, W h^T is up to four times as fast on CPUs as h W^T.
FEW, LARGE = 8, 1 << 23
LOWEST = -1e30  # a logit outside the truncation set: e^LOWEST = 0, and 0 * LOWEST is no NaN


def truncate(logits: Tensor, target: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets logits outside the sampler's top-k / top-p set to ``-inf``; the target itself always stays.

    The target was sampled, so it belongs to the set under the weights that sampled it; after an update it may have
    left the set, and a log-probability of ``-inf`` would end the run for a token that is merely a little less likely.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        drop = logits < kth
        logits = logits.masked_fill(drop.scatter(-1, target[:, None], False), -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(dim=-1)  # ascending, as vLLM does
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False  # at least one token
        drop = torch.zeros_like(drop).scatter(-1, index, drop)
        logits = logits.masked_fill(drop.scatter(-1, target[:, None], False), -torch.inf)
    return logits


class _Kept(NamedTuple):
    """Products of the first ``tokens``. ``store`` has a row for each of the weight's; if not ``apart``, it becomes its gradient."""

    store: Tensor
    tokens: int
    apart: bool


class _Tiles:
    """The logits ``[N, V]`` tile by tile, each made in the same buffer.

    Tiles are blocks of tokens and vocabulary, so that products with large N and V stay products of large matrices; a truncated softmax
    needs whole rows.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        fp32: bool,
        cap: float | None,
    ) -> None:
        self.hidden, self.weight, self.bias, self.target = hidden.float() if fp32 else hidden, weight, bias, target
        self.temperature, self.top_k, self.top_p, self.cap = temperature, top_k, top_p, cap
        self.shape = n, v = hidden.shape[0], weight.shape[0]
        self.truncated = 0 < top_k < v or top_p < 1
        tile = CPU_ELEMENTS if hidden.device.type == "cpu" and not self.truncated else CHUNK_ELEMENTS
        self.rows = max(1, min(n, tile // v if self.truncated or n * v <= tile else math.isqrt(tile) // 2))
        self.columns = v if self.truncated else min(v, max(1, tile // self.rows))
        dtype, device = self.hidden.dtype, hidden.device
        # Products in the model's own precision are rounded to it, as those of the engine are.
        self.low = None if dtype == torch.float32 else torch.empty(self.rows * self.columns, dtype=dtype, device=device)
        self.kept: _Kept | None = None

    @functools.cached_property
    def buffer(self) -> Tensor:
        """A tile in float32."""
        return torch.empty(self.rows * self.columns, device=self.hidden.device)

    def keep(self, trained: bool) -> None:
        """From now on products are kept: in memory of the size and type of the weight's gradient, if it is ``trained``, so that a block of
        vocabulary has all that it keeps where its own gradient will be; or else in a tile, if they all fit in one."""
        n, v = self.shape
        width = self.hidden.shape[1] if trained and self.hidden.dtype == self.weight.dtype else 0
        apart = n > width and n <= self.rows and v <= self.columns
        width = n if apart else width
        if width:
            store = torch.empty(v, width, dtype=self.hidden.dtype, device=self.hidden.device)
            self.kept = _Kept(store, min(width, self.rows), apart)

    def recall(self, kept: _Kept | None) -> None:
        """Takes what was kept; where that is all and apart, it serves as the buffer, too."""
        self.kept = kept
        if kept is not None and kept.apart and self.low is None:
            self.buffer = kept.store.flatten()

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """(tokens, vocabulary) of each tile; all tokens of a block of vocabulary follow one another."""
        n, v = self.shape
        first = min(self.rows if self.kept is None else self.kept.tokens, n)
        more = -(-(n - first) // self.rows)
        edges = [0, *(first + (n - first) * i // max(1, more) for i in range(more + 1))]
        for j in range(0, v, self.columns):
            for i, end in itertools.pairwise(edges):
                yield slice(i, end), slice(j, min(v, j + self.columns))

    def block(self, columns: slice) -> Tensor:
        """``W`` of a block of vocabulary, in the precision of its products."""
        return self.weight[columns].to(self.hidden.dtype)

    def scratch(self, rows: int, columns: int) -> Tensor:
        """The buffer of a tile, ``[rows, columns]`` in float32."""
        return _part(self.buffer, rows, columns)

    def logits(self, rows: slice, columns: slice, again: bool = False) -> Tensor:
        """One tile in float32, after the model's cap, temperature and truncation; ``again``: products that were kept are there.

        It is to be read only, and is overwritten by the next.
        """
        h = self.hidden[rows]
        shape = (h.shape[0], columns.stop - columns.start)
        out = self.scratch(*shape)
        kept, product = self.kept if rows.start == 0 else None, out
        if kept is not None:
            product = _part(kept.store[columns].flatten(), *shape)
        elif self.low is not None:
            product = _part(self.low, *shape)
        if kept is None or not again:
            torch.mm(h, self.block(columns).T, out=product)
        z = product if self.low is None else out.copy_(product)
        if self.bias is not None:
            z = torch.add(z, self.bias[columns].float(), out=out)
        if self.cap is not None:
            z = torch.div(z, self.cap, out=out).tanh_().mul_(self.cap)
        if self.temperature != 1:
            z = torch.div(z, self.temperature, out=out)
        return truncate(z, self.target[rows], self.top_k, self.top_p).clamp_(min=LOWEST) if self.truncated else z

    def slope(self, logits: Tensor) -> Tensor | None:
        """The derivative of the cap where it gave ``logits`` (after temperature), for a model that has one."""
        if self.cap is None:
            return None
        return logits.mul(self.temperature / self.cap).square_().neg_().add_(1).clamp_(min=0)  # 0 where truncated

    def inside(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Where in a tile the targets are, ``[n, 1]``, and which of them really are ``[n, 1]``."""
        at = self.target[rows, None] - columns.start
        return at.clamp(0, columns.stop - columns.start - 1), (at >= 0) & (at < columns.stop - columns.start)


def _part(buffer: Tensor, rows: int, columns: int) -> Tensor:
    return buffer[: rows * columns].view(rows, columns)


class _TokenLogprob(torch.autograd.Function):
    """``log softmax(h W^T + b)[target]`` and, if asked for, the entropy ``H``.

    A tile knows of its own block of vocabulary alone: ``log p`` within the block, by torch's softmax, which reads and writes each number
    once. ``share [N, blocks]`` is the log of each block's part of the whole: ``log P = log p + share``, and ``H`` is the mean of
    ``H_block - share`` over the blocks. With ``d log P_t / dz_j = 1[j = t] - P_j`` and ``dH / dz_j = -P_j (log P_j + H)``, a tile of the
    backward pass needs its logits, ``share`` and ``H`` only. Logits are computed again there, but for those that could be kept
    (:meth:`_Tiles.keep`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        entropy: bool,
        fp32: bool,
        cap: float | None,
        differentiated: bool,
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(hidden, weight, bias, target, temperature, top_k, top_p, fp32, cap)
        if differentiated and any(ctx.needs_input_grad):
            tiles.keep(trained=ctx.needs_input_grad[1])
        spare = torch.empty_like(tiles.buffer if entropy else tiles.buffer[:0])
        n, blocks = len(target), -(-len(weight) // tiles.columns)
        # Of each block: its largest logit, by how much the log of its sum of e^z is above that, and its entropy.
        top, above, spread = (hidden.new_zeros(n, blocks, dtype=torch.float32) for _ in range(3))
        inside = top.new_zeros(n)
        for r, c in tiles:
            k, z = c.start // tiles.columns, tiles.logits(r, c)
            top[r, k] = z.amax(-1)
            log_p = torch.log_softmax(z, -1, out=tiles.scratch(*z.shape))
            above[r, k] = -log_p.amax(-1)
            at, found = tiles.inside(r, c)
            inside[r] += torch.where(found, log_p.gather(-1, at), 0)[:, 0]
            if entropy:
                spread[r, k] = -torch.exp(log_p, out=_part(spare, *z.shape)).mul_(log_p).sum(-1)
        # Relative to the largest logit of all, so that nothing is lost where P is close to 1.
        share = (top - top.amax(-1, keepdim=True) + above).log_softmax(-1)
        logp = inside + share.gather(-1, target[:, None] // tiles.columns)[:, 0]
        ent = (share.exp() * (spread - share)).sum(-1) if entropy else top.new_empty(0)
        ctx.save_for_backward(hidden, weight, bias, target, share, ent)
        ctx.args, ctx.entropy, ctx.kept = (temperature, top_k, top_p, fp32, cap), entropy, tiles.kept
        if not entropy:
            ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, share, ent = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        kept, ctx.kept = ctx.kept, None  # used up here; a second pass computes all of them again
        tiles = _Tiles(hidden, weight, bias, target, *ctx.args)
        tiles.recall(kept)
        g = grads[0][:, None] / tiles.temperature
        if ctx.entropy:
            g_ent = grads[1][:, None] / tiles.temperature
            spare = torch.empty_like(tiles.buffer)
        # Sums over tiles are float32, whatever the model's precision.
        d_hidden = torch.zeros(hidden.shape, device=hidden.device) if wants_hidden else None
        d_bias = torch.zeros(bias.shape, device=bias.device) if wants_bias else None
        d_weight: Tensor | None = None
        if wants_weight:
            if kept is not None and not kept.apart:
                d_weight = kept.store
            else:
                d_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        part: Tensor | None = None
        for r, c in tiles:
            k, z = c.start // tiles.columns, tiles.logits(r, c, again=True)
            slope, own = tiles.slope(z), share[r, k, None]
            # From here on it is in the buffer: where the products were, the weight's gradient may be written.
            dz = tiles.scratch(*z.shape)
            if ctx.entropy:
                p = torch.exp(torch.log_softmax(z, -1, out=dz), out=_part(spare, *z.shape)).mul_(own.exp())
                dz.mul_(-g_ent[r]).sub_(g[r] + g_ent[r] * (ent[r, None] + own)).mul_(p)
            else:
                torch.softmax(z, -1, out=dz).mul_(-g[r] * own.exp())
            at, found = tiles.inside(r, c)
            dz.scatter_add_(-1, at, torch.where(found, g[r], 0))
            if slope is not None:
                dz *= slope
            if d_bias is not None:
                d_bias[c] += dz.sum(0)
            if tiles.low is not None:
                dz = _part(tiles.low, *dz.shape).copy_(dz)
            if d_hidden is not None:
                _add_product(d_hidden[r], dz, tiles.block(c))
            if d_weight is not None:
                direct = d_weight.dtype == torch.float32
                if r.start == 0:
                    part = d_weight[c] if direct else torch.empty(d_weight[c].shape, device=weight.device)
                assert part is not None
                _add_product(part, dz.T, tiles.hidden[r], first=r.start == 0)
                if r.stop == len(hidden) and not direct:
                    d_weight[c] = part
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            d_weight,
            None if d_bias is None else d_bias.to(bias.dtype),
            *([None] * 8),
        )


def _add_product(out: Tensor, a: Tensor, b: Tensor, first: bool = False) -> None:
    """``out += a b``, or ``out = a b``, in float32; the product itself in the precision of its factors."""
    if first and a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif first:
        out.copy_(a @ b)
    elif a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


class LMHead(nn.Linear):
    """An output layer that also answers ``head(hidden, target=...)`` with log-probs instead of logits.

    Some models change their logits after this layer: ``scale`` multiplies them (Granite, Cohere), ``cap`` bounds them softly,
    ``cap * tanh(logits / cap)`` (Gemma 2). Log-probs know of both; plain logits are the layer's own, as the model's code expects them.

    It is the model's own ``lm_head`` (same parameters, same names), so that a sharded layer (ZeRO-3) is gathered by
    its own hooks when it is called.
    """

    scale: float
    cap: float | None

    @classmethod
    def adopt(cls, linear: nn.Linear, scale: float = 1.0, cap: float | None = None) -> LMHead:
        """Turns a plain output layer into an ``LMHead`` in place of it; parameters stay the same objects."""
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias = linear.weight, linear.bias
        head.scale, head.cap = scale, cap
        return head

    def scaled(self, hidden: Tensor) -> Tensor:
        """Hidden states whose products with ``weight`` are the model's logits, before the cap."""
        return hidden if self.scale == 1 else hidden * self.scale

    def _plain(self, hidden: Tensor) -> Tensor:
        """The layer's own logits; of the few rows with which an engine's decoding ends by the faster of two equal products."""
        w, rows = self.weight, hidden.numel() // hidden.shape[-1]
        own = hidden.device.type == "cpu" and hidden.dtype == w.dtype == torch.float32
        if torch.is_grad_enabled() or not own or not 1 < rows <= FEW or w.numel() < LARGE:
            return super().forward(hidden)
        z = torch.mm(w, hidden.reshape(rows, -1).T).T.contiguous().view(*hidden.shape[:-1], len(w))
        return z if self.bias is None else z.add_(self.bias)

    def over(self, hidden: Tensor) -> Head:
        """This layer over hidden states ``[N, H]``, as a value without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.scaled(hidden), self.weight.detach(), bias, self.cap)

    def forward(
        self,
        hidden: Tensor,
        target: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        entropy: bool = False,
        fp32: bool = False,
        full: Sequence[tuple[Any, Whole, Tensor | None]] = (),
        weight: Tensor | None = None,
        seq: Tensor | None = None,
    ) -> Any:
        """Logits without ``target``; else log-probs ``[N]``, entropies (``[N]``, or empty), and ``full`` divergences ``[N]`` by name.

        Everything in nats and float32. ``full`` is (term, its anchor's distributions after the same prefixes, weight of each token in
        the loss); a head without an output layer shares this one. ``weight`` is an alias of the layer's own, for a caller that collects its
        gradient.

        Shapes:
            hidden ``[N, H]``, target ``[N]``.
        """
        if target is None:
            return self._plain(hidden)
        # Greedy sampling has no log-probabilities of its own: report the model's.
        hidden, weight = self.scaled(hidden), self.weight if weight is None else weight
        logp, ent = _TokenLogprob.apply(
            hidden,
            weight,
            self.bias,
            target,
            temperature or 1.0,
            top_k,
            top_p,
            entropy,
            fp32,
            self.cap,
            torch.is_grad_enabled(),  # a function's forward cannot tell
        )
        found = {}
        for spec, anchor, expected in full:
            found[spec.name] = full_divergence(
                Head(hidden, self.weight, self.bias, self.cap),
                anchor.over(self.over),
                spec.generator,
                top_k=spec.top_k,
                of=spec.of,
                temperature=temperature or 1.0,
                fp32=fp32,
                expected=expected,
                target=target,
                seq=seq,
            )
        return logp, ent, found
