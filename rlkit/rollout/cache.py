"""The key-value cache of the Hugging Face engine."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


def make_cache(config: Any) -> Cache:
    """An empty cache; one that grows in place where every layer attends to everything."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    return DynamicCache(config=config) if kinds - {"full_attention"} else Cache(layer_class_to_replicate=GrowingLayer)


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
