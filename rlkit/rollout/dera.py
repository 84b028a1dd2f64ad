"""Decoding-time realignment: an engine that samples from a mixture of two models, as if it were trained with another KL coefficient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlkit.rollout.control import DeRa, dera_logits
from rlkit.rollout.steered import SteeredEngine

__all__ = ["DeRaEngine", "dera_logits"]


class DeRaEngine(SteeredEngine):
    """Samples under :class:`rlkit.rollout.control.DeRa`, token by token; temperature, top-k and top-p come after the mixture.

    An engine like any other (:class:`rlkit.rollout.engine.Engine`): its log-probs are those of the mixture. ``lam`` may be changed between
    requests, so one engine serves a sweep. Weight updates go to the aligned model. Above 2 use top-p: extrapolation amplifies the noise of
    the tail.

    Raises:
        ConfigError: the models have different vocabularies.
    """

    def __init__(
        self, aligned: str, ref: str, lam: float, *, dtype: str = "float32", max_model_len: int = 1024
    ) -> None:
        super().__init__(aligned, DeRa(reference=ref, lam=lam), dtype=dtype, max_model_len=max_model_len)

    @property
    def aligned(self) -> Any:
        return self.own

    @property
    def ref(self) -> Any:
        return self.companions[0]

    @property
    def lam(self) -> float:
        assert isinstance(self.control, DeRa)
        return self.control.lam

    @lam.setter
    def lam(self, value: float) -> None:
        assert isinstance(self.control, DeRa)
        self.control = replace(self.control, lam=value)
