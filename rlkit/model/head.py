"""Token log-probabilities from hidden states, without ever holding ``[N, V]`` logits.

The output layer is evaluated on action positions only, a tile of tokens and vocabulary at a time, and evaluated again in the backward
pass. The extra memory is one tile of logits, whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.objective.full_vocab import Head, Whole, full_divergence

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in float32
CPU_ELEMENTS = 1 << 22  # on a CPU, where larger tiles are no faster (benchmarks/logprob.py)
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
        buffer: Tensor | None,
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
        # One tile is all: the buffer holds every logit.
        self.single = not self.truncated and 0 < n <= self.rows and v <= self.columns
        self.buffer = torch.empty(self.rows * self.columns, device=hidden.device) if buffer is None else buffer
        # Products in the model's own precision are rounded to it, as those of the engine are.
        self.low = (
            None if self.hidden.dtype == torch.float32 else torch.empty_like(self.buffer, dtype=self.hidden.dtype)
        )

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """(tokens, vocabulary) of each tile; all tokens of a block of vocabulary follow one another."""
        n, v = self.shape
        for j in range(0, v, self.columns):
            for i in range(0, n, self.rows):
                yield slice(i, min(n, i + self.rows)), slice(j, min(v, j + self.columns))

    def block(self, columns: slice) -> Tensor:
        """``W`` of a block of vocabulary, in the precision of its products."""
        return self.weight[columns].to(self.hidden.dtype)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """One tile in float32, after the model's cap, temperature and truncation. It is overwritten by the next."""
        h, w = self.hidden[rows], self.block(columns)
        z = _part(self.buffer, h.shape[0], w.shape[0])
        if self.low is None:
            torch.mm(h, w.T, out=z)
        else:
            z.copy_(torch.mm(h, w.T, out=_part(self.low, *z.shape)))
        if self.bias is not None:
            z += self.bias[columns].float()
        if self.cap is not None:
            z.div_(self.cap).tanh_().mul_(self.cap)
        if self.temperature != 1:
            z /= self.temperature
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

    With ``d log p_t / dz_j = 1[j = t] - p_j`` and ``dH / dz_j = -p_j (log p_j + H)``, a tile needs its logits and the row's ``logsumexp``
    and ``H`` only. Logits are computed again in the backward pass, unless all of them fit into one tile: then it is kept.
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
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(hidden, weight, bias, target, None, temperature, top_k, top_p, fp32, cap)
        keep = tiles.single and any(ctx.needs_input_grad)
        spare = torch.empty_like(tiles.buffer) if keep or entropy else tiles.buffer
        # Relative to the largest logit so far, so that nothing is lost where p is close to 1: sums of e^z and of e^z z, and z[target].
        top = torch.full((hidden.shape[0], 1), LOWEST, device=hidden.device)
        total, moment, chosen = (torch.zeros_like(top) for _ in range(3))
        for r, c in tiles:
            z = tiles.logits(r, c)
            at, found = tiles.inside(r, c)
            chosen[r] += torch.where(found, z.gather(-1, at), 0)
            new = torch.maximum(top[r], z.amax(-1, keepdim=True))
            p = torch.exp(z.sub_(new), out=_part(spare, *z.shape))
            change = top[r] - new
            if entropy:
                moment[r] = (moment[r] + total[r] * change) * change.exp()
            total[r] = total[r] * change.exp() + p.sum(-1, keepdim=True)
            if entropy:
                moment[r] += p.mul_(z).sum(-1, keepdim=True)
            top[r] = new
        log_total = total.log()
        logp = (chosen - top - log_total)[:, 0]
        ent = (log_total - moment / total)[:, 0] if entropy else moment.new_empty(0)
        ctx.save_for_backward(hidden, weight, bias, target, top, log_total, ent)
        ctx.args, ctx.entropy, ctx.kept = (
            (temperature, top_k, top_p, fp32, cap),
            entropy,
            tiles.buffer if keep else None,
        )
        if not entropy:
            ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, top, log_total, ent = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        kept, ctx.kept = ctx.kept, None  # the only tile; used up here, a second pass computes it again
        tiles = _Tiles(hidden, weight, bias, target, kept, *ctx.args)
        g = grads[0][:, None] / tiles.temperature
        if ctx.entropy:
            g_ent = grads[1][:, None] / tiles.temperature
            spare = torch.empty_like(tiles.buffer)
        # Sums over tiles are float32, whatever the model's precision.
        d_hidden = torch.zeros(hidden.shape, device=hidden.device) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros(bias.shape, device=bias.device) if wants_bias else None
        part: Tensor | None = None
        for r, c in tiles:
            # Here it is log p.
            dz = (
                tiles.logits(r, c).sub_(top[r] + log_total[r])
                if kept is None
                else _part(kept, *tiles.shape).sub_(log_total[r])
            )
            slope = tiles.slope(dz + (top[r] + log_total[r])) if tiles.cap is not None else None
            if ctx.entropy:
                p = torch.exp(dz, out=_part(spare, *dz.shape))
                dz.mul_(-g_ent[r]).sub_(g[r] + g_ent[r] * ent[r, None]).mul_(p)
            else:
                dz.exp_().mul_(-g[r])
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
                if r.start == 0:
                    part = (
                        d_weight[c]
                        if d_weight.dtype == torch.float32
                        else torch.zeros(d_weight[c].shape, device=weight.device)
                    )
                assert part is not None
                _add_product(part, dz.T, tiles.hidden[r])
                if r.stop == hidden.shape[0]:
                    d_weight[c] = part
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            d_weight,
            None if d_bias is None else d_bias.to(bias.dtype),
            *([None] * 7),
        )


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a b`` in float32; the product itself in the precision of its factors."""
    if a.dtype == out.dtype:
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
            return super().forward(hidden)
        # Greedy sampling has no log-probabilities of its own: report the model's.
        hidden, weight = self.scaled(hidden), self.weight if weight is None else weight
        logp, ent = _TokenLogprob.apply(
            hidden, weight, self.bias, target, temperature or 1.0, top_k, top_p, entropy, fp32, self.cap
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
