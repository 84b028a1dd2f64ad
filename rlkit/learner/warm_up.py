"""Supervised training on demonstrations: what a tiny model gets before RL, so that it can be rewarded at all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlkit.errors import NumericsError
from rlkit.learner.backend import TorchBackend
from rlkit.learner.plan import MOST_TOKENS, optimizer_steps
from rlkit.learner.section import LearnerSection
from rlkit.model.endings import Endings
from rlkit.model.load import load_for
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.model.section import WarmUp
from rlkit.objective import loss
from rlkit.objective.losses import NLL
from rlkit.types import Batch, Prompt, Rollout, Sampling


def demonstration_batch(pairs: Sequence[tuple[Prompt, list[int]]]) -> Batch:
    """Prompts with the response tokens to imitate."""
    return Batch.from_rollouts(
        [Rollout.given(prompt, tokens, source="dataset", group=i) for i, (prompt, tokens) in enumerate(pairs)]
    )


def warm_up(
    path: Path,
    spec: WarmUp,
    prompts: Sequence[Prompt],
    demonstrate: Callable[[Prompt, random.Random], str],
    tokenizer: Any,
    seed: int,
    report: Callable[[int, float], None],
) -> float:
    """Trains the model in ``path`` in place for ``spec.steps`` steps; returns the last loss (nats per token).

    ``demonstrate(prompt, rng)`` writes a response; the token that ends it is appended here.

    Raises:
        NumericsError: a loss or gradient that is not finite; the model in ``path`` stays as it was.
    """
    end = Endings.of(path, tokenizer).last
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = PolicyModel(load_for(path, torch.float32, None)[0]).train()
    section = LearnerSection(lr=spec.lr, schedule="linear", warmup_steps=min(10, spec.steps), final_lr=0.1)
    backend = TorchBackend(model, section, spec.steps)
    objective = (NLL(on="dataset"),)
    value = float("nan")
    for step in range(spec.steps):
        rows = [rng.choice(prompts) for _ in range(spec.batch)]
        texts = [demonstrate(p, rng) for p in rows]
        pairs = [
            (p, [*tokenizer(t, add_special_tokens=False)["input_ids"], end]) for p, t in zip(rows, texts, strict=True)
        ]
        [[micros]] = optimizer_steps(
            demonstration_batch(pairs), objective, epochs=1, count=1, ranks=1, max_tokens=MOST_TOKENS, seed=0
        )
        value = 0.0
        for k, micro in enumerate(micros):
            share, _ = loss(objective, evaluate_new(backend, micro, Sampling(), frozenset()), micro, (1.0,))
            backend.backward(share, last=k == len(micros) - 1)
            value += float(share.detach())
        if not math.isfinite(value) or not math.isfinite(backend.step()):
            raise NumericsError(
                f"model.warm_up: loss or gradient of step {step + 1} is not finite. Nothing was written; lower model.warm_up.lr "
                f"({spec.lr:g}), or look at the demonstrations of the task."
            )
        report(step + 1, value)
    model.base.save_pretrained(path)
    return value
