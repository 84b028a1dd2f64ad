"""A grader of your own: a reward that is an object with settings and a process of its own, where it may load what it needs once.

See custom_parts.yaml. What waits for something (a server, a model in a thread) waits side by side with all other calls.
"""

import functools
from dataclasses import dataclass

from rlkit import Grader


@dataclass(frozen=True, kw_only=True)
class Places(Grader):
    """The share of characters that stand in their places; of long answers only the first ``most`` count."""

    most: int = 10

    @functools.cached_property
    def weights(self) -> list[float]:
        """Stands for what takes long to load: it is made once, in the grader's process."""
        return [1.0 / self.most] * self.most

    def start(self) -> None:
        _ = self.weights

    async def __call__(self, response: str, answer: str) -> float:
        return sum(w * (a == b) for w, a, b in zip(self.weights, response, answer, strict=False))
