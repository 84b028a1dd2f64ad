"""An order of prompts of your own. See custom_parts.yaml."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit import Prompt, Sampler
from rlkit.data.statistics import PromptStatistics


@dataclass(frozen=True, kw_only=True)
class LeastAsked(Sampler):
    """One of the prompts that were asked least often."""

    def choose(self, prompts: Sequence[Prompt], statistics: PromptStatistics, rng: random.Random) -> int:
        asked = statistics["groups"]
        return int(rng.choice(np.flatnonzero(asked == asked.min())))
