"""The Hugging Face engine under a control that is a function of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlkit.errors import ConfigError
from rlkit.rollout.control import Steering
from rlkit.rollout.hf import HFEngine
from rlkit.rollout.reading import Along, load_companion
from rlkit.types import Rollout


def steer(control: Steering, logits: Tensor, along: Along) -> Tensor:
    """``control.steer`` of what all models know; what only some have room for, which is no token of their tokenizer, never comes."""
    classes = logits.shape[-1] if along.classes is None else min(logits.shape[-1], along.classes)
    out = control.steer(logits[..., :classes].float(), along)
    return out if classes == logits.shape[-1] else pad(out, (0, logits.shape[-1] - classes), value=-torch.inf)


def load_companions(control: Steering, dtype: torch.dtype, device: torch.device, tokenizer: Any) -> list[Any]:
    """The models of :attr:`Steering.companions`; raises ConfigError for one that has no logits for some tokens."""
    models = [load_companion(one, dtype, device) for one in control.companions]
    for one, model in zip(control.companions, models, strict=True):
        size = len(tokenizer) if one.values else model.get_output_embeddings().weight.shape[0]
        if size < len(tokenizer):
            raise ConfigError(
                f"{one.where}: {one.path} has {size} logits, but its tokenizer has {len(tokenizer)} tokens. Resize its embeddings."
            )
    return models


@dataclass
class _Caches:
    """What the model and its companions have read; rows leave them together."""

    own: Any
    along: Along

    def batch_select_indices(self, rows: Tensor) -> None:
        self.own.batch_select_indices(rows)
        self.along.batch_select_indices(rows)


@dataclass
class _Output:
    logits: Tensor


class _Steered(nn.Module):
    """A causal language model that answers with the logits that ``control`` makes of its own."""

    def __init__(self, own: Any, control: Steering, tokenizer: Any) -> None:
        super().__init__()
        self.own, self.config = own, own.config
        self.control = control.over(tokenizer)

    def forward(self, past_key_values: _Caches, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> _Output:
        along = past_key_values.along
        inputs["logits_to_keep"] = 1
        out = self.own(
            past_key_values=past_key_values.own, input_ids=input_ids, attention_mask=attention_mask, **inputs
        )
        rows, there = (
            torch.arange(len(input_ids), device=input_ids.device),
            attention_mask[:, -input_ids.shape[1] :].bool(),
        )
        along.read(rows, [ids[mask].tolist() for ids, mask in zip(input_ids, there, strict=True)])
        return _Output(steer(self.control, out.logits[:, -1], along)[:, None])


class SteeredEngine(HFEngine):
    """See :class:`rlkit.rollout.engine.Engine`; weight updates go to the model, never to companions of the control.

    Raises:
        ConfigError, ModelError: models that do not belong together.
    """

    def __init__(self, model: str, control: Steering, *, dtype: str = "float32", max_model_len: int = 1024) -> None:
        control.check(model)
        super().__init__(model, dtype=dtype, max_model_len=max_model_len)
        try:
            self.companions = load_companions(control, getattr(torch, dtype), self.device, self.tokenizer)
        except Exception:
            self.close()
            raise
        self.own = self.lm
        self.lm = _Steered(self.own, control, self.tokenizer)

    @property
    def control(self) -> Steering:
        return self.lm.control  # type: ignore[no-any-return]

    @control.setter
    def control(self, value: Steering) -> None:
        """Another control with the same companions, for requests that come from now on."""
        if value.companions != self.control.companions:
            raise ConfigError("a running engine keeps the models that its control reads: start another one for others.")
        with self._lock:  # a running batch finishes with its own
            self.lm.control = value.over(self.tokenizer)

    def _cache(self, rows: int) -> _Caches:
        return _Caches(super()._cache(rows), Along(self.control.companions, self.companions, rows))

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probs (temperature 1) of the sampled tokens under the control, nats. Read token by token, as they were sampled."""
        out = []
        for r in rollouts:
            ids = torch.tensor([[*r.prompt.token_ids, *r.tokens]], device=self.device)
            first, found = len(r.prompt.token_ids), []
            with self._running():
                cache, start = self._cache(1), 0
                for end in range(first, ids.shape[1]):
                    logits = self.lm(
                        input_ids=ids[:, start:end],
                        attention_mask=torch.ones_like(ids[:, :end]),
                        position_ids=torch.arange(start, end, device=self.device)[None],
                        use_cache=True,
                        past_key_values=cache,
                    ).logits[0, -1]
                    found.append(float(logits.log_softmax(-1)[ids[0, end]]))
                    start = end
            out.append([x for x, kept in zip(found, r.sampled, strict=True) if kept])
        return out

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        steered = self.lm
        self.lm = self.own
        try:
            super().assign(tensors)
        finally:
            self.lm = steered
