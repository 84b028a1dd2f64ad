"""f-divergences over the whole vocabulary, from hidden states, without ever holding ``[N, V]``.

``D_f(pi‖q)(s) = sum_v q_v f(pi_v / q_v)`` has no sampling noise. Its gradient with respect to the policy's logits is
``p_j (f'(u_j) - sum_v p_v f'(u_v))``, so a chunk of tokens needs its logits, nothing is kept for the backward pass but two numbers a
token, and the logits are computed again there.

With ``top_k`` only the k most likely tokens (of the anchor or of the policy) stay apart and the rest is one tail bucket: the divergence of
the coarser distributions, never above the true one.

Source: methods notes, sections 35 and E (chunking E5, tail bucket E4); gradient table checked by enumeration (tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlkit.objective import Term
from rlkit.objective.divergences import Generator, generator, label
from rlkit.types import Batch, New

CHUNK_ELEMENTS = 1 << 23
EXTREME = 40.0              # squared, e^40 is still a float32; beyond it a token counts as if its log-ratio were this


@dataclass
class Head:
    """An output layer over hidden states: ``logits = hidden W^T + b``; shapes ``[N, H]``, ``[V, H]``, ``[V]``.

    ``weight: None`` means the policy's own layer (a reference with its adapter switched off).
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None = None

    @property
    def classes(self) -> int:
        assert self.weight is not None
        return int(self.weight.shape[0])

    def logits(self, rows: slice, temperature: float, fp32: bool) -> Tensor:
        assert self.weight is not None
        h = self.hidden[rows]
        z = torch.nn.functional.linear(h.float(), self.weight.float()) if fp32 else \
            torch.nn.functional.linear(h, self.weight).float()
        if self.bias is not None:
            z += self.bias.float()
        return z.div_(temperature) if temperature != 1 else z


def _ratio(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """``a = log u``, bounded, and the weight that goes with it: ``p``, or ``q u`` where ``u`` was bounded from below."""
    a = log_p - log_q
    weight = torch.where(a < -EXTREME, log_q - EXTREME, log_p).exp_()
    return a.clamp_(-EXTREME, EXTREME), weight


def _buckets(log_p: Tensor, log_q: Tensor, k: int, of: str) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the k chosen tokens and of the tail, ``[n, k + 1]`` each, and the chosen ids ``[n, k]``."""
    ids = (log_q if of == "anchor" else log_p).topk(k, dim=-1).indices

    def with_tail(x: Tensor) -> Tensor:
        kept = x.gather(-1, ids)
        rest = torch.log1p(-kept.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        return torch.cat([kept, rest], -1)

    return with_tail(log_p), with_tail(log_q), ids


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, anchor: Head, f: Generator, top_k: int | None, of: str,
                temperature: float, fp32: bool) -> Tensor:
        head, (n, V) = Head(hidden, weight, bias), (hidden.shape[0], weight.shape[0])
        rows = max(1, CHUNK_ELEMENTS // V)
        out, lse_p, lse_q = (hidden.new_empty(n, dtype=torch.float32) for _ in range(3))
        for i in range(0, n, rows):
            at = slice(i, min(n, i + rows))
            z, y = head.logits(at, temperature, fp32), anchor.logits(at, temperature, fp32)
            lse_p[at], lse_q[at] = z.logsumexp(-1), y.logsumexp(-1)
            log_p, log_q = z.sub_(lse_p[at, None]), y.sub_(lse_q[at, None])
            if top_k is not None and top_k < V:
                log_p, log_q, _ = _buckets(log_p, log_q, top_k, of)
            a, w = _ratio(log_p, log_q)
            out[at] = f.value(a).mul_(w).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, lse_p, lse_q)
        ctx.args = (anchor, f, top_k if top_k is not None and top_k < V else None, of, temperature, fp32, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, lse_p, lse_q = ctx.saved_tensors
        anchor, f, top_k, of, temperature, fp32, rows = ctx.args
        head, g = Head(hidden, weight, bias), grads[0]
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for i in range(0, hidden.shape[0], rows):
            at = slice(i, min(hidden.shape[0], i + rows))
            log_p = head.logits(at, temperature, fp32).sub_(lse_p[at, None])
            log_q = anchor.logits(at, temperature, fp32).sub_(lse_q[at, None])
            if top_k is None:
                a, w = _ratio(log_p, log_q)
                dz = f.slope(a).mul_(w)                                 # p f'(u)
                dz -= log_p.exp_() * dz.sum(-1, keepdim=True)
            else:
                few_p, few_q, ids = _buckets(log_p, log_q, top_k, of)
                a, w = _ratio(few_p, few_q)
                slope = f.slope(a)
                total = (slope * w).sum(-1, keepdim=True)
                dz = log_p.exp_() * (slope[:, -1:] - total)
                dz.scatter_(-1, ids, (slope * w - few_p.exp() * total)[:, :-1])
            dz *= g[at, None] / temperature
            d_hidden[at] = (dz if fp32 else dz.to(weight.dtype)) @ (weight.float() if fp32 else weight)
            if d_weight is not None:
                if fp32 or weight.dtype == torch.float32:
                    d_weight.addmm_(dz.T, hidden[at].float())
                else:
                    d_weight += dz.to(weight.dtype).T @ hidden[at]
            if d_bias is not None:
                d_bias += dz.sum(0)
        return (d_hidden, None if d_weight is None else d_weight.to(weight.dtype),
                None if d_bias is None or bias is None else d_bias.to(bias.dtype), *([None] * 6))


def full_divergence(policy: Head, anchor: Head, f: Generator, *, top_k: int | None = None, of: Literal["anchor", "policy"] = "anchor",
                    temperature: float = 1.0, fp32: bool = False) -> Tensor:
    """``D_f(pi‖anchor)`` of each token's distribution, ``[N]`` in nats for the KLs; gradient to the policy's hidden states and weights."""
    return _Full.apply(policy.hidden, policy.weight, policy.bias, anchor, f, top_k, of, temperature, fp32)


@dataclass(frozen=True, kw_only=True)
class FullDivergence(Term):
    """``D_f(pi‖anchor)`` over the whole vocabulary at every sampled prefix: no sampling noise, one more pass through both output layers.

    Attributes:
        f, parameter: as in ``Divergence``.
        top_k: keep so many tokens apart (the most likely ones ``of`` the anchor or the policy) and join the rest in one bucket.
        level: ``token`` is the direct term, prefixes frozen: what most libraries call the KL loss. ``sequence`` adds the prefix credit
            ``sg(sum_{k>t} D_k) log pi_t``: on-policy and with ``reduce: sum``, the exact gradient of ``E[sum_t D_t]``; for the KLs that is
            the KL of whole responses.

    Source: direct and prefix term: methods notes E2, exact by enumeration (tests).
    """

    f: Any = "reverse_kl"
    parameter: float | None = None
    top_k: int | None = None
    of: Literal["anchor", "policy"] = "anchor"
    anchor: Literal["ref", "teacher"] = "ref"
    level: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        generator(self.f, self.parameter)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"FullDivergence.top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary.")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({f"{self.anchor}_full"})

    @property
    def generator(self) -> Generator:
        return generator(self.f, self.parameter)

    @property
    def name(self) -> str:
        return f"{label(self.f, self.parameter)}_{'full' if self.top_k is None else f'top{self.top_k}'}({self.anchor})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        d = new.full[self.name]
        if self.level == "token":
            return d
        later = b.reward_to_go(d.detach()) - d.detach()
        return d + later * (new.logp - new.logp.detach())
