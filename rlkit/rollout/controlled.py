"""An engine whose model is under a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlkit.errors import ConfigError
from rlkit.rollout.control import Control, CopT, Steering
from rlkit.rollout.copt import CopTEngine
from rlkit.rollout.engine import Engine, EngineSetup, EngineSpec
from rlkit.rollout.hf import HF
from rlkit.rollout.steered import SteeredEngine
from rlkit.rollout.vllm import VLLM, environment, require_vllm


@dataclass(frozen=True, kw_only=True)
class Controlled(EngineSpec):
    """``rollout.engine: {type: Controlled, engine: vllm, control: {type: DeRa, reference: BASE, lam: 1.5}}``.

    Requests end before a weight update, and weights come through the driver. Of a run that trains, the log-probs of what was sampled are
    those of the controlled distribution, and the learner's are the model's own: train on them with a term that knows the difference (an
    importance weight), as MiniLLM does with a :class:`rlkit.rollout.control.Blend`.

    Attributes:
        engine: which one samples. control: what it samples from.
    """

    engine: Literal["vllm", "hf"] = "vllm"
    control: Control

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.control).__name__
        if self.engine not in self.control.engines:
            raise ConfigError(
                f"{name} needs a second pass within a step, which {self.engine} has no place for: use engine: hf."
            )
        if not isinstance(self.control, Steering | CopT):
            raise ConfigError(f"{name} is a control, but no Steering: make it a subclass of that.")

    @property
    def label(self) -> str:
        return f"{self.engine} under {type(self.control).__name__}"

    def start(self, setup: EngineSetup) -> Engine:
        self.control.check(setup.path)
        if isinstance(self.control, CopT):
            return CopTEngine(setup.path, self.control, dtype=setup.dtype, max_model_len=setup.max_model_len)
        assert isinstance(self.control, Steering)
        if self.engine == "hf":
            return SteeredEngine(setup.path, self.control, dtype=setup.dtype, max_model_len=setup.max_model_len)
        require_vllm()
        from rlkit.rollout.vllm_steering import start

        return start(setup, self.control)

    def prepare(self) -> None:
        kind: EngineSpec = VLLM() if self.engine == "vllm" else HF()
        kind.prepare()

    def environment(self) -> dict[str, str]:
        return environment() if self.engine == "vllm" else {}
