"""A teacher in engines of its own, which say how likely the tokens of a row are, and which are the most likely ones in each place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlkit.bounds import Count, NonNegative
from rlkit.errors import ModelError
from rlkit.model.hub import model_config
from rlkit.model.reference import Dtype, Reference, ReferenceState, Trained
from rlkit.objective.full_vocab import Head
from rlkit.place import Place
from rlkit.rollout.engine import EngineSetup, EngineSpec
from rlkit.rollout.hf import HF
from rlkit.rollout.vllm import VLLM, check_options
from rlkit.types import Batch, Sampling


class _OverHidden(ReferenceState):
    """The output layer of a model whose hidden states come with the batch."""

    def __init__(self, spec: Pool, trained: Trained) -> None:
        model = trained.load_frozen(spec.path, spec.dtype)
        # The layer alone is kept.
        self.layer, self.fp32 = model.output.to(trained.device), model.fp32_head

    def _hidden(self, b: Batch) -> Tensor:
        [parts] = b.whole.values()
        return parts["hidden"].to(self.layer.weight.dtype)

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        assert b.ids is not None and b.action is not None
        with torch.no_grad():
            logp: Tensor = self.layer(
                self._hidden(b),
                target=b.ids[b.action],
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                fp32=self.fp32,
            )[0]
        return logp

    def head(self, b: Batch) -> Head:
        return self.layer.over(self._hidden(b))


@dataclass(frozen=True, kw_only=True)
class Pool(Reference):
    """A model in engines of this run beside those that sample, each an actor of Ray's with devices of its own (``cluster``); without a
    cluster one ``hf`` engine in this process.

    Attributes:
        path: the model; its tokenizer must be the policy's. dtype: of its weights; null: ``model.dtype``.
        engine: ``vllm`` or ``hf``. vllm: settings of vLLM's engines. engines: how many there are. tensor_parallel: devices of each.
        gpus: GPUs of each device; null: as ``cluster.gpus``.
        precompute: that of :class:`rlkit.model.reference.Frozen`; where the file is there, no engine starts.
        sends: ``likely``: log-probs at temperature 1, of the tokens and, for ``FullDivergence`` with ``top_k: K``, of the K most likely
            ones, the rest as one. ``hidden`` (``engine: hf``): hidden states, over which each learner has a copy of the model's output
            layer: then all distributions are there, at any temperature, for as many numbers a token as the model is wide.

    It is asked once for each batch. A model that is too large for one device belongs here: a ``Frozen`` one is whole on every rank of the
    learner.
    """

    path: Place
    dtype: Dtype | None = None
    engine: Literal["vllm", "hf"] = "vllm"
    engines: Count = 1
    tensor_parallel: Count = 1
    gpus: NonNegative | None = None
    vllm: dict[str, Any] = field(default_factory=dict)
    sends: Literal["likely", "hidden"] = "likely"
    precompute: Place | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "vllm":
            check_options(self.vllm)
        elif self.vllm:
            raise ModelError("Pool.vllm is set, but its engine is hf. Leave it out, or set engine: vllm.")
        if self.whole and (self.engine == "vllm" or self.precompute is not None):
            raise ModelError(
                "Pool.sends is hidden, which vLLM cannot and no file keeps: set sends: likely, or engine: hf without precompute."
            )

    @property
    def whole(self) -> bool:
        return self.sends == "hidden"

    @property
    def asked(self) -> bool:
        return not self.whole

    @property
    def pooled(self) -> bool:
        return True

    @property
    def models(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def kept(self) -> str | None:
        return self.precompute

    @property
    def kind(self) -> EngineSpec:
        return VLLM() if self.engine == "vllm" else HF()

    @property
    def classes(self) -> int:
        """How many tokens its model tells apart."""
        return int(model_config(self.path, "path of a pool").get_text_config().vocab_size)

    def setup(self, own: EngineSetup, k: int) -> EngineSetup:
        """What its engines need to know, as far as it differs from what the run's ``own`` do; they are asked for ``k`` tokens."""
        return dataclasses.replace(
            own,
            path=self.path,
            dtype=self.dtype or own.dtype,
            max_model_len=own.max_model_len + 1,  # vLLM samples a token behind every row
            tensor_parallel=self.tensor_parallel,
            options={"max_logprobs": max(20, k), **self.vllm},
        )

    def build(self, trained: Trained) -> ReferenceState:
        return _OverHidden(self, trained)
