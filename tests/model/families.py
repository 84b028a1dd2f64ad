"""Tiny models of real architectures, made from their configuration classes: small enough for a test, and nothing of them is left out.

Weights are drawn so that logits differ by nats and not by rounding; windows, caps and scales are set to where they matter for thirty tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.data.tasks import Sorting
from rlkit.model.tiny import make_tokenizer

HEAD = 32  # vLLM's CPU attention has no smaller one
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {  # families whose heads are the hidden size cut in pieces
    **BASE,
    "hidden_size": 128,
}
WINDOW = 8
MIXED = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
PER_LAYER = {  # embeddings of each layer's own, and layers that share keys and values
    "sliding_window": WINDOW,
    "num_hidden_layers": 4,
    "layer_types": MIXED * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 18,
}


@dataclass(frozen=True)
class Family:
    """A model type of transformers. ``tie``: whether published models of it share embedding and output layer."""

    name: str
    config: str  # transformers' class
    tie: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=lambda: BASE)
    lora: Mapping[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    tested: bool = True  # by tests of all families, which have no time for more


FAMILIES = (
    Family("Qwen2", "Qwen2Config", True, base=GPT),
    Family("Qwen3", "Qwen3Config", True),
    Family(
        "Qwen3-MoE",
        "Qwen3MoeConfig",
        False,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    Family(
        "Qwen2-MoE",
        "Qwen2MoeConfig",
        False,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
        base=GPT,
    ),
    Family("Llama", "LlamaConfig", False),
    Family("SmolLM3", "SmolLM3Config", True, {"no_rope_layers": [1, 0]}, base=GPT),
    Family("Mistral", "MistralConfig", False, {"sliding_window": WINDOW}),
    Family("Mixtral", "MixtralConfig", False, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "Gemma 2",
        "Gemma2Config",
        True,
        {
            "sliding_window": WINDOW,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": HEAD,
        },
    ),
    Family(
        "Gemma 3",
        "Gemma3TextConfig",
        True,
        {"sliding_window": WINDOW, "query_pre_attn_scalar": HEAD, "layer_types": MIXED},
    ),
    Family("Phi-3", "Phi3Config", False, base=GPT),
    Family("OLMo 2", "Olmo2Config", False, base=GPT),
    Family(
        "OLMoE", "OlmoeConfig", False, {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}, base=GPT
    ),
    Family(
        "GPT-OSS", "GptOssConfig", False, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    ),
    Family(
        "Granite",
        "GraniteConfig",
        True,
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": HEAD**-0.5,
        },
        base=GPT,
    ),
    Family(
        "Granite-MoE",
        "GraniteMoeConfig",
        True,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 4.0, "attention_multiplier": HEAD**-0.5},
        base=GPT,
    ),
    Family("Cohere", "CohereConfig", True, {"logit_scale": 0.5, "use_qk_norm": False}, base=GPT),
    Family(
        "Cohere 2",
        "Cohere2Config",
        True,
        {"logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": MIXED},
        base=GPT,
    ),
    Family("GLM-4", "Glm4Config", False),
    Family("StarCoder 2", "Starcoder2Config", True, base=GPT),
    Family("Pythia", "GPTNeoXConfig", False, base=GPT),
    Family(
        "GPT-2",
        "GPT2Config",
        True,
        {
            "n_embd": 128,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        base={},
    ),
    Family(
        "DeepSeek-V3",
        "DeepseekV3Config",
        False,
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "topk_method": "noaux_tc",
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 512,  # vLLM's kernels know these two sizes
            "qk_rope_head_dim": 64,
            "head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
        },
    ),
    Family("Qwen3.5", "Qwen3_5TextConfig", True, LINEAR, tested=False),
    Family(
        "Qwen3-Next",
        "Qwen3NextConfig",
        False,
        {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 64},
        tested=False,
    ),
    Family(
        "LFM2",
        "Lfm2Config",
        True,
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        tested=False,
    ),
    Family(
        "Falcon-H1",
        "FalconH1Config",
        False,
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "mlp_multipliers": [0.7, 1.3],
            "key_multiplier": 0.8,
            "attention_out_multiplier": 0.9,
            "ssm_multipliers": [0.5, 1.1, 0.9, 1.2, 0.7],
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.6,
        },
        base=GPT,
        lora={  # PEFT refuses the others of such a model: out_proj and conv1d
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"]
        },
        tested=False,
    ),
    Family(
        "Granite 4 hybrid",
        "GraniteMoeHybridConfig",
        True,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 64,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "logits_scaling": 4.0,
            "attention_multiplier": HEAD**-0.5,
            "embedding_multiplier": 3.0,
        },
        base=GPT,
        tested=False,
    ),
    Family(
        "Gemma 3n",
        "Gemma3nTextConfig",
        True,
        {
            **PER_LAYER,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
            "final_logit_softcapping": 2.0,
            "altup_num_inputs": 2,
        },
        tested=False,
    ),
    Family(
        "Llama 4",
        "Llama4TextConfig",
        False,
        {
            "intermediate_size_mlp": 128,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "floor_scale": 4,
        },
        tested=False,
    ),
    Family(
        "Gemma 4",
        "Gemma4TextConfig",
        True,
        {
            **PER_LAYER,
            "final_logit_softcapping": 2.0,
            "per_layer_config": {},
        },
        tested=False,
    ),
    Family(
        "GLM-4.5",
        "Glm4MoeConfig",
        False,
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_shared_experts": 1,
            "use_qk_norm": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
        },
        tested=False,
    ),
    Family("Ernie 4.5", "Ernie4_5Config", True, tested=False),
    Family("EXAONE 4", "Exaone4Config", False, {"sliding_window": WINDOW, "layer_types": MIXED}, tested=False),
    Family("Seed-OSS", "SeedOssConfig", False, {"attention_bias": True, "residual_dropout": 0.1}, tested=False),
    Family("Hunyuan", "HunYuanDenseV1Config", True, tested=False),
    Family("OLMo 3", "Olmo3Config", False, {"sliding_window": WINDOW, "layer_types": MIXED}, base=GPT, tested=False),
    Family("Nemotron", "NemotronConfig", False, base=GPT, tested=False),
    Family("Apertus", "ApertusConfig", False, tested=False),
    Family("Phi-2", "PhiConfig", False, {"resid_pdrop": 0.1, "num_key_value_heads": 4}, base=GPT, tested=False),
)


def make(family: Family, path: Path, tie: bool | None = None, seed: int = 0) -> Path:
    """Writes a model of ``family`` and a character tokenizer to ``path``."""
    import torch
    import transformers

    tokenizer = make_tokenizer(Sorting.alphabet)
    config_class = getattr(transformers, family.config)
    config = config_class(
        **{
            **family.base,
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": family.tie if tie is None else tie,
            **family.options,
        }
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    spread(model, seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def spread(model: Any, seed: int) -> None:
    """Draws every weight anew, so that each of them matters: matrices of gain one, vectors around what they were."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            draw = torch.randn(p.shape, generator=noise)
            if p.ndim < 2:
                p.add_(0.2 * draw)
            else:
                p.copy_(draw * p.shape[-1] ** -0.5)
