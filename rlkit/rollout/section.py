"""The section `rollout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlkit.bounds import Bounded, Count, Natural, NonNegative, Share
from rlkit.errors import ConfigError
from rlkit.objective.coefficients import Coefficient, Schedule
from rlkit.rollout.engine import EngineSpec, UpdateMode
from rlkit.rollout.hf import HF
from rlkit.rollout.interrupt import Interrupt
from rlkit.rollout.lengths import Lengths
from rlkit.rollout.player import EpisodeSpec
from rlkit.rollout.server import Serve
from rlkit.rollout.vllm import VLLM
from rlkit.values import Given, otherwise

ENGINES: dict[str, EngineSpec] = {"vllm": VLLM(), "hf": HF()}


@dataclass(frozen=True, kw_only=True)
class RolloutSection(Bounded):
    """How responses are collected.

    Attributes:
        engine: ``vllm``, ``hf`` (transformers only; for debuggers and machines without vLLM), or your own, ``{type: my_engine.py:Mine}``.
        prompts: prompt groups a step; 0: nothing is sampled, and the run trains on rows that are there (``data.pairs``, ``labelled``,
            ``demonstrations``). n: responses a prompt.
        max_lag: steps that generation may run ahead of training; 0 is strictly on-policy.
        pause: what a weight update does to running requests: ``wait`` for them; ``continue`` them under the new weights, which compute the
            tokens so far once more; ``keep`` them going with what the old weights have cached, which costs nothing and is less exact; or
            ``abort`` them and ask again. Each token carries the version that sampled it. ``engine: hf`` always waits.
        over: share of ``prompts`` that is started beyond them, so that a step need not wait for its longest responses: it takes the groups
            that finish first, and the others are continued for a later one (:class:`rlkit.rollout.collector.Collector` says what this
            does to the batch). overtake: steps' worth of younger groups that may go before an older one.
        seeded: every request has a seed of its own, so that its tokens depend neither on the batch nor on the number of engines, and a
            resumed run repeats them. For that, vLLM draws request by request and not with its fused samplers; false lets it use them.
        max_waste: groups that may be dropped and replaced in one step, as a multiple of ``prompts``.
        lengths: a curriculum over ``sampling.max_tokens``.
        interrupt: responses that take too long are told to answer.
        by_teacher: share of a step's prompts that the teacher answers in the place of the model that is trained, a number or a schedule
            (``{type: Linear, start_value: 1, end_value: 0, steps: 100}``); needs ``teacher: {type: Pool}``.
        episode: an ``async`` function of your own that holds a conversation with the model in the place of one response
            (:mod:`rlkit.rollout.episode`); ``max_model_len`` is then what a whole conversation may have.
        serve: the engines are an OpenAI-compatible server to the agents of episodes that take an ``endpoint``
            (:mod:`rlkit.rollout.endpoint`); ``{host: ..., port: ...}`` says where.
    """

    engine: Literal["vllm", "hf"] | EngineSpec = "vllm"
    prompts: Natural = 32
    n: Count = 8
    max_lag: Natural = 0
    pause: UpdateMode = "wait"
    over: Share = 0.0
    overtake: Count = 1
    seeded: bool = True
    max_waste: NonNegative = 10.0
    max_model_len: Count | None = None
    lengths: Lengths | None = None
    interrupt: Interrupt | None = None
    by_teacher: float | Coefficient = 0.0
    episode: Given[EpisodeSpec | None, EpisodeSpec | str | Callable[..., Any] | None] = otherwise(None)
    serve: bool | Serve = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.by_teacher
        if not (isinstance(share, Schedule) or (isinstance(share, int | float) and 0 <= share <= 1)):
            raise ConfigError(
                f"rollout.by_teacher is {share!r:.100}; it must be a share from 0 to 1, or a schedule, e.g. Linear."
            )
        if self.over and (self.pause not in ("continue", "keep") or not self.kind.lasting):
            raise ConfigError(
                f"rollout.over is {self.over}, but engine: {self.kind.label} with pause: {self.pause} waits for stragglers or "
                "loses them at every weight update. Set rollout.engine: vllm and rollout.pause: continue (or keep)."
            )

    def share_of_teacher(self, step: int) -> float:
        """``by_teacher`` in step ``step``, 0-based."""
        return self.by_teacher(step) if isinstance(self.by_teacher, Schedule) else float(self.by_teacher)  # type: ignore[arg-type]

    @property
    def kind(self) -> EngineSpec:
        """What ``engine`` stands for."""
        return ENGINES[self.engine] if isinstance(self.engine, str) else self.engine
