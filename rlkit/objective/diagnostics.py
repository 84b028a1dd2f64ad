"""Where a run's KL and its gradients come from: numbers every ``log.breakdown`` steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkit.objective import Term, loss
from rlkit.types import Batch, New, Stats


def _quarters(x: Tensor) -> Tensor:
    """Which quarter of the batch's values each entry is in, 0 to 3."""
    return torch.bucketize(x, torch.quantile(x[:1_000_000], torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype)))


def kl_breakdown(b: Batch) -> dict[str, float]:
    """Mean of ``log pi - log ref`` (nats per token) by place in the response, surprise, advantage and pass rate of the prompt.

    ``position``: quarters of the response. ``surprise``: quarters of ``-log mu`` of the sampled token; its mean is the entropy.
    ``advantage``: its sign. ``pass_rate``: of the prompt's group, rewards bounded to [0, 1].
    """
    if "ref" not in b.logp or not b.N:
        return {}
    kl = b.logp.get("old", b.logp["behav"]) - b.logp["ref"]
    place = b.seq_cumsum(torch.ones_like(kl)) / b.seq_len()[b.seq]
    group = b.group_sum(b.reward.clamp(0, 1)) / b.group_size()
    rate = group[b.group][b.seq]
    sign = torch.zeros_like(kl) if b.adv is None else b.adv.sign()
    masks = {f"position/q{k + 1}": (place > k / 4) & (place <= (k + 1) / 4) for k in range(4)}
    quarter = _quarters(-b.logp["behav"])
    masks |= {f"surprise/q{k + 1}": quarter == k for k in range(4)}
    masks |= {"advantage/positive": sign > 0, "advantage/negative": sign < 0, "advantage/zero": sign == 0}
    masks |= {"pass_rate/none": rate == 0, "pass_rate/some": (rate > 0) & (rate < 1), "pass_rate/all": rate == 1}
    return {f"kl_by/{name}": float(kl[mask].mean()) for name, mask in masks.items() if bool(mask.any())}


def kl_of_sequences(b: Batch, count: int) -> list[list[float] | None]:
    """``log pi - log ref`` of the action tokens of the first ``count`` sequences, nats; None each where there is no reference."""
    if "ref" not in b.logp:
        return [None] * count
    kl = b.logp.get("old", b.logp["behav"]) - b.logp["ref"]
    return [kl[b.seq == s].tolist() for s in range(count)]


def kl_tokens(b: Batch, decode: Callable[[int], str], count: int = 20) -> list[dict[str, Any]]:
    """The tokens of the vocabulary that carry most of the batch's KL, by the sum of ``log pi - log ref`` over their occurrences."""
    assert b.ids is not None and b.action is not None
    kl = b.logp.get("old", b.logp["behav"]) - b.logp["ref"]
    ids, where, times = torch.unique(b.ids[b.action], return_inverse=True, return_counts=True)
    total = torch.zeros(len(ids)).index_add(0, where, kl)
    top = total.abs().topk(min(count, len(ids))).indices.tolist()
    return [
        {
            "token": decode(int(ids[i])),
            "count": int(times[i]),
            "kl": float(total[i]),
            "share": float(total[i] / kl.sum()),
        }
        for i in top
    ]


def bad_gradients(objective: Sequence[Term], new: New, b: Batch, coefs: Sequence[float]) -> dict[str, int]:
    """The terms whose gradient by the model's answers is not finite, each with its first such action token."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_()

    leaves = New(
        leaf(new.logp),
        None if new.entropy is None else leaf(new.entropy),
        None if new.value is None else leaf(new.value),
        {name: leaf(x) for name, x in new.full.items()},
    )
    answers = [x for x in (leaves.logp, leaves.entropy, leaves.value, *leaves.full.values()) if x is not None]
    parts: list[Tensor] = []
    loss(objective, leaves, b, coefs, parts)
    found = {}
    for term, part in zip(objective, parts, strict=True):
        grads = torch.autograd.grad(part, answers, retain_graph=True, allow_unused=True) if part.requires_grad else ()
        bad = sum(
            (~g.isfinite() for g in grads if g is not None), torch.zeros(b.N, dtype=torch.bool, device=b.seq.device)
        )
        if bool(bad.any()):
            found[term.name] = int(bad.nonzero()[0])
    return found


def add_gram(stats: Stats, names: Sequence[str], values: Sequence[Tensor], logp: Tensor) -> None:
    """Inner products of the terms' gradients with respect to the token log-probs; they add up over micro-batches and ranks."""
    grads = [
        torch.autograd.grad(v, logp, retain_graph=True, allow_unused=True)[0] if v.requires_grad else None
        for v in values
    ]
    flat = [torch.zeros_like(logp) if g is None else g for g in grads]
    for i, a in enumerate(flat):
        for j in range(i, len(flat)):
            stats.add(f"gram/{names[i]}/{names[j]}", float((a * flat[j]).sum()), "sum")


def gradient_shares(stats: Stats, names: Sequence[str]) -> dict[str, float]:
    """``gradient/share/TERM`` of the summed norms and ``gradient/cosine/A/B``, from what :func:`add_gram` counted.

    Gradients are those with respect to the log-probs of sampled tokens: what acts through entropies, values or whole distributions only
    does not show.
    """
    norm = {n: math.sqrt(max(0.0, stats.get(f"gram/{n}/{n}", 0.0))) for n in names}
    total = sum(norm.values())
    if total == 0:
        return {}
    out = {f"gradient/share/{n}": norm[n] / total for n in names}
    for i, a in enumerate(names):
        for c in names[i + 1 :]:
            if norm[a] > 0 and norm[c] > 0:
                out[f"gradient/cosine/{a}/{c}"] = stats.get(f"gram/{a}/{c}", 0.0) / (norm[a] * norm[c])
    return out
