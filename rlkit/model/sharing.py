"""Sequences whose tokens several ranks share, so that none holds the activations of all of them (Ulysses).

The row of a packed micro-batch is cut into equal pieces, one a rank. Layers that work on single tokens see a piece; around attention, ranks
exchange pieces of all heads for all tokens of some heads, and back. Log-probs of a token are made where the hidden state before it is, and
then known to all: every rank has the whole loss, and its gradient is what its own piece adds.

Source: DeepSpeed Ulysses 2309.14509 (DeepSpeed's own ``UlyssesSPAttentionHF`` makes the exchange).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.model import packed


class _Everywhere(torch.autograd.Function):
    """Each rank's numbers ``[n]`` at their places ``mine`` in ``[size]``, on all ranks. Backward, each takes what is at its own places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mine: Tensor, size: int, group: Any) -> Tensor:
        ctx.save_for_backward(mine)
        whole = x.new_zeros(size).index_copy_(0, mine, x)
        torch.distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (mine,) = ctx.saved_tensors
        return grads[0][mine], None, None, None


@dataclass(frozen=True)
class Share:
    """One rank's part in a ``group`` of ``size`` ranks that work on the same micro-batches."""

    group: Any
    rank: int
    size: int

    def span(self, tokens: int) -> slice:
        """This rank's piece of a row of so many tokens, which ``size`` divides."""
        piece = tokens // self.size
        return slice(self.rank * piece, (self.rank + 1) * piece)

    def whole(self, x: Tensor, mine: Tensor, size: int) -> Tensor:
        """What every rank found of its own action tokens, ``mine`` of ``size``, on all of them."""
        found: Tensor = _Everywhere.apply(x, mine, size, self.group)
        return found

    def attend(self, lm: Any) -> None:
        """Gives a model that attends in one of :data:`rlkit.model.packed.METHODS` that method over shared rows.

        Raises:
            ConfigError: its heads cannot be shared by so many ranks.
        """
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
        from transformers import AttentionInterface, AttentionMaskInterface

        config, name = lm.config, packed.shared(lm.config._attn_implementation)
        heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
        try:
            exchange = UlyssesSPAttentionHF(
                attn=packed.attention,
                batch_size=1,
                attn_head_count=heads,
                attn_head_size=size or config.hidden_size // heads,
                kv_head_count=config.num_key_value_heads,
                num_hidden_layers=config.num_hidden_layers,
                process_group=self.group,
                seq_length_is_variable=True,
            )
        except ValueError as error:
            raise ConfigError(
                f"learner.sequence_parallel: {self.size} ranks cannot share the heads of this model: {error}."
            ) from error

        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **kwargs: Any
        ) -> Any:
            return exchange(module, query, key, value, mask, **kwargs)

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, packed.mask)
        lm.set_attn_implementation(name)
