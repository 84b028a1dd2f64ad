"""Responses of which some are the teacher's: whose tokens a run trains on, decided prompt by prompt."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from rlkit.rollout.engine import Generates
from rlkit.types import Prompt, Rollout, Sampling


@dataclass
class Taught:
    """Engines of the student and of the teacher as one: of a step's prompts the teacher answers ``share(step)``, each with all responses.

    Its tokens carry its own log-probs, which are those of what was sampled from, and the version of the step, because a teacher does not
    age. With a seed it depends on the prompt group alone who answers, so that a resumed run repeats it.

    Source: GKD 2306.13649 (lambda, there one draw for a whole batch; here one for each prompt, so that every batch holds its share).
    """

    student: Generates
    teacher: Generates
    share: Callable[[int], float]
    step: int = 0  # that is being sampled for; the driver counts

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        step = self.step
        if self._drawn(prompt, sampling) >= self.share(step):
            return self.student.generate(prompt, n, sampling)
        group = self.teacher.generate(prompt, n, sampling)
        for r in group:
            r.version = [step] * len(r.tokens)
        return group

    @staticmethod
    def _drawn(prompt: Prompt, sampling: Sampling) -> float:
        """A number in [0, 1)."""
        if sampling.seed is None:
            return random.random()
        key = f"{sampling.seed}/teacher/{prompt.id}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 2**56
