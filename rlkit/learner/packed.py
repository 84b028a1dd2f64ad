"""A micro-batch without padding, in which the responses of a prompt share its tokens.

The decoder sees one row: for each prompt group its prompt, then what each response has after it. All layers that work on single tokens run
on real tokens only, and a prompt is computed once, in the forward and in the backward pass. Attention is the only layer that knows of
sequences: a prompt attends to itself, a response to the prompt and to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "rlkit_packed"               # the attention implementation that a model has to be loaded with


@dataclass(frozen=True)
class Block:
    """One prompt group: ``prompt`` tokens from ``start`` on, then its responses.

    Shapes:
        index ``[R, T]`` places of the responses' tokens in the row, the last ones repeated where a response is shorter; real ``[R, T]``.
    """

    start: int
    prompt: int
    index: Tensor
    real: Tensor


@dataclass(frozen=True)
class Packing:
    """The row of a micro-batch: ``ids`` and ``position`` ``[M]``, where each of the ``L`` original tokens went (``place``), its groups."""

    ids: Tensor
    position: Tensor
    place: Tensor
    blocks: tuple[Block, ...]


def make(ids: Tensor, length: Tensor, action: Tensor, group: Tensor) -> Packing:
    """Lays out packed sequences (``ids`` ``[L]``, ``length`` ``[S]``); rows of one ``group`` share their prompts where these are equal."""
    device = ids.device
    ends = length.cumsum(0)
    starts = (ends - length).tolist()
    sizes, groups = length.tolist(), group.tolist()
    row_of = torch.repeat_interleave(torch.arange(len(sizes), device=device), length)
    # What precedes a row's first action token is its prompt.
    first = torch.full((len(sizes),), torch.iinfo(torch.long).max, device=device).scatter_reduce_(
        0, row_of[action], action, "amin").minimum(ends)
    prompts = (first - (ends - length)).tolist()
    members: dict[Any, list[int]] = {}
    for r, (p, g) in enumerate(zip(prompts, groups, strict=True)):
        key = (g, tuple(ids[starts[r]:starts[r] + p].tolist()))         # rows of one group with another prompt are a group of their own
        members.setdefault(key, []).append(r)
    order: list[Tensor] = []
    position: list[Tensor] = []
    place = torch.empty_like(ids)
    blocks: list[Block] = []
    at = 0
    for (_, prompt), rows in members.items():
        p = len(prompt)
        head = torch.arange(starts[rows[0]], starts[rows[0]] + p, device=device)
        order.append(head)
        position.append(torch.arange(p, device=device))
        start, at = at, at + p
        longest = max(sizes[r] - p for r in rows)
        index = torch.empty(len(rows), longest, dtype=torch.long, device=device)
        real = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
        for k, r in enumerate(rows):
            n = sizes[r] - p
            order.append(torch.arange(starts[r] + p, starts[r] + sizes[r], device=device))
            position.append(torch.arange(p, sizes[r], device=device))
            place[starts[r]:starts[r] + p] = torch.arange(start, start + p, device=device)
            place[starts[r] + p:starts[r] + sizes[r]] = torch.arange(at, at + n, device=device)
            index[k, :n] = torch.arange(at, at + n, device=device)
            index[k, n:] = at + n - 1 if n else start
            real[k, :n] = True
            at += n
        blocks.append(Block(start, p, index, real))
    return Packing(ids[torch.cat(order)], torch.cat(position), place, tuple(blocks))


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, scaling: float | None = None,
              dropout: float = 0.0, packing: Packing | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention over a :class:`Packing`; without one, plain causal attention over rows that are padded on the right.

    Shapes:
        query ``[B, heads, T, d]``, key and value ``[B, kv_heads, T, d]``; returns ``[B, T, heads, d]``.
    """
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    if packing is None:
        out = scaled_dot_product_attention(query, key, value, attention_mask, is_causal=attention_mask is None, **options)
        return out.transpose(1, 2).contiguous(), None
    q, k, v = query[0], key[0], value[0]                                # [heads, M, d]
    parts: list[Tensor] = []
    for block in packing.blocks:
        p = slice(block.start, block.start + block.prompt)
        if block.prompt:
            parts.append(scaled_dot_product_attention(q[None, :, p], k[None, :, p], v[None, :, p], is_causal=True, **options)[0])
        rows, longest = block.index.shape
        if not longest:
            continue
        at = block.index.flatten()

        def of(x: Tensor, at: Tensor = at, rows: int = rows, longest: int = longest) -> Tensor:
            return x[:, at].unflatten(1, (rows, longest)).transpose(0, 1)           # [R, heads, T, d]

        def behind_prompt(x: Tensor, p: slice = p, rows: int = rows, of: Any = of) -> Tensor:
            return torch.cat([x[None, :, p].expand(rows, -1, -1, -1), of(x)], 2)

        mask = torch.ones(longest, block.prompt + longest, dtype=torch.bool, device=q.device).tril(block.prompt)
        answer = scaled_dot_product_attention(of(q), behind_prompt(k), behind_prompt(v), mask, **options)
        parts.append(answer.transpose(1, 2)[block.real].transpose(0, 1))            # [heads, real tokens, d]
    return torch.cat(parts, 1).transpose(0, 1)[None], None


def register() -> None:
    """Makes the attention known to transformers; safe to call again."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def supported(config: Any) -> str | None:
    """Why a model cannot be packed, or None."""
    config = config.get_text_config()
    kinds = {str(k) for k in getattr(config, "layer_types", None) or ()} - {"full_attention"}
    if kinds:
        return f"it has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends within a sliding window"
    return None


def agrees(decoder: Any, vocabulary: int, tolerance: float) -> float | None:
    """None if a packed and a padded pass give the same hidden states, else their relative difference: not every model's code hands on what
    packing needs."""
    from rlkit.learner.model import hidden_states, padded

    device = next(decoder.parameters()).device
    ids = torch.arange(26, device=device) * 7 % max(2, vocabulary)
    ids[9:13], ids[17:21] = ids[:4], ids[:4]
    length = torch.tensor([9, 8, 9], device=device)                      # two rows of one prompt and one of another
    action = torch.tensor([4, 5, 6, 7, 8, 13, 14, 15, 16, 19, 20, 21, 22, 23, 24, 25], device=device)
    with torch.no_grad():
        one = hidden_states(decoder, ids, length, action, torch.tensor([0, 0, 1], device=device)).float()
        two = padded(decoder, ids, length).float()
    gap = float((one - two).norm() / two.norm().clamp(min=1e-9))
    return None if gap <= tolerance else gap
