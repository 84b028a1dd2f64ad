"""An engine of your own: the model's plain forward pass over the whole text, token by token."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkit.model.endings import Endings
from rlkit.model.load import load_tokenizer
from rlkit.rollout.draw import sample
from rlkit.rollout.engine import EngineSetup, EngineSpec, SimpleEngine, request_seed
from rlkit.types import Prompt, Rollout, Sampling


class PlainEngine(SimpleEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(setup.path).eval().requires_grad_(False)
        self.endings = Endings.of(setup.path, load_tokenizer(setup.path))

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        seed = request_seed(sampling, prompt, self.version)  # a resumed run repeats its responses
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ids, logps = torch.tensor([prompt.token_ids] * n), list[Tensor]()
        for _ in range(sampling.max_tokens):
            chance = torch.rand(n, generator=generator, dtype=torch.float64)
            tokens, logp = sample(self.model(ids).logits[:, -1], sampling, chance)  # temperature, top-p and top-k
            ids, logps = torch.cat([ids, tokens[:, None]], 1), [*logps, logp]
        rows = zip(ids[:, len(prompt.token_ids) :].tolist(), torch.stack(logps, 1).tolist(), strict=True)
        return [self.rollout(prompt, *row) for row in rows]

    def rollout(self, prompt: Prompt, tokens: list[int], logp: list[float]) -> Rollout:
        """Up to the token that ends it, which is a part of it."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.endings.ids), None)
        tokens, text = tokens[:end], self.endings.text(tokens[:end])
        sampled, version = [True] * len(tokens), [self.version] * len(tokens)
        return Rollout(prompt, tokens, sampled, logp[:end], version, "stop" if end else "length", text=text)

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.model.get_parameter(name).copy_(value)


@dataclass(frozen=True, kw_only=True)
class Plain(EngineSpec):
    """Fields would be keys beside ``type``."""

    def start(self, setup: EngineSetup) -> PlainEngine:
        return PlainEngine(setup)
