"""A micro-batch without padding, in which the responses of a prompt share its tokens.

The decoder sees one row: for each prompt group its prompt, then what each response has after it. All layers that work on single tokens run
on real tokens only, and a prompt is computed once, in the forward and in the backward pass. Attention is the only layer that knows of
sequences: a prompt attends to itself, a response to the prompt and to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "rlkit_packed"  # the attention implementation that a model has to be loaded with


@dataclass(frozen=True)
class Part:
    """Rows of similar length that attend in one call. Attention, and nothing else, is padded: keys on the left, queries on the right.

    Shapes:
        query ``[R, T]`` and key ``[R, P + T]``: places in the row (any place where there is padding); mask ``[R, 1, T, P + T]``, or
        None for plain causal attention over prompts and responses, both ``[R, P + T]``; real, like query: where a result is wanted.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    real: Tensor


@dataclass(frozen=True)
class Packing:
    """The row of a micro-batch: ``ids`` and ``position`` ``[M]``; ``place`` ``[L]``, where each original token went; the parts in which
    it attends, and ``order`` ``[M]``, where their results, one after the other, belong.
    """

    ids: Tensor
    position: Tensor
    place: Tensor
    parts: tuple[Part, ...]
    order: Tensor


def make(ids: Tensor, length: Tensor, action: Tensor, group: Tensor) -> Packing:
    """Lays out packed sequences (``ids`` ``[L]``, ``length`` ``[S]``); rows of one ``group`` share their prompts where these are equal."""
    device = ids.device
    ends = length.cumsum(0)
    starts, sizes, groups = (ends - length).tolist(), length.tolist(), group.tolist()
    row_of = torch.repeat_interleave(torch.arange(len(sizes), device=device), length)
    # What precedes a row's first action token is its prompt.
    first = ends.clone().scatter_reduce_(0, row_of[action], action, "amin")
    prompts = (first - ends + length).tolist()
    tokens = ids.tolist()
    members: dict[Any, list[int]] = {}
    for r, (p, g) in enumerate(zip(prompts, groups, strict=True)):
        # Another prompt in a group stands for itself.
        members.setdefault((g, *tokens[starts[r] : starts[r] + p]), []).append(r)
    source: list[int] = []  # the original token at each place
    position: list[int] = []
    place = [0] * len(tokens)
    spans: list[tuple[int, int]] = []  # (first place, tokens) of each prompt
    # (first place of the prompt, its tokens, first place of the response, its tokens)
    rows: list[tuple[int, int, int, int]] = []
    for (_, *prompt), of_group in members.items():
        p, begin = len(prompt), len(source)
        source += range(starts[of_group[0]], starts[of_group[0]] + p)
        position += range(p)
        spans.append((begin, p))
        for r in of_group:
            n, at = sizes[r] - p, len(source)
            place[starts[r] : starts[r] + p] = range(begin, begin + p)
            place[starts[r] + p : starts[r] + sizes[r]] = range(at, at + n)
            source += range(starts[r] + p, starts[r] + sizes[r])
            position += range(p, sizes[r])
            if n:
                rows.append((begin, p, at, n))
    parts = [
        _part([(0, 0, begin, p) for begin, p in some])
        for some in _similar([x for x in spans if x[1]], lambda x: (0, x[1]))
    ]
    parts += [_part(some) for some in _similar(rows, lambda x: (x[1], x[3]))]
    results = torch.cat([part.query[part.real] for part in parts])
    order = torch.empty_like(results)
    order[results] = torch.arange(len(results))
    parts = [
        Part(p.query.to(device), p.key.to(device), None if p.mask is None else p.mask.to(device), p.real.to(device))
        for p in parts
    ]
    return Packing(
        ids[torch.tensor(source, device=device)],
        torch.tensor(position, device=device),
        torch.tensor(place, device=device),
        tuple(parts),
        order.to(device),
    )


def _similar(rows: list[Any], size: Callable[[Any], tuple[int, int]]) -> list[list[Any]]:
    """Cuts rows into parts, so that padding costs at most about half as much as what is real."""
    out: list[list[Any]] = []
    padded = real = longest = deepest = 0
    for row in sorted(rows, key=lambda x: (-size(x)[1], -size(x)[0])):
        p, t = size(row)
        cost = t * (p + t)
        if out:
            deeper = max(deepest, p)
            padded = (len(out[-1]) + 1) * longest * (deeper + longest)
            if len(out[-1]) < 4 or padded <= 1.5 * (real + cost):
                out[-1].append(row)
                real, deepest = real + cost, deeper
                continue
        out.append([row])
        real, longest, deepest = cost, t, p
    return out


def _part(rows: list[tuple[int, int, int, int]]) -> Part:
    """``rows`` as (first place of the prompt, its tokens, first place of the response, its tokens)."""
    begin, prompt, at, n = (torch.tensor(x)[:, None] for x in zip(*rows, strict=True))
    deepest, longest = int(prompt.max()), int(n.max())
    if deepest <= longest:  # the prompt's queries once more cost less than a mask, under which nothing is skipped
        step = torch.arange(int((prompt + n).max()))[None]
        token = torch.where(step < prompt, begin + step, at + step - prompt)
        query = torch.where(step < prompt + n, token, at)
        return Part(query, query, None, (step >= prompt) & (step < prompt + n))
    step = torch.arange(longest)[None]
    real = step < n
    query = torch.where(real, at + step, at)
    back = torch.arange(deepest)[None] - (deepest - prompt)  # place in the prompt; negative on the padding
    key = torch.cat([torch.where(back >= 0, begin + back, at), query], 1)
    seen = torch.ones(longest, deepest + longest, dtype=torch.bool).tril(deepest)[None]
    there = torch.cat([back >= 0, torch.ones_like(real)], 1)[:, None]
    return Part(query, key, (seen & there)[:, None], real)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a :class:`Packing`; without one, over rows: as :func:`mask` says, or causal with padding on the right.

    Shapes:
        query ``[B, heads, T, d]``, key and value ``[B, kv_heads, S, d]``; returns ``[B, T, heads, d]``.
    """
    if attention_mask is not None and query.shape[2] == 1:
        return next_token(query, key, value, attention_mask, scaling), None
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    if packing is None:
        out = scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=attention_mask is None, **options
        )
        return out.transpose(1, 2).contiguous(), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [M, heads, d]

    def rows(x: Tensor, index: Tensor) -> Tensor:
        cut: Tensor = x.index_select(0, index.flatten()).unflatten(0, tuple(index.shape)).transpose(1, 2)
        return cut  # [R, heads, T, d]

    found = []
    for part in packing.parts:
        plain = part.mask is None
        out = scaled_dot_product_attention(
            rows(q, part.query), rows(k, part.key), rows(v, part.key), part.mask, is_causal=plain, **options
        )
        found.append(out.transpose(1, 2)[part.real])  # [real tokens, heads, d]
    return torch.cat(found).index_select(0, packing.order)[None], None


def next_token(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None) -> Tensor:
    """Attention of one new token a row to all that a cache holds.

    Each key head is multiplied with all of its queries at once: torch's own attention on CPUs repeats keys and values for them.

    Shapes:
        query ``[R, heads, 1, d]``, key ``[R, kv_heads, S, d]``, value ``[R, kv_heads, S, e]``, bias ``[R, 1, 1, S]``; returns
        ``[R, 1, heads, e]``.
    """
    (rows, heads, _, d), (kv, seen) = query.shape, key.shape[1:3]
    q = (query * (d**-0.5 if scaling is None else scaling)).reshape(rows * kv, heads // kv, d)
    score = torch.bmm(q, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, 1, seen).add_(bias)
    share = score.softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.bmm(share.view(rows * kv, heads // kv, seen), value.flatten(0, 1)).view(
        rows, 1, heads, value.shape[-1]
    )


def mask(
    q_length: int, kv_length: int, q_offset: int, attention_mask: Tensor | None = None, dtype: Any = None, **kwargs: Any
) -> Tensor | None:
    """What transformers hands :func:`attention` for rows that are padded on the left (``attention_mask`` ``[R, kv_length]``).

    Made once a pass. For several new tokens a row ``[R, 1, T, S]``, true where they attend; for one ``[R, 1, 1, S]``, what is added to its
    scores.
    """
    if attention_mask is None:
        return None
    real = attention_mask[:, None, None, :kv_length].bool()
    if q_length == 1:
        return torch.zeros_like(real, dtype=dtype or torch.float32).masked_fill_(~real, -torch.inf)
    place = torch.arange(kv_length, device=real.device)
    here = place[q_offset : q_offset + q_length, None]
    # Padding attends to itself: nothing reads its result, but it has to be a number.
    return (place <= here) & real | (place == here)


def register() -> None:
    """Makes the attention known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def supported(config: Any) -> str | None:
    """Why a model cannot be packed, or None."""
    config = config.get_text_config()
    kinds = {str(k) for k in getattr(config, "layer_types", None) or ()} - {"full_attention"}
    if kinds:
        return f"it has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends within a sliding window"
    return None
