"""Chat templates that leave what was said as it was, and that do not; a tiny model that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlkit.data.render import Renderer
from rlkit.model.endings import Endings
from rlkit.rollout.player import EpisodeSpec, Player, Stage
from rlkit.types import Prompt, Rollout, Sampling
from tests.tokenizers import CHAT, ids, make

# Once something follows, an answer is shown without its thinking, as Qwen3's and DeepSeek's templates do.
FORGETS = CHAT.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
# Qwen3's way exactly: answers to tools keep their thinking until the user speaks again.
LAST_USER = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
FORGETS_LATER = LAST_USER + FORGETS.replace("loop.last", "loop.index0 > ns.last")
STRIPS = CHAT.replace("{{ m.content }}", "{{ m.content | trim }}")


def make_model(path: Path) -> Any:
    """Writes a random model and the tokenizer of tests to ``path``."""
    tokenizer = make()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return tokenizer


def prompt_of(tokenizer: Any, question: str = "q", **columns: Any) -> Prompt:
    rendered = Renderer(tokenizer)([{"role": "user", "content": question}], "a test")
    return Prompt("p", tuple(ids(tokenizer, rendered.text)), rendered.text, "a", columns, rendered.shown)


class Says:
    """An engine that says these texts one after the other, whoever asks; a token ends each, unless the text is to be cut off (``...``)."""

    def __init__(self, tokenizer: Any, *texts: str, end: str = "<|im_end|>") -> None:
        self.tokenizer, self.texts, self.end, self.asked = tokenizer, list(texts), end, list[tuple[Prompt, Sampling]]()

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.asked.append((prompt, sampling))
        text = self.texts.pop(0)
        cut = text.endswith("...")
        tokens = ids(self.tokenizer, text if cut else text + self.end)
        k, version = len(tokens), len(self.asked)
        return [
            Rollout(
                prompt, tokens, [True] * k, [-float(version)] * k, [version] * k, "length" if cut else "stop", text=text
            )
        ]

    @property
    def seen(self) -> str:
        """What the model saw last."""
        return str(self.tokenizer.decode(self.asked[-1][0].token_ids))


def player(engine: Any, tokenizer: Any, fn: Any, limit: int = 400, **options: Any) -> Player:
    spec = EpisodeSpec(fn, **{k: options.pop(k) for k in ("timeout", "args") if k in options})
    endings = Endings(tokenizer, frozenset([tokenizer.convert_tokens_to_ids("<|im_end|>"), 1]))
    stage = Stage(engine=engine, tokenizer=tokenizer, endings=endings, render=Renderer(tokenizer), limit=limit)
    return Player(spec, spec.found(["question", "level"]), stage, Nothing(), **options)


class Nothing:
    """No section ``rewards``."""

    def score(self, rollouts: Any) -> None:
        for r in rollouts:
            r.reward = 0.0
