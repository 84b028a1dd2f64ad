"""Small random models with a character tokenizer, in Hugging Face format: what needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def make_tokenizer(alphabet: str) -> Any:
    """A fast tokenizer with one token a character; ``<pad>`` is 0, ``<eos>`` 1, ``<unk>`` 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = list(dict.fromkeys(alphabet))
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{c: i + 3 for i, c in enumerate(characters)}}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    # The result of a tool ends as an answer does, so that the model sees where its own begins.
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'tool' %}<eos>{% endif %}{% endfor %}"
    )
    return fast


def make_tiny(
    path: str | Path,
    alphabet: str,
    *,
    family: Literal["qwen2", "qwen3", "llama"] = "qwen2",
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    max_length: int = 512,
    seed: int = 0,
    tie: bool = True,
) -> Path:
    """Writes a randomly initialised model and its tokenizer to ``path``; loads with transformers and with vLLM."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    classes: dict[str, Any] = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    make_config, make_model = classes[family]
    tokenizer = make_tokenizer(alphabet)
    extra = {"head_dim": hidden // heads} if family == "qwen3" else {}
    config = make_config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **extra,
    )
    torch.manual_seed(seed)
    path = Path(path)
    make_model(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
