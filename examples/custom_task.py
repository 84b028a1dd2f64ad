"""A task of your own: questions with exact answers, made and not read. See custom_parts.yaml."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlkit import Task


@dataclass(frozen=True, kw_only=True)
class Reversing(Task):
    """``abca>`` asks for the letters from behind."""

    alphabet: ClassVar[str] = "abcd>"  # of a model that the run makes
    length: int = 4
    mistakes: float = 0.7

    def question(self, rng: random.Random) -> dict[str, Any]:
        letters = "".join(rng.choices("abcd", k=self.length))
        return {"prompt": letters + ">", "answer": letters[::-1]}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:  # for a warm-up; else the answer itself
        answer = str(row["answer"])
        return "".join(rng.sample(answer, len(answer))) if rng.random() < self.mistakes else answer
