"""The cache of the Hugging Face engine: rows of every kind of layer come and go together, and what cannot be read so is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.errors import EngineError
from rlkit.model.load import load_lm
from rlkit.rollout.cache import GrowingLayer, RowCache, argument, make_cache, prove_cache
from tests.model.families import FAMILIES, WINDOW, Family, make

pytestmark = pytest.mark.slow

BY_NAME = {f.name: f for f in FAMILIES}
MAMBA2 = Family("Mamba 2", "Mamba2Config", False, {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1})


@pytest.mark.parametrize(
    "family", [BY_NAME["Qwen3.5"], BY_NAME["LFM2"], BY_NAME["Falcon-H1"], MAMBA2], ids=lambda f: f.name
)
def test_states_of_convolutions_and_recurrences_go_with_their_rows(family: Family, tmp_path: Path) -> None:
    """Against whole passes over each row; transformers has `batch_select_indices` for keys and values only."""
    lm = load_lm(make(family, tmp_path))
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [9, 3, 8, 4, 7, 5, 6], [5, 5, 6, 6, 7, 7, 8]])
    keep, cache = torch.tensor([2, 0, 2]), make_cache(lm.config)
    assert isinstance(cache, RowCache)
    key: Any = {argument(lm): cache}
    with torch.no_grad():
        whole = lm(input_ids=ids[keep]).logits
        lm(input_ids=ids[:, :4], use_cache=True, **key)
        cache.batch_select_indices(keep)
        steps = [lm(input_ids=ids[keep, t, None], use_cache=True, **key).logits for t in range(4, 7)]
    assert torch.allclose(torch.cat(steps, 1), whole[:, 4:], atol=1e-4)
    prove_cache(lm)


def test_windows_are_those_of_the_library_and_plain_layers_grow_in_place(tmp_path: Path) -> None:
    mistral = BY_NAME["Mistral"]
    lm = load_lm(make(mistral, tmp_path / "windows"))
    assert make_cache(lm.config).layers[0].sliding_window == WINDOW
    prove_cache(lm)
    plain = load_lm(make(replace(mistral, options={"sliding_window": None}), tmp_path / "plain"))
    assert make_cache(plain.config).layer_class_to_replicate is GrowingLayer


def test_a_cache_that_loses_what_was_read_is_refused(tmp_path: Path) -> None:
    """A state that stays with the rows of before: what transformers' own cache does to a hybrid layer."""
    from transformers import DynamicCache

    class Left(DynamicCache):
        def batch_select_indices(self, indices: torch.Tensor) -> None:
            for layer in self.layers:
                if hasattr(layer, "batch_select_indices"):
                    layer.batch_select_indices(indices)
                else:
                    layer.reorder_cache(torch.arange(len(indices)) % 2)

    lm = load_lm(make(BY_NAME["Qwen3.5"], tmp_path))
    with pytest.raises(
        EngineError, match=r"hf samples from another model than Qwen3_5ForCausalLM.*Set rollout.engine: vllm"
    ):
        prove_cache(lm, lambda config: Left(config=config))


def test_a_model_with_a_cache_of_its_own_is_refused_in_one_sentence(tmp_path: Path) -> None:
    minimax = Family(
        "MiniMax",
        "MiniMaxConfig",
        False,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8,
        },
    )
    lm = load_lm(make(minimax, tmp_path))
    with pytest.raises(
        EngineError, match=r"hf cannot generate with MiniMaxForCausalLM token by token \(MiniMax uses cache of its"
    ):
        prove_cache(lm)
