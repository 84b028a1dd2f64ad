"""Decoding-time realignment: an engine that samples from a mixture of two models, as if it were trained with another KL coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.errors import ConfigError
from rlkit.model.load import load_for, load_tokenizer
from rlkit.rollout.cache import make_cache
from rlkit.rollout.hf import HFEngine
from rlkit.types import Rollout


def dera_logits(aligned: Tensor, ref: Tensor, lam: float) -> Tensor:
    """``lam * aligned + (1 - lam) * ref``: the log of ``ref (aligned / ref)^lam`` up to a constant.

    For a policy that was aligned with KL coefficient ``beta`` this is the next-token approximation of one aligned with ``beta / lam``:
    0 is the reference, 1 the aligned policy, more than 1 extrapolates. ``[..., V]``, float32 or better.

    Source: DeRa 2402.02992.

    Raises:
        ConfigError: vocabularies of different size.
    """
    if aligned.shape[-1] != ref.shape[-1]:
        raise ConfigError(
            f"DeRa: the aligned model has {aligned.shape[-1]} logits and the reference {ref.shape[-1]}; both models need one "
            "vocabulary."
        )
    wide = torch.promote_types(aligned.dtype, torch.float32)
    # Normalised first: the mixture of log-probs has the same softmax, and no large constant is multiplied by lam.
    return torch.lerp(ref.to(wide).log_softmax(-1), aligned.to(wide).log_softmax(-1), float(lam))


@dataclass
class _Caches:
    """The KV caches of both models; rows leave them together."""

    aligned: Any
    ref: Any

    def batch_select_indices(self, rows: Tensor) -> None:
        self.aligned.batch_select_indices(rows)
        self.ref.batch_select_indices(rows)


@dataclass
class _Output:
    logits: Tensor


class _Mixture(nn.Module):
    """Two causal models that answer as one."""

    def __init__(self, aligned: Any, ref: Any, lam: float) -> None:
        super().__init__()
        self.aligned, self.ref, self.lam = aligned, ref, lam

    def forward(self, past_key_values: _Caches | None = None, **inputs: Any) -> _Output:
        cache = past_key_values
        one = self.aligned(past_key_values=None if cache is None else cache.aligned, **inputs)
        two = self.ref(past_key_values=None if cache is None else cache.ref, **inputs)
        return _Output(dera_logits(one.logits, two.logits, self.lam))


class DeRaEngine(HFEngine):
    """Samples from :func:`dera_logits` of two models, token by token; temperature, top-k and top-p come after the mixture.

    An engine like any other (:class:`rlkit.rollout.engine.Engine`): its log-probs are those of the mixture. ``lam`` may be changed between
    requests, so one engine serves a sweep. Weight updates go to the aligned model. Above 2 use top-p: extrapolation amplifies the noise of
    the tail.

    Raises:
        ConfigError: the models have different vocabularies.
    """

    def __init__(
        self, aligned: str, ref: str, lam: float, *, dtype: str = "float32", max_model_len: int = 1024
    ) -> None:
        super().__init__(aligned, dtype=dtype, max_model_len=max_model_len)
        try:
            other, _ = load_for(ref, getattr(torch, dtype), None, "the reference")
            other = other.to(self.device).eval().requires_grad_(False)
            tokens, others = self.tokenizer.get_vocab(), load_tokenizer(ref).get_vocab()
            if tokens != others:
                differ = sum(tokens.get(k) != others.get(k) for k in tokens.keys() | others.keys())
                raise ConfigError(
                    f"DeRa: {differ} tokens differ between the tokenizers of {aligned} and {ref}; both models need one "
                    "tokenizer."
                )
            sizes = [m.get_output_embeddings().weight.shape[0] for m in (self.lm, other)]
            if sizes[0] != sizes[1]:
                raise ConfigError(
                    f"DeRa: {aligned} has {sizes[0]} logits and {ref} {sizes[1]}; both models need one vocabulary. Resize the "
                    "embeddings of one of them."
                )
        except Exception:
            self.close()
            raise
        self.aligned = self.lm
        self.lm = _Mixture(self.aligned, other, lam)

    def _cache(self) -> _Caches:
        return _Caches(make_cache(self.aligned.config), make_cache(self.lm.ref.config))

    @property
    def lam(self) -> float:
        return float(self.lm.lam)

    @lam.setter
    def lam(self, value: float) -> None:
        with self._lock:  # a running batch finishes with its own
            self.lm.lam = value

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probs (temperature 1) of the sampled tokens under the mixture, nats."""
        out = []
        for r in rollouts:
            ids = torch.tensor([[*r.prompt.token_ids, *r.tokens]], device=self.device)
            with self._lock, torch.no_grad():
                logp = (
                    self.lm(input_ids=ids, use_cache=False, logits_to_keep=len(r.tokens) + 1)
                    .logits[0, :-1]
                    .log_softmax(-1)
                )
            token = logp.gather(-1, ids[0, -len(r.tokens) :, None])[:, 0].tolist() if r.tokens else []
            out.append([x for x, kept in zip(token, r.sampled, strict=True) if kept])
        return out

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        mixture = self.lm
        self.lm = self.aligned
        try:
            super().assign(tensors)
        finally:
            self.lm = mixture
