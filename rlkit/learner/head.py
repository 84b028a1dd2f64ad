"""Token log-probabilities from hidden states, without ever holding ``[N, V]`` logits.

The output layer is evaluated on action positions only, a chunk of tokens at a time, and evaluated again in the backward
pass. The extra memory is one chunk of logits, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.objective.full_vocab import Head, full_divergence

CHUNK_ELEMENTS = 1 << 24        # logits held at once: 64 MiB in float32


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
        ordered, index = logits.sort(dim=-1)                            # ascending, as vLLM does
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False                                             # at least one token
        drop = torch.zeros_like(drop).scatter(-1, index, drop)
        logits = logits.masked_fill(drop.scatter(-1, target[:, None], False), -torch.inf)
    return logits


class _ChunkedLogprob(torch.autograd.Function):
    """``log softmax(h W^T + b)[target]`` and, if asked for, the entropy; logits are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, temperature: float,
                top_k: int, top_p: float, entropy: bool, fp32: bool) -> tuple[Tensor, Tensor]:
        n, rows = hidden.shape[0], max(1, CHUNK_ELEMENTS // weight.shape[0])
        logp = hidden.new_empty(n, dtype=torch.float32)
        ent = hidden.new_empty(n if entropy else 0, dtype=torch.float32)
        for i in range(0, n, rows):
            z = _logits(hidden[i:i + rows], weight, bias, target[i:i + rows], temperature, top_k, top_p, fp32)
            lse = z.logsumexp(-1)
            logp[i:i + rows] = z.gather(-1, target[i:i + rows, None])[:, 0] - lse
            if entropy:
                p = (z - lse[:, None]).exp_()
                ent[i:i + rows] = lse - (p * z.masked_fill(p == 0, 0)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.args = (temperature, top_k, top_p, entropy, fp32, rows)
        if not entropy:
            ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        temperature, top_k, top_p, entropy, fp32, rows = ctx.args
        g_logp, g_ent = grads
        d_hidden = torch.empty_like(hidden)
        wants_weight, wants_bias = ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        # Micro-batches of bf16 gradients lose bits when they are added up; the head accumulates its own in float32.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for i in range(0, hidden.shape[0], rows):
            h, t = hidden[i:i + rows], target[i:i + rows]
            z = _logits(h, weight, bias, t, temperature, top_k, top_p, fp32)
            log_p = z.sub_(z.logsumexp(-1, keepdim=True))
            p = log_p.exp()
            g = g_logp[i:i + rows, None]
            dz = -p * g
            dz.scatter_add_(-1, t[:, None], g)
            if entropy:                                                 # dH/dz_j = -p_j (log p_j + H)
                log_p.masked_fill_(p == 0, 0)
                h_row = -(p * log_p).sum(-1, keepdim=True)
                dz -= g_ent[i:i + rows, None] * p * (log_p + h_row)
            dz /= temperature
            d_hidden[i:i + rows] = (dz if fp32 else dz.to(weight.dtype)) @ (weight.float() if fp32 else weight)
            if d_weight is not None:
                if weight.dtype == torch.float32 or fp32:
                    d_weight.addmm_(dz.T, h.float())
                else:
                    d_weight += dz.to(weight.dtype).T @ h
            if d_bias is not None:
                d_bias += dz.sum(0)
        return (d_hidden, None if d_weight is None else d_weight.to(weight.dtype),
                None if d_bias is None or bias is None else d_bias.to(bias.dtype), *([None] * 6))


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, temperature: float, top_k: int,
            top_p: float, fp32: bool) -> Tensor:
    z = torch.nn.functional.linear(h.float(), weight.float()) if fp32 else torch.nn.functional.linear(h, weight).float()
    if bias is not None:
        z = z + bias.float()
    z = z.div_(temperature) if temperature != 1 else z
    return truncate(z, target, top_k, top_p) if top_k or top_p < 1 else z


class LMHead(nn.Linear):
    """An output layer that also answers ``head(hidden, target=...)`` with log-probs instead of logits.

    It is the model's own ``lm_head`` (same parameters, same names), so that a sharded layer (ZeRO-3) is gathered by
    its own hooks when it is called.
    """

    @classmethod
    def adopt(cls, linear: nn.Linear) -> LMHead:
        """Turns a plain output layer into an ``LMHead`` in place of it; parameters stay the same objects."""
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, hidden: Tensor, target: Tensor | None = None, temperature: float = 1.0, top_k: int = 0,
                top_p: float = 1.0, entropy: bool = False, fp32: bool = False, full: Sequence[tuple[Any, Head, Tensor]] = ()) -> Any:
        """Logits without ``target``; else log-probs ``[N]``, entropies (``[N]``, or empty), and ``full`` divergences ``[N]`` by name.

        Everything in nats and float32. ``full`` is (term, its anchor's head over the same tokens, weight of each token in the loss); an
        anchor without an output layer shares this one.

        Shapes:
            hidden ``[N, H]``, target ``[N]``.
        """
        if target is None:
            return super().forward(hidden)
        # Greedy sampling has no log-probabilities of its own: report the model's.
        logp, ent = _ChunkedLogprob.apply(hidden, self.weight, self.bias, target, temperature or 1.0, top_k, top_p, entropy, fp32)
        found = {}
        for spec, anchor, expected in full:
            if anchor.weight is None:
                anchor = Head(anchor.hidden, self.weight.detach(), None if self.bias is None else self.bias.detach())
            found[spec.name] = full_divergence(Head(hidden, self.weight, self.bias), anchor, spec.generator, top_k=spec.top_k, of=spec.of,
                                               temperature=temperature or 1.0, fp32=fp32, expected=expected)
        return logp, ent, found
