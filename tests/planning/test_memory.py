"""Memory formulas against tensors that were counted in real steps of tiny models, and against published parameter counts."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rlkit.errors import ConfigError
from rlkit.learner.backend import TorchBackend
from rlkit.model.adapter import add_adapter
from rlkit.model.head import CHUNK_ELEMENTS
from rlkit.model.policy import PolicyModel
from rlkit.planning import Sharding, engine_memory, learner_memory, shape
from rlkit.planning.memory import SecondModel, activations, head_bytes, layer_backward, states
from rlkit.run import LearnerSection
from rlkit.types import Sampling

pytestmark = pytest.mark.slow

QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
QWEN3_4B = Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)


def tiny_config(
    family: Any, hidden: int = 128, layers: int = 2, heads: int = 4, kv: int = 2, width: int = 256, vocab: int = 60
) -> Any:
    extra = {"head_dim": hidden // heads} if family is Qwen3Config else {}
    return family(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=512,
        **extra,
    )


def model(
    config: Any,
    dtype: torch.dtype,
    checkpointing: bool = False,
    attention: str | None = None,
    peft: dict[str, Any] | None = None,
) -> PolicyModel:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        config, dtype=dtype, **({} if attention is None else {"attn_implementation": attention})
    )
    lm.config.use_cache = False
    if peft:
        lm = add_adapter(lm, peft, 0).to(dtype)
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.enable_input_require_grads()
    return PolicyModel(lm).train()


def micro_batch(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose second half is action tokens."""
    torch.manual_seed(1)
    action = torch.cat([torch.arange(r * length + length // 2, (r + 1) * length) for r in range(rows)])
    return torch.randint(3, 50, (rows * length,)), torch.full((rows,), length), action


class Live(TorchDispatchMode):
    """Bytes of all tensors that operations made and that still live, and their highest sum."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        # What an operation writes in place, or views, is not new.
        self.known = {x.untyped_storage()._cdata: 0 for p in policy.parameters() for x in (p, p.grad) if x is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known:
                storage = x.untyped_storage()
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


MOE: dict[str, Any] = {"num_hidden_layers": 3, "moe_intermediate_size": 128, "hidden_size": 512, "vocab_size": 900}
LATENT: dict[str, Any] = {**MOE, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 700}
ARCHITECTURES: dict[str, Any] = {
    "Qwen3Moe": {**MOE, "num_experts": 32, "num_experts_per_tok": 4, "head_dim": 128, "num_key_value_heads": 4},
    "Qwen2Moe": {**MOE, "num_experts": 16, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 300},
    "Mixtral": {"num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 640, "vocab_size": 900},
    "GptOss": {"num_hidden_layers": 4, "num_local_experts": 8, "sliding_window": 8},
    "Glm4Moe": {**MOE, "n_routed_experts": 16, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64},
    "DeepseekV3": {**LATENT, "n_routed_experts": 32, "num_experts_per_tok": 4, "first_k_dense_replace": 1},
    "Glm4MoeLite": {**LATENT, "n_routed_experts": 16},
    "MiniCPM3": {"num_hidden_layers": 2},
    "Llama": {"num_hidden_layers": 2, "num_key_value_heads": None, "tie_word_embeddings": True},
    "Qwen3": {"num_hidden_layers": 2, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8},
    "Qwen2": {"num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
    "Gemma2": {"num_hidden_layers": 4, "sliding_window": 8},
    "Gemma3Text": {"num_hidden_layers": 7, "sliding_window": 8},
    "Granite": {"num_hidden_layers": 2},
    "GraniteMoe": {"num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 640},
    "Cohere": {"num_hidden_layers": 2, "vocab_size": 9000},
    "GPT2": {"n_embd": 768, "n_layer": 3},
    "GPTNeoX": {"num_hidden_layers": 2},
    "GPTBigCode": {"n_layer": 2},
    "Falcon": {"num_hidden_layers": 2},
    "Phi3": {"num_hidden_layers": 2},
    "Jamba": {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 640, "vocab_size": 900},
}


def passed(lm: Any, tokens: int) -> tuple[int, Any]:
    """FLOPs of all products of a pass over one row, as torch counts them, and the cache that it leaves."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        out = lm(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True)
    return flops.get_total_flops(), out.past_key_values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_are_those_of_the_models_own_pass(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config)
    s = shape(config)
    assert s.parameters == s.trainable == sum(p.numel() for p in lm.parameters())
    if name != "Falcon":  # it computes its attention in one way
        lm.set_attn_implementation("eager")  # which torch counts without a mask
    with contextlib.suppress(ValueError):  # without experts
        lm.set_experts_implementation(
            "batched_mm"
        )  # whose sizes do not depend on numbers, which the meta device has none of
    (one, _), (two, cache) = passed(lm, 16), passed(lm, 32)
    attention = (two - 2 * one) / (2 * 16**2)  # of FLOPs that grow with the square of the length
    # Norms and biases multiply nothing.
    assert s.active == pytest.approx((one - attention * 16**2) / 2 / 16, rel=2e-3)
    if name != "Jamba":  # the scan of its other layers is no product in every version
        assert 4 * s.heads * s.head_dim * s.layers == pytest.approx(attention, rel=1e-9)
    kept = [x for layer in cache.layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    # transformers keeps one token less in a window.
    held = sum(x.shape[1] * x.shape[3] * (x.shape[2] + (x.shape[2] < 32)) for x in kept if x is not None)
    assert s.cached.bytes(32, 2) == 2 * held == 32 * s.kv_bytes(2, length=32)
    whole = sum(x.shape[1] * x.shape[3] for x in kept if x is not None)
    assert s.kv_bytes(2) == 2 * whole


def test_a_latent_cache_is_whole_on_every_device_and_windows_bound_the_others() -> None:
    s = shape(transformers.DeepseekV3Config(num_hidden_layers=3))
    assert s.kv_bytes(2) == s.kv_bytes(2, 8) == 3 * (512 + 64) * 2
    s = shape(transformers.Gemma2Config(num_hidden_layers=4, sliding_window=100))
    each = 2 * s.kv_heads * s.head_dim * 2
    assert s.cached.bytes(80, 2) == 4 * 80 * each and s.cached.bytes(1000, 2) == 2 * (1000 + 100) * each
    assert s.cached.bytes(1000, 2, 4) == s.cached.bytes(1000, 2) / 4
    # Tokens attended to, by enumeration.
    exact = sum(2 * (t + min(t, 100)) for t in range(1, 1001)) / 1000
    assert s.attended(1000) == pytest.approx(exact, rel=2e-3)


def test_of_several_inputs_the_language_model_is_counted() -> None:
    text = {"num_hidden_layers": 2, "vocab_size": 900}
    assert shape(transformers.Gemma3Config(text_config=text)) == shape(transformers.Gemma3TextConfig(**text))
    with pytest.raises(
        ConfigError, match=r"Mamba2Config has no num_attention_heads; rlkit plans decoders with attention"
    ):
        shape(transformers.Mamba2Config())


@pytest.mark.parametrize(("config", "published"), [(QWEN_7B, 7.6156e9), (LLAMA_8B, 8.0303e9), (QWEN3_4B, 4.02e9)])
def test_parameters_of_published_models(config: Any, published: float) -> None:
    s = shape(config)
    c = config
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    norms = 2 * c.hidden_size + (2 * s.head_dim if c.model_type == "qwen3" else 0)
    bias = q + 2 * kv if c.model_type == "qwen2" else 0
    layer = c.hidden_size * (2 * q + 2 * kv) + bias + 3 * c.hidden_size * c.intermediate_size + norms
    tables = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    assert s.parameters == s.trainable == c.num_hidden_layers * layer + tables + c.hidden_size
    assert s.parameters == pytest.approx(published, rel=1e-3)
    assert s.active == s.parameters - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)


def test_parameters_of_a_folder_an_adapter_and_a_value_head(tiny: Path) -> None:
    real = model(AutoModelForCausalLM.from_pretrained(tiny).config, torch.float32)
    s = shape(str(tiny))
    assert s.parameters == sum(p.numel() for p in real.parameters()) and not s.lora
    assert shape(str(tiny), value_head=True).parameters == s.parameters + s.hidden + 1
    options = {"r": 4, "target_modules": "all-linear"}
    adapted = model(AutoModelForCausalLM.from_pretrained(tiny).config, torch.float32, peft=options)
    lora = shape(str(tiny), options)
    assert lora.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora.parameters == sum(p.numel() for p in adapted.parameters()) and lora.lora
    with pytest.raises(ValueError, match=r"model\.path.*is no folder, and it cannot be the name of a model"):
        shape(str(tiny / "nowhere"))


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear"}])
def test_states_of_a_real_torch_step(peft: dict[str, Any] | None) -> None:
    config = tiny_config(Qwen2Config)
    policy = model(config, torch.float32, peft=peft)
    backend = TorchBackend(policy, LearnerSection(lr=1e-3), 10)
    ids, length, action = micro_batch(2, 16)
    backend.backward(backend(ids, length, action, torch.arange(len(length)), Sampling())[0].sum(), True)
    gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    backend.step()
    moments = sum(x.nbytes for state in backend.optimizer.state.values() for name, x in state.items() if name != "step")
    found, _, _ = states(shape(config, peft), Sharding(None), 4)
    assert found["parameters"] == sum(p.nbytes for p in policy.parameters())
    assert found["gradients"] == gradients and found["AdamW moments"] == moments


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("sizes", "rows", "length", "checkpointing", "attention"),
    [
        ((128, 2, 4, 2, 256), 3, 96, False, None),
        ((256, 3, 4, 4, 768), 2, 64, False, None),
        ((256, 4, 4, 2, 768), 2, 128, True, None),
        ((128, 2, 4, 2, 256), 2, 160, False, "eager"),
    ],
)
def test_saved_activations(
    family: Any,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    rows: int,
    length: int,
    checkpointing: bool,
    attention: str | None,
) -> None:
    config = tiny_config(family, *sizes)
    policy = model(config, dtype, checkpointing, attention)
    parameters, seen = {p.untyped_storage().data_ptr() for p in policy.parameters()}, dict[int, torch.Tensor]()

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in parameters:
            seen[t.untyped_storage().data_ptr()] = t  # kept alive, so that no address comes twice
        return t

    ids, at, action = micro_batch(rows, length)
    with saved_tensors_hooks(pack, lambda t: t):
        policy(ids, at, action, torch.arange(len(at)), Sampling())
    measured = sum(t.untyped_storage().nbytes() for t in seen.values())
    s, size = shape(config), 4 if dtype is torch.float32 else 2
    parts = activations(
        s, rows * length, len(action), size, longest=length, checkpointing=checkpointing, attention=attention
    )
    assert sum(parts.values()) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear"}])
def test_peak_of_a_real_forward_and_backward_pass(
    family: Any, dtype: torch.dtype, checkpointing: bool, peft: dict[str, Any] | None
) -> None:
    config = tiny_config(family, 256, 4, 4, 2, 768, vocab=2000)
    policy = model(config, dtype, checkpointing, peft=peft)
    ids, at, action = micro_batch(4, 128)
    # Gradients exist from here on: the second micro-batch adds to them.
    policy(ids, at, action, torch.arange(len(at)), Sampling())[0].sum().backward()
    with Live(policy) as live:
        policy(ids, at, action, torch.arange(len(at)), Sampling())[0].sum().backward()
    s, size = shape(config, peft), 4 if dtype is torch.float32 else 2
    kept = sum(activations(s, len(ids), len(action), size, longest=128, checkpointing=checkpointing).values())
    layer = sum(layer_backward(s, len(ids), size, longest=128, checkpointing=checkpointing).values())
    # The plan counts a full tile of logits; here one tile holds all action tokens and is smaller.
    head = head_bytes(s, size)
    head["logits, probabilities, gradient (one tile)"] *= len(action) * s.vocab / CHUNK_ELEMENTS
    assert live.peak == pytest.approx(kept + max(layer, sum(head.values())), rel=0.2)


def test_zero_stages_split_what_they_promise() -> None:
    s = shape(QWEN_7B)
    p = s.parameters
    found = {stage: states(s, Sharding(stage, 8, bucket=0, live=0, prefetch=0), 2)[0] for stage in (1, 2, 3)}
    # Bytes per parameter that DeepSpeed 0.19 was seen to hold with one rank: 20, 18, 18; sharded parts shrink with the ranks.
    one = {stage: sum(states(s, Sharding(stage, 1, bucket=0), 2)[0].values()) / p for stage in (1, 2, 3)}
    assert one == {1: 20.0, 2: 18.0, 3: 18.0}
    assert sum(found[1].values()) == pytest.approx(p * (2 + 6 + 12 / 8))
    assert sum(found[2].values()) == pytest.approx(p * (2 + 16 / 8))
    assert sum(v for k, v in found[3].items() if k != "gathered layers") == pytest.approx(p * 18 / 8)
    away, _, host = states(s, Sharding(2, 8, offload_optimizer=True, bucket=0), 2)
    assert host == pytest.approx(p * 16 / 8) and sum(away.values()) == pytest.approx(p * 2)


def test_learner_budget_names_what_is_too_large() -> None:
    s = shape(LLAMA_8B)
    common: dict[str, Any] = {
        "dtype": "bfloat16",
        "tokens": 8192,
        "actions": 4096,
        "longest": 4096,
        "capacity": 70 * 2.0**30,
    }
    whole = learner_memory(s, Sharding(1, 1), **common)
    assert whole.over > 0 and whole.worst == "optimizer step" and "TOO LARGE" in str(whole)
    small = learner_memory(s, Sharding(3, 16), checkpointing=True, **common)
    assert small.over < 0
    with_ref = learner_memory(
        s, Sharding(3, 16), checkpointing=True, anchors={"ref": SecondModel(s, False, 2)}, **common
    )
    assert with_ref.peak - small.peak == pytest.approx(2 * s.parameters)
    offloaded = learner_memory(
        s, Sharding(3, 16), checkpointing=True, anchors={"ref": SecondModel(s, True, 2)}, **common
    )
    assert offloaded.peak < with_ref.peak and offloaded.host == pytest.approx(2 * s.parameters)
    # With an adapter every rank holds the model whole before ZeRO-3 splits it; without one it reads its part.
    worst = [
        learner_memory(x, Sharding(3, 512), checkpointing=True, **{**common, "tokens": 16, "actions": 8}).worst
        for x in (dataclasses.replace(s, lora=True), s)
    ]
    assert worst[0] == "start" != worst[1]


def test_kv_cache_counts() -> None:
    s = shape(LLAMA_8B)
    assert s.kv_bytes(2) == 2 * 32 * 8 * 128 * 2 == 131072  # 128 KiB a token, as published for Llama-3 8B in bfloat16
    assert s.kv_bytes(2, 8) == s.kv_bytes(2) // 8 and s.kv_bytes(2, 16) == s.kv_bytes(2, 8)
    device = 80 * 2.0**30
    budget, kv = engine_memory(
        s,
        dtype="bfloat16",
        capacity=device,
        device=device,
        utilization=0.9,
        tensor_parallel=1,
        max_seqs=128,
        batched_tokens=2048,
        mean=1024,
        longest=4096,
    )
    assert budget.over < 0
    assert kv["tokens"] * kv["bytes a token"] + budget.peak - kv["bytes a token"] * 4096 == pytest.approx(0.9 * device)
    assert kv["sequences at the mean length"] == 128 and kv["sequences at the longest length"] == pytest.approx(
        kv["tokens"] / 4096
    )
