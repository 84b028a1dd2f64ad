"""A model whose next token follows from the last one alone: what it answers to a prompt is written here, in tokens."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlkit.types import Prompt, Sampling
from tests.tokenizers import CHAT, make


@dataclass(frozen=True)
class Script:
    """The tokens after a prompt of one character; with these stop strings, so many tokens come, and this text is seen."""

    prompt: str
    tokens: tuple[str, ...]
    stop: tuple[str, ...]
    count: int
    text: str
    finish: str = "stop"


SCRIPTS = {
    "the token that closes a chat; special tokens are seen": Script(
        "1", ("<think>", "h", "i", "</think>", "4", "<|im_end|>"), (), 6, "<think>hi</think>4"
    ),
    "the tokenizer's EOS": Script("2", ("x", "y", "</s>"), (), 3, "xy"),
    "an EOS of the generation settings": Script("3", ("v", "w", "z"), (), 3, "vw"),
    "a stop string over several tokens": Script("5", ("p", "E", "N", "D", "q"), ("END",), 4, "p"),
    "a stop string within a token": Script("6", ("r", "END\n", "s"), ("END",), 2, "r"),
    "a stop string that is a special token": Script("7", ("t", "<|tool|>", "u"), ("<|tool|>",), 2, "t"),
    "a stop string of a character of two tokens": Script("8", ("Ã", "©", "o"), ("é",), 2, ""),
    "the stop string that is complete first": Script("9", ("A", "B", "C", "F"), ("BCF", "C"), 3, "AB"),
    "a stop string of many tokens": Script("0", tuple("QRSTUVWXYZ_-+=;:,.<>?/|~^&*()[]{}"), ("QRSTUVWXYZ_-+=;:,.<>?/|~^&*()[]{}",), 33, ""),
    "no end": Script("!", ("k", "l", "m", "n"), (), 4, "klmn", "length"),
}  # fmt: skip


def make_scripted(path: Path) -> Any:
    """Writes the model and its tokenizer to ``path``; its generation settings name two EOS tokens, ``</s>`` and ``z``."""
    tokenizer = make(front="<s>", chat=CHAT)
    size = 32 * (len(tokenizer) // 32 + 1)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=size // 32, num_key_value_heads=size // 32, max_position_embeddings=256,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # attention and MLP add nothing
        model.model.norm.weight.fill_(1)
        model.model.layers[0].input_layernorm.weight.fill_(1)
        model.model.layers[0].post_attention_layernorm.weight.fill_(1)
        model.model.embed_tokens.weight[:, : len(tokenizer)] = torch.eye(len(tokenizer))
        for script in SCRIPTS.values():
            chain = [*tokenizer.convert_tokens_to_ids([script.prompt, *script.tokens])]
            for now, then in itertools.pairwise(chain):
                model.lm_head.weight[then, now] = 3.0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    z = tokenizer.convert_tokens_to_ids("z")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, z], "temperature": 0.6}))
    return tokenizer


def run_scripts(engine: Any, tokenizer: Any) -> list[list[float]]:
    """Holds an engine against every script; returns the log-probs."""
    found = []
    for name, script in SCRIPTS.items():
        prompt = Prompt(name, (2, *tokenizer.convert_tokens_to_ids([script.prompt])), script.prompt)
        sampling = Sampling(temperature=0.0, stop=script.stop, max_tokens=4 if script.finish == "length" else 40)
        rollout = engine.generate(prompt, 1, sampling)[0]
        got = (tokenizer.convert_ids_to_tokens(rollout.tokens), rollout.text, rollout.finish)
        assert got == ([*script.tokens[: script.count]], script.text, script.finish), (name, got)
        assert len(rollout.logp) == len(rollout.tokens) == len(rollout.version) == len(rollout.sampled)
        found.append(rollout.logp)
    return found
