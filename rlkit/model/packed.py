"""A micro-batch without padding, in which the responses of a prompt share its tokens.

The decoder sees one row: for each prompt group its prompt, then what each response has after it. All layers that work on single tokens run
on real tokens only, and a prompt is computed once, in the forward and in the backward pass. Attention is the only layer that knows of
sequences: a prompt attends to itself, a response to the prompt and to itself. It does so in one of three ways (:data:`METHODS`), which see
the same tokens: in dense parts of rows of similar length, in a kernel that skips blocks nobody sees, or in one for rows of any length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from rlkit.errors import ModelError

NAME = "rlkit_packed"  # the attention implementation that a model has to be loaded with
SHARED = "_shared"  # behind the name of a method whose rows several ranks share (rlkit.model.sharing)
# What a model's layers may tell their attention and neither ours nor torch's looks at: such functions pass over it without a word.
UNHEEDED = {
    "softcap": "caps the scores of attention",
    "s_aux": "has attention sinks",
    "position_bias": "adds a bias of places to the scores of attention",
    "indices": "attends to some tokens alone",
    "block_indices": "attends to some tokens alone",
}


class Row(NamedTuple):
    """A response that attends to its prompt and to itself: first place of the prompt, its tokens, first place of the response, its tokens.

    A prompt is one without a prompt.
    """

    begin: int
    prompt: int
    at: int
    n: int


class Method(Protocol):
    """How the tokens of a packing attend to each other."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """Query ``[M, heads, d]``, key and value ``[M, kv_heads, d]``; returns ``[M, heads, d]``.

        With a ``window`` a token sees itself and the ``window - 1`` before it in its own sequence.
        """
        ...


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
    """The row of a micro-batch: ``ids`` and ``position`` ``[M]``; ``place`` ``[L]``, where each original token went; the ``method`` by
    which its tokens attend.
    """

    ids: Tensor
    position: Tensor
    place: Tensor
    method: Method


def make(ids: Tensor, length: Tensor, action: Tensor, group: Tensor, name: str = NAME, multiple: int = 1) -> Packing:
    """Lays out packed sequences (``ids`` ``[L]``, ``length`` ``[S]``); rows of one ``group`` share their prompts where these are equal.

    ``name`` is that of the attention implementation, one of :data:`METHODS`. ``M`` is made a ``multiple`` by tokens that nobody asks for.
    """
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
    spans: list[Row] = []  # the prompts
    rows: list[Row] = []
    for (_, *prompt), of_group in members.items():
        p, begin = len(prompt), len(source)
        source += range(starts[of_group[0]], starts[of_group[0]] + p)
        position += range(p)
        if p:
            spans.append(Row(begin, 0, begin, p))
        for r in of_group:
            n, at = sizes[r] - p, len(source)
            place[starts[r] : starts[r] + p] = range(begin, begin + p)
            place[starts[r] + p : starts[r] + sizes[r]] = range(at, at + n)
            source += range(starts[r] + p, starts[r] + sizes[r])
            position += range(p, sizes[r])
            if n:
                rows.append(Row(begin, p, at, n))
    at, n = len(source), -len(source) % multiple
    if n:
        spans.append(Row(at, 0, at, n))
        source += [0] * n
        position += range(n)
    return Packing(
        ids[torch.tensor(source, device=device)],
        torch.tensor(position, device=device),
        torch.tensor(place, device=device),
        METHODS[name.removesuffix(SHARED)](spans, rows, device),
    )


@dataclass(frozen=True)
class Parts:
    """Dense attention over rows of similar length. ``order`` ``[M]``: where the results of the parts, one after the other, belong."""

    parts: tuple[Part, ...]
    order: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Row], rows: Sequence[Row], device: torch.device) -> Parts:
        parts = [_part(some) for some in (*_similar(prompts), *_similar(rows))]
        results = torch.cat([part.query[part.real] for part in parts])
        order = torch.empty_like(results)
        order[results] = torch.arange(len(results))
        moved = [
            Part(p.query.to(device), p.key.to(device), None if p.mask is None else p.mask.to(device), p.real.to(device))
            for p in parts
        ]
        return cls(tuple(moved), order.to(device))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See :class:`Method`."""
        assert window is None, "`supported` says that there is none"
        gqa = query.shape[1] != key.shape[1]

        def rows(x: Tensor, index: Tensor) -> Tensor:
            cut: Tensor = x.index_select(0, index.flatten()).unflatten(0, tuple(index.shape)).transpose(1, 2)
            return cut  # [R, heads, T, d]

        found = []
        for part in self.parts:
            out = scaled_dot_product_attention(
                rows(query, part.query),
                rows(key, part.key),
                rows(value, part.key),
                part.mask,
                is_causal=part.mask is None,
                scale=scaling,
                dropout_p=dropout,
                enable_gqa=gqa,
            )
            found.append(out.transpose(1, 2)[part.real])  # [real tokens, heads, d]
        return torch.cat(found).index_select(0, self.order)


@dataclass(frozen=True)
class Blocks:
    """Flex attention, whose kernel skips blocks of 128 x 128 tokens in which nobody sees anybody; every type of numbers, and windows.

    A token sees those before it of its own segment and of the segment that is its prompt. On a CPU all scores are computed: it is for
    comparison there.

    Shapes:
        own, under, position ``[M]``: number of a token's segment (a prompt, a response), of its prompt's, and its place in the sequence.
    """

    own: Tensor
    under: Tensor
    position: Tensor
    masks: dict[int | None, Any]  # by window, made when a layer first asks

    @classmethod
    def of(cls, prompts: Sequence[Row], rows: Sequence[Row], device: torch.device) -> Blocks:
        size = sum(r.n for r in prompts) + sum(r.n for r in rows)
        own, under, position = (torch.zeros(size, dtype=torch.int32) for _ in range(3))
        number = {r.begin: k for k, r in enumerate(prompts)}
        for k, r in enumerate((*prompts, *rows)):
            span = slice(r.at, r.at + r.n)
            own[span] = k
            under[span] = number.get(r.begin, k) if r.prompt else k
            position[span] = torch.arange(r.prompt, r.prompt + r.n, dtype=torch.int32)
        return cls(own.to(device), under.to(device), position.to(device), {})

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See :class:`Method`."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # [1, heads, M, d]
        gqa = query.shape[1] != key.shape[1]
        out = _blocked(q, k, v, self.masks[window], window, scale=scaling, enable_gqa=gqa)
        return out[0].transpose(0, 1)

    def _mask(self, window: int | None) -> Any:
        own, under, position = self.own, self.under, self.position

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            there = (k <= q) & ((own[k] == own[q]) | (own[k] == under[q]))
            return there if window is None else there & (position[q] - position[k] < window)

        size, device = len(own), own.device
        make: Any = flex_attention.create_block_mask
        if device.type in KERNELS:  # or a mask of all pairs of tokens would be made first
            make = _compiled(make, window)
        return make(sees, None, None, size, size, device=device)


def _blocked(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, window: int | None, **options: Any) -> Tensor:
    """Flex attention, its kernel on GPUs. On CPUs it has no backward pass, so what has one is computed densely under the same mask."""
    if query.device.type in KERNELS:
        same = (query.shape[1], key.shape[1], query.shape[3], value.shape[3], query.dtype, window)
        kernel = _compiled(flex_attention.flex_attention, *same, torch.is_grad_enabled(), query.requires_grad)
        return kernel(query, key, value, block_mask=block_mask, **options)  # type: ignore[no-any-return]
    if query.requires_grad:
        size = query.shape[2]
        sees = flex_attention.create_mask(block_mask.mask_mod, 1, 1, size, size, query.device)
        return scaled_dot_product_attention(query, key, value, sees, **options)
    out: Tensor = flex_attention.flex_attention(query, key, value, block_mask=block_mask, **options)
    return out


KERNELS = {"cuda"}  # devices for which flex attention is compiled
COMPILER: Any = "inductor"


@functools.cache
def _compiled(function: Any, *same: Any) -> Any:
    """Compiled for rows of every length, once for each kind of them: torch compiles a function eight times at most and computes it as
    it is written from then on, which here is all scores of all tokens. So each kind counts for itself, and more is an error.
    """
    make: Any = torch.compile  # its overloads do not know isolate_recompiles
    return make(function, dynamic=True, fullgraph=True, isolate_recompiles=True, backend=COMPILER)


@dataclass(frozen=True)
class Spans:
    """Flash attention over rows of any length, in torch since 2.10: GPUs, 16 bits. Keys of a prompt are repeated for its responses.

    Shapes:
        query ``[M]``, key ``[K]``: places in the row, sequence after sequence; ends_q, ends_k ``[R + 1]``: where those begin and end;
        order ``[M]``: where the results belong. longest: (queries, keys) of a sequence.
    """

    query: Tensor
    key: Tensor
    ends_q: Tensor
    ends_k: Tensor
    order: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, prompts: Sequence[Row], rows: Sequence[Row], device: torch.device) -> Spans:
        query: list[int] = []
        key: list[int] = []
        ends: list[tuple[int, int]] = [(0, 0)]
        for r in (*prompts, *rows):
            query += range(r.at, r.at + r.n)
            key += (*range(r.begin, r.begin + r.prompt), *range(r.at, r.at + r.n))
            ends.append((len(query), len(key)))
        q, (ends_q, ends_k) = torch.tensor(query), torch.tensor(ends, dtype=torch.int32).T.contiguous()
        order = torch.empty_like(q)
        order[q] = torch.arange(len(q))
        return cls(
            q.to(device),
            torch.tensor(key, device=device),
            ends_q.to(device),
            ends_k.to(device),
            order.to(device),
            (int(ends_q.diff().max()), int(ends_k.diff().max())),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See :class:`Method`. Where a sequence has more keys than queries, its last query is at its last key."""
        from torch.nn.attention import varlen  # its import takes a second

        out = varlen.varlen_attn(
            query.index_select(0, self.query),
            key.index_select(0, self.key),
            value.index_select(0, self.key),
            self.ends_q,
            self.ends_k,
            *self.longest,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out, Tensor)
        return out.index_select(0, self.order)


METHODS: dict[str, Callable[[Sequence[Row], Sequence[Row], torch.device], Method]] = {
    NAME: Parts.of,
    f"{NAME}_blocks": Blocks.of,
    f"{NAME}_spans": Spans.of,
}


def shared(name: str) -> str:
    """The name of a method where several ranks share its rows."""
    return name.removesuffix(SHARED) + SHARED


def candidates(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The methods for a device and a type of numbers, the fastest first."""
    if device.type == "cpu":
        return (NAME,)
    return (f"{NAME}_spans", f"{NAME}_blocks") if dtype in (torch.bfloat16, torch.float16) else (f"{NAME}_blocks",)


def _similar(rows: Sequence[Row]) -> list[list[Row]]:
    """Cuts rows into parts, so that padding costs at most about half as much as what is real."""
    out: list[list[Row]] = []
    padded = real = longest = deepest = 0
    for row in sorted(rows, key=lambda r: (-r.n, -r.prompt)):
        p, t = row.prompt, row.n
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


def _part(rows: Sequence[Row]) -> Part:
    """One part of these rows."""
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
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a :class:`Packing`; without one, over rows: as :func:`mask` says, or causal with padding on the right.

    Shapes:
        query ``[B, heads, T, d]``, key and value ``[B, kv_heads, S, d]``; returns ``[B, T, heads, d]``.

    Raises:
        ModelError: the model asks for more than that (:data:`UNHEEDED`).
    """
    heed(kwargs)
    if attention_mask is not None and query.shape[2] == 1:
        return next_token(query, key, value, attention_mask, scaling), None
    if packing is None:
        if attention_mask is None and sliding_window is not None:
            place = torch.arange(query.shape[2], device=query.device)
            back = place[:, None] - place
            attention_mask = (back >= 0) & (back < sliding_window)
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attention_mask,
            is_causal=attention_mask is None,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).contiguous(), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [M, heads, d]
    return packing.method.attend(q, k, v, scaling, dropout, sliding_window)[None], None


def heed(asked: Mapping[str, Any]) -> None:
    """Raises ModelError if a layer asks its attention for what would be left out."""
    for name, what in UNHEEDED.items():
        if asked.get(name) is not None:
            raise ModelError(f"it {what}")


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

    for name in METHODS:
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, mask)


def supported(config: Any, windows: bool = False) -> str | None:
    """Why a model cannot be packed, or None; ``windows``: whether layers can that attend within a sliding window."""
    config = config.get_text_config()
    if windows:
        known = {"full_attention", "sliding_attention"}
        strange = {str(k) for k in getattr(config, "layer_types", None) or ()} - known
        return f"it has layers of type {', '.join(sorted(strange))}" if strange else None
    kinds = {str(k) for k in getattr(config, "layer_types", None) or ()} - {"full_attention"}
    if kinds:
        return f"it has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends within a sliding window"
    return None
