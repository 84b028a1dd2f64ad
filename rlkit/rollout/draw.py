"""Drawing tokens from logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlkit.model.head import CHUNK_ELEMENTS, truncate
from rlkit.types import Sampling


def sample(logits: Tensor, sampling: Sampling, chance: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-prob (nats) after temperature, top-k and top-p.

    Shapes:
        logits ``[R, V]``; chance ``[R]``, uniform in [0, 1): the row's place in the cumulative distribution.
    """
    tokens, logps = [], []
    for z, u in zip(logits.split(rows := max(1, CHUNK_ELEMENTS // logits.shape[-1])), chance.split(rows), strict=True):
        z = z.float()
        if sampling.temperature == 0:
            best = z.argmax(-1)
            tokens.append(best)
            logps.append(z.log_softmax(-1).gather(-1, best[:, None])[:, 0])
            continue
        z = z / sampling.temperature if sampling.temperature != 1 else z
        if sampling.top_k or sampling.top_p < 1:
            z = truncate(z, z.argmax(-1), sampling.top_k, sampling.top_p)
        p = z.softmax(-1)
        tokens.append(quantile(p, u))
        logps.append(p.gather(-1, tokens[-1][:, None])[:, 0].log())
    return torch.cat(tokens), torch.cat(logps)


def quantile(p: Tensor, u: Tensor) -> Tensor:
    """The smallest index whose cumulative share exceeds ``u``, ``[R]``; never one without probability. ``p`` is ``[R, V]``, ``u`` ``[R]``.

    Sums over blocks find the block, and sums within it the index: a running sum over a whole vocabulary is many times slower on CPUs.
    """
    width = 128
    blocks = pad(p, (0, -p.shape[-1] % width)).unflatten(-1, (-1, width))  # [R, blocks, width]
    block, rest = _first_above(blocks.sum(-1), u)
    inside = blocks[torch.arange(len(p), device=p.device), block]
    return block * width + _first_above(inside, rest)[0]


def _first_above(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose share of the running sum exceeds ``u``, and how far into its own share ``u`` reaches, in [0, 1)."""
    sums = x.cumsum(-1, dtype=torch.float64)
    at = u[:, None] * sums[:, -1:]
    # Rounding must not lead beyond the last entry that is not zero.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    index = torch.minimum(torch.searchsorted(sums, at, right=True), last)
    own = x.gather(-1, index).double()
    inside = (at - sums.gather(-1, index) + own) / own
    return index[:, 0], inside[:, 0].clamp(0, 1 - 2**-53)
