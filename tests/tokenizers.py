"""Small tokenizers with the rules of real families: what stands in front of a text, what ends one, chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("The answer", "stop here", "ab", "END\n")  # tokens of several characters
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def make(front: str | None = None, end: str | None = None, chat: str | None = None, eos: str = "</s>") -> Any:
    """One token a byte, some words, and special tokens; ``front`` and ``end`` are what the tokenizer itself puts around a text."""
    special = ["<pad>", "</s>", "<s>", "<unk>", "<|im_end|>", "<think>", "</think>", "<|tool|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = " ".join(filter(None, (front, "$A", end)))
    if front or end:
        named = [(t, vocabulary[t]) for t in (front, end) if t]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=eos,
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=special[4:],
    )
    made.add_tokens(list(WORDS))
    made.chat_template = chat
    return made


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
