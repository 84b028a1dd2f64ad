"""How one rollout batch becomes optimizer steps, ranks and micro-batches.

Everything is decided on the driver from the whole batch, so results do not depend on the number of ranks or on the
size of a micro-batch: the weights of every mean (:func:`rlkit.objective.normalise`) are fixed before the batch is cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlkit.objective import Term, is_marking, normalise
from rlkit.types import Batch

MOST_TOKENS = 16384  # of a micro-batch where nothing is set
# Bytes that a micro-batch on a CPU may keep for its backward pass; more is no faster there (docs/planning.md). With tokens enough that
# adding up gradients of micro-batches is nothing beside their products, it keeps less.
KEPT, ENOUGH_KEPT, ENOUGH = 768 << 20, 192 << 20, 1024


def micro_batch(max_tokens: int | None, device: str, width: int) -> int:
    """``learner.max_tokens``, or what suits the device (``cpu``, ``cuda``) and the model that learners train.

    ``width``: outputs of all linear layers of the decoder for one token. About twice as many numbers are kept for the backward pass.
    """
    if max_tokens is not None:
        return max_tokens
    if device != "cpu":
        return MOST_TOKENS
    each = 2 * 4 * width  # bytes that a token keeps
    return max(256, min(MOST_TOKENS, KEPT // each, max(ENOUGH, ENOUGH_KEPT // each)))


def minibatches(b: Batch, epochs: int, count: int, seed: int) -> list[Tensor]:
    """Row indices of each optimizer step: ``count`` minibatches an epoch, fewer if there are fewer prompt groups (never split)."""
    groups = torch.unique(b.group)
    count = min(count, len(groups))
    generator = torch.Generator().manual_seed(seed)
    out: list[Tensor] = []
    for _ in range(epochs):
        order = groups[torch.randperm(len(groups), generator=generator)] if count > 1 else groups
        out.extend(torch.isin(b.group, part).nonzero()[:, 0] for part in order.tensor_split(count))
    return out


Unit = list[int]  # rows that stay in one micro-batch


def pack(
    length: Tensor, ranks: int, max_tokens: int, group: Tensor | None = None, whole: Tensor | None = None
) -> list[list[list[int]]]:
    """Cuts rows into micro-batches: ``out[rank][k]`` is a list of rows, with equally many ``k`` on every rank.

    Longest rows first, each into the lightest micro-batch, so that tokens are balanced over ranks and steps. A
    micro-batch holds at most ``max_tokens`` padded tokens (or one row that is longer than that). The rows of a ``group`` that are marked
    in ``whole`` stay together, whatever that makes of ``max_tokens``.
    """
    sizes = length.tolist()
    units = _units(len(sizes), group, whole)
    longest = [max(sizes[r] for r in unit) for unit in units]
    blocks: list[list[Unit]] = []
    first = rows = 0  # of the last block: its longest row, and how many it has
    for k in torch.argsort(torch.tensor(longest), descending=True).tolist():  # equal lengths together: little padding
        unit = units[k]
        if blocks and first * (rows + len(unit)) <= max_tokens:
            blocks[-1].append(unit)
            rows += len(unit)
        else:
            blocks.append([unit])
            first, rows = longest[k], len(unit)
    return _spread(blocks, sizes, ranks)


def _units(rows: int, group: Tensor | None, whole: Tensor | None) -> list[Unit]:
    """The rows that are marked, by group; every other row for itself."""
    if group is None or whole is None:
        return [[row] for row in range(rows)]
    units: dict[int, Unit] = {}
    for row, (g, together) in enumerate(zip(group.tolist(), whole.tolist(), strict=True)):
        units.setdefault(g if together else -1 - row, []).append(row)
    return list(units.values())


def pack_groups(
    length: Tensor, prompt: Tensor, group: Tensor, ranks: int, max_tokens: int, whole: Tensor | None = None
) -> list[list[list[int]]]:
    """As :func:`pack` for the layout of :mod:`rlkit.model.packed`: no padding, and a prompt counts once for its responses.

    Groups stay whole where they fit; the largest go first, each into the lightest of as few micro-batches as hold all.
    """
    sizes, prompts, labels = length.tolist(), prompt.tolist(), group.tolist()
    members: dict[int, list[Unit]] = {}
    for unit in _units(len(sizes), group, whole):
        members.setdefault(labels[unit[0]], []).append(unit)
    parts: list[tuple[int, list[Unit]]] = []  # (tokens, units of one group)
    for units in members.values():
        shared, begun = min(prompts[r] for unit in units for r in unit), False
        for unit in sorted(units, key=lambda unit: -max(sizes[r] for r in unit)):
            own = sum(sizes[r] - shared for r in unit)
            if begun and parts[-1][0] + own <= max_tokens:
                parts[-1][1].append(unit)
                parts[-1] = (parts[-1][0] + own, parts[-1][1])
            else:
                parts.append((shared + own, [unit]))
                begun = True
    parts.sort(key=lambda part: -part[0])
    count = ranks * -(-sum(tokens for tokens, _ in parts) // (ranks * max_tokens))
    while (bins := _balanced(parts, count, max_tokens)) is None:
        count += ranks
    return _spread(bins, sizes, ranks)


def _balanced(parts: Sequence[tuple[int, list[Unit]]], count: int, max_tokens: int) -> list[list[Unit]] | None:
    """Each part into the lightest of ``count`` micro-batches; None if one becomes longer than ``max_tokens`` by that."""
    bins = [(0, k) for k in range(count)]
    out: list[list[Unit]] = [[] for _ in range(count)]
    for tokens, units in parts:
        used, k = heapq.heappop(bins)
        if used and used + tokens > max_tokens:
            return None
        heapq.heappush(bins, (used + tokens, k))
        out[k] += units
    return [units for units in out if units]


def _spread(made: list[list[Unit]], sizes: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """Micro-batches to ranks: equally many on each, tokens balanced."""
    while len(made) % ranks:  # every rank runs equally many collectives
        widest = max(range(len(made)), key=lambda i: len(made[i]))
        if len(made[widest]) < 2:
            break
        units = made.pop(widest)
        half = len(units) // 2
        made[widest:widest] = [units[:half], units[half:]]
    blocks = [[r for unit in units for r in unit] for units in made]
    out: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    blocks.sort(key=lambda rows: -sum(sizes[r] for r in rows))
    per_rank = -(-len(blocks) // ranks)
    for rows in blocks:
        rank = min((r for r in range(ranks) if len(out[r]) < per_rank), key=lambda r: load[r])
        out[rank].append(sorted(rows))
        load[rank] += sum(sizes[r] for r in rows)
    for micro in out:
        micro.extend([] for _ in range(per_rank - len(micro)))
    return out


def annotated(b: Batch, found: Mapping[str, Tensor]) -> Batch:
    """The batch with what :meth:`rlkit.learner.learner.Learner.annotate` found of its tokens, in their order."""
    plain, whole = dict(found), {name: dict(parts) for name, parts in b.whole.items()}
    for name in [name for name in found if "/" in name]:
        full, part = name.split("/")
        whole.setdefault(full.removesuffix("_full"), {})[part] = plain.pop(name)
    value = plain.pop("value", b.value)
    return b.with_logp(**plain).replace(value=value, whole=whole)


def cut(
    b: Batch, ranks: int, max_tokens: int, packed: bool = False, whole: Tensor | None = None
) -> tuple[list[list[Batch]], list[Tensor]]:
    """The micro-batches of each rank, and for each rank the rows (in order) that they hold; ``packed``: the learners' layout.

    ``whole``: rows (bool) that stay with those of their group that are marked, too.

    A rank without rows for its last micro-batch gets one row with weight zero: it takes part in the collectives and
    adds nothing.
    """
    assert b.length is not None
    if packed:
        assert b.action is not None
        ends = b.length.cumsum(0)
        first = ends.clone().scatter_reduce_(0, b.seq, b.action, "amin")
        prompt = first - ends + b.length
        group = b.group if b.episode is None else sharing(b, prompt)
        plan = pack_groups(b.length, prompt, group, ranks, max_tokens, whole)
    else:
        plan = pack(b.length, ranks, max_tokens, b.group, whole)
    made = iter(b.parts([torch.tensor(m, dtype=torch.long) for micro in plan for m in micro if m]))
    shards = [[next(made) if m else _idle(b) for m in micro] for micro in plan]
    return shards, [torch.tensor([r for m in micro for r in m], dtype=torch.long) for micro in plan]


def sharing(b: Batch, prompt: Tensor) -> Tensor:
    """A label for each sequence, equal where those of a group have equal prompts; an episode may go on in another than it began with."""
    assert b.ids is not None and b.length is not None
    starts, tokens, labels = (b.length.cumsum(0) - b.length).tolist(), b.ids.numpy(), dict[tuple[int, bytes], int]()
    keys = [
        (g, tokens[at : at + n].tobytes()) for g, at, n in zip(b.group.tolist(), starts, prompt.tolist(), strict=True)
    ]
    return torch.tensor([labels.setdefault(key, len(labels)) for key in keys])


def take(b: Batch, rows: Sequence[int]) -> Batch:
    keep = torch.zeros(b.S, dtype=torch.bool)
    keep[list(rows)] = True
    return b.rows(keep)


def _idle(b: Batch) -> Batch:
    assert b.length is not None
    out = take(b, [int(b.length.argmin())])
    return out.replace(norm=None if out.norm is None else torch.zeros_like(out.norm), idle=True)


def compared(objective: Sequence[Term], b: Batch) -> Tensor | None:
    """Rows that a term compares with others of their group, so that no micro-batch may hold a part of them; None: there is no such term."""
    assert b.norm is not None
    found = [b.norm[i] > 0 for i, term in enumerate(objective) if term.whole_groups]
    return torch.stack(found).any(0) if found else None


def marks(objective: Sequence[Term], b: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """What terms with a ``mark`` say of each token, from the whole batch; 0 on rows that no term of that name reads."""
    out = dict[str, Tensor]()
    for i, term in enumerate(objective):
        if is_marking(term):
            assert b.norm is not None
            keep = b.norm[i] > 0
            found = b.reward.new_zeros(b.N).masked_scatter(keep[b.seq], term.mark(b.rows(keep), generator))
            out[term.name] = found + out[term.name] if term.name in out else found
    return out


def prepared(objective: Sequence[Term], b: Batch, generator: torch.Generator) -> Batch:
    """A batch with what its parts cannot know once it is cut: the weights of its means, and the marks of its tokens."""
    b = b.replace(norm=normalise(objective, b))
    return b.replace(marks=marks(objective, b, generator))


def with_gradient(objective: Sequence[Term], b: Batch) -> Batch:
    """The rows that can have a gradient: where every term lives from the advantage alone, groups of equal rewards need no pass.

    The weights of all means are fixed already, so the gradient stays the same.
    """
    if b.adv is None or not all(t.only_advantage for t in objective):
        return b
    keep = b.seq_sum((b.adv != 0).to(b.reward.dtype)) > 0
    if not bool(keep.any()):
        assert b.length is not None
        keep[int(b.length.argmin())] = True  # an optimizer step needs a row
    return b.rows(keep)


def optimizer_steps(
    b: Batch,
    objective: Sequence[Term],
    *,
    epochs: int,
    count: int,
    ranks: int,
    max_tokens: int,
    seed: int,
    packed: bool = False,
) -> list[list[list[Batch]]]:
    """``out[step][rank]`` is the list of micro-batches; ``norm`` and ``marks`` are those of the whole minibatch."""
    out: list[list[list[Batch]]] = []
    generator = torch.Generator().manual_seed(seed)
    for rows in minibatches(b, epochs, count, seed):
        mini = with_gradient(objective, prepared(objective, take(b, rows.tolist()), generator))
        out.append(cut(mini, ranks, max_tokens, packed, compared(objective, mini))[0])
    return out
