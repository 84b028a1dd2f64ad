"""An engine whose model is under a control."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.rollout.control import Control, EngineName
from rlkit.rollout.engine import Engine, EngineSetup, EngineSpec
from rlkit.rollout.vllm import environment


@dataclass(frozen=True, kw_only=True)
class Controlled(EngineSpec):
    """``rollout.engine: {type: Controlled, engine: vllm, control: {type: DeRa, reference: BASE, lam: 1.5}}``.

    Requests end before a weight update, and weights come through the driver. Of a run that trains, the log-probs of what was sampled are
    those of the controlled distribution, and the learner's are the model's own: train on them with a term that knows the difference (an
    importance weight), as MiniLLM does with a :class:`rlkit.rollout.control.Blend`.
    """

    engine: EngineName = "vllm"
    control: Control

    @property
    def label(self) -> str:
        return f"{self.engine} under {type(self.control).__name__}"

    def start(self, setup: EngineSetup) -> Engine:
        return self.control.start(setup, self.engine)

    def environment(self) -> dict[str, str]:
        return environment() if self.engine == "vllm" else {}
