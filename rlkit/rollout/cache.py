"""The key-value cache of the Hugging Face engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin

from rlkit.errors import EngineError, first_line
from rlkit.model.load import short_windows
from rlkit.model.policy import probe_tokens
from rlkit.types import TOLERANCE


def make_cache(config: Any) -> Cache:
    """An empty cache of the layers that transformers gives the model; one that grows in place where all of them attend to everything."""
    cache = RowCache(config=config)
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    return Cache(layer_class_to_replicate=GrowingLayer) if plain else cache


class RowCache(DynamicCache):
    """A cache whose layers all lose rows together: those with a state (a convolution's, a recurrence's), too."""

    def batch_select_indices(self, indices: Tensor) -> None:
        layers: list[Any] = self.layers
        for layer in layers:
            # transformers has this method for keys and values alone, and leaves a hybrid layer's state with the rows of before.
            stateful = isinstance(layer, LinearAttentionCacheLayerMixin)
            (layer.reorder_cache if stateful else layer.batch_select_indices)(indices)


def argument(lm: Any) -> str:
    """The name under which a model's forward pass takes its cache: ``cache_params`` where all of it is state (Mamba)."""
    base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return "cache_params" if "cache_params" in inspect.signature(base.forward).parameters else "past_key_values"


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, ``[rows, longest]``, padded on the left: all rows continue at the same place."""
    width = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def prove_cache(lm: Any, make: Callable[[Any], Any] = make_cache) -> None:
    """Reads two rows of different lengths side by side, lets rows come and go, reads on token by token, and holds it all against single
    passes over each row. Windows of attention are short meanwhile.

    Raises:
        EngineError: two log-probs differ by more than the type's tolerance (in 16 bits four times that), on average over tokens as often
            as they would be sampled.
    """
    ids, name = probe_tokens(lm, 16).tolist(), type(lm).__name__
    rows, gaps = [ids[:3], ids[3:11]], list[float]()

    def compare(logits: Tensor) -> None:
        for row, one in zip(rows, logits[:, -1].float().log_softmax(-1), strict=True):
            whole = lm(input_ids=torch.tensor([row], device=lm.device), use_cache=False).logits[0, -1].float()
            p = whole.log_softmax(-1)
            gaps.append(float((p.exp() * (p - one).abs()).sum()))

    with torch.no_grad(), short_windows(lm):
        cache, key = make(lm.config), argument(lm)
        try:
            tokens, mask = (x.to(lm.device) for x in left_padded(rows))
            position = (mask.cumsum(1) - 1).clamp(min=0)
            out = lm(input_ids=tokens, attention_mask=mask, position_ids=position, use_cache=True, **{key: cache})
            compare(out.logits)
            for kept, new in (([1, 0, 1], ids[11:14]), ([0, 2], ids[14:16]), ([1, 0], ids[:2])):
                cache.batch_select_indices(torch.tensor(kept, device=lm.device))
                rows = [[*rows[k], token] for k, token in zip(kept, new, strict=True)]
                tokens, mask = (x.to(lm.device) for x in left_padded(rows))
                position = mask.sum(1, keepdim=True) - 1
                out = lm(
                    input_ids=tokens[:, -1:], attention_mask=mask, position_ids=position, use_cache=True, **{key: cache}
                )
                compare(out.logits)
        except Exception as error:  # whatever a model's code makes of a mask or a cache that it does not know
            raise EngineError(
                f"rollout.engine: hf cannot generate with {name} token by token ({first_line(error)[:200]}). Set rollout.engine: vllm, or "
                "take another model."
            ) from error
    gap = sum(gaps) / len(gaps)
    # In 16 bits one of so few tokens may be rounded to another expert.
    if not gap <= (TOLERANCE["float32"] if lm.dtype == torch.float32 else 4 * TOLERANCE["bfloat16"]):
        raise EngineError(
            f"rollout.engine: hf samples from another model than {name}: read token by token, in rows of different lengths, its code gives "
            f"other log-probs than in one pass ({gap:.2g} nats on average). Set rollout.engine: vllm, or take another model."
        )


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers with room to grow: a token is written in place instead of copying all that came before it."""

    room: tuple[Tensor, Tensor]  # [R, kv_heads, capacity, d]
    used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.used + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = (key_states[:, :, :0], value_states[:, :, :0])
        if end > self.room[0].shape[2]:
            self.room = (_wider(self.room[0], self.used, _room(end)), _wider(self.room[1], self.used, _room(end)))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, self.used : end] = new
        self.used = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        # What is used is copied, into rows that have room already: the next token would copy them again.
        end = max(self.room[0].shape[2], _room(self.used + 1))
        self.room = tuple(_wider(x[:, :, : self.used][indices], self.used, end) for x in self.room)  # type: ignore[assignment]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (x[:, :, : self.used] for x in self.room)
        return self.keys, self.values


def _room(needed: int) -> int:
    """For how many tokens there is room where so many are needed."""
    return needed + max(32, needed // 2)


def _wider(room: Tensor, used: int, capacity: int) -> Tensor:
    rows, heads, _, d = room.shape
    out = room.new_empty(rows, heads, capacity, d)
    out[:, :, :used] = room[:, :, :used]
    return out
