"""The sections `learner` and `critic`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlkit.bounds import Bounded, Count, Decay, Natural, NonNegative, Positive
from rlkit.place import Place


@dataclass(frozen=True, kw_only=True)
class LearnerSection(Bounded):
    """The optimizer and how a batch is cut.

    Attributes:
        lr: peak learning rate. schedule: its shape after ``warmup_steps`` (linear warm-up), down to ``final_lr`` * lr.
        weight_decay, betas, eps: of AdamW. max_grad_norm: gradients are scaled down to this norm; 0: they are not.
        epochs, minibatches: optimizer steps a rollout batch = epochs * minibatches.
        max_tokens: tokens of one micro-batch on one rank, padding included; changes memory and speed, never the result. null: 16,384 on
            GPUs, and on CPUs, which are nearly as fast with few, as many as keep about 192 MiB for the backward pass, or 1,024
            where those keep at most 768 MiB, or as keep 768 MiB.
        packed: micro-batches without padding, with prompts shared by their responses (:mod:`rlkit.model.packed`). null: if the model allows
            it, and gives the same hidden states as padded where it is loaded.
        gradient_checkpointing: activations are computed again in the backward pass: less memory, about a third more time.
        sequence_parallel: ranks that share the tokens of each micro-batch, for long responses (:mod:`rlkit.model.sharing`); it divides
            ``cluster.learners``, and ``max_tokens`` are those of all of them together.
        max_skipped: a gradient that is not finite skips its optimizer step; so many in a row end the run.
    """

    lr: NonNegative = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Natural = 0
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0
    epochs: Count = 1
    minibatches: Count = 1
    max_tokens: Count | None = None
    packed: bool | None = None
    gradient_checkpointing: bool = False
    sequence_parallel: Count = 1
    max_skipped: Count = 3


@dataclass(frozen=True, kw_only=True)
class Critic(Bounded):
    """A value model of its own, for advantages that need values (GAE). Without this section, the value is a linear head on the policy.

    Attributes:
        path: where it starts; null: the same weights as the policy. lr: null: ``learner.lr``.
    """

    path: Place | None = None
    lr: NonNegative | None = None
