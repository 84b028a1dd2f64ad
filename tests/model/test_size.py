"""Outputs and experts, by hand on models of the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from rlkit.model.size import outputs, passed_over, routing

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_a_plain_and_a_gated_mlp() -> None:
    plain = on_meta(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=50))
    assert outputs(plain) == 3 * (3 * 64 + 64 + 4 * 64 + 64) and passed_over(plain) == 0
    gated = on_meta(LlamaConfig(**SMALL, intermediate_size=96))
    assert outputs(gated) == 3 * (64 + 2 * 32 + 64 + 2 * 96 + 64)
    assert routing(gated.config) == (1, 1)


def test_the_output_layer_is_not_counted_wherever_the_decoder_is() -> None:
    """transformers gives the whole model as Llama 4's decoder."""
    some = {"intermediate_size": 32, "intermediate_size_mlp": 96, "num_local_experts": 4, "head_dim": 16}
    counted = [outputs(on_meta(Llama4TextConfig(**{**SMALL, "vocab_size": v}, **some))) for v in (50, 500)]
    assert counted[0] == counted[1]


def test_of_experts_a_token_passes_some() -> None:
    lm = on_meta(MixtralConfig(**SMALL, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2))
    assert routing(lm.config) == (8, 2)
    assert outputs(lm) == 3 * (64 + 2 * 32 + 64 + 2 * (2 * 96 + 64))
    assert passed_over(lm) == 3 * 6 * 3 * 96 * 64
    some = {"moe_intermediate_size": 32, "intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2}
    lm = on_meta(Qwen3MoeConfig(**SMALL, **some, head_dim=16, mlp_only_layers=[0]))
    assert outputs(lm) == 3 * (64 + 2 * 32 + 64) + (2 * 96 + 64) + 2 * 2 * (2 * 32 + 64)
    assert passed_over(lm) == 2 * 6 * 3 * 32 * 64


@pytest.mark.parametrize("routed", [1, 4])
def test_shared_experts_and_dense_layers_are_passed_by_every_token(routed: int) -> None:
    lm = on_meta(
        DeepseekV3Config(
            **{**SMALL, "num_key_value_heads": 4},
            intermediate_size=96,
            moe_intermediate_size=32,
            n_routed_experts=16,
            n_shared_experts=2,
            num_experts_per_tok=routed,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=24,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=20,
        )
    )
    attention = 24 + 4 * 24 + 16 + 8 + 4 * (16 + 20) + 64
    dense, shared, expert = 2 * 96 + 64, 2 * 64 + 64, 2 * 32 + 64
    assert outputs(lm) == 3 * attention + dense + 2 * (shared + routed * expert)
    assert passed_over(lm) == 2 * (16 - routed) * 3 * 32 * 64
