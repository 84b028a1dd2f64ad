"""A control of your own: what is sampled from, as a function of the model's logits.

rlkit sample MODEL --prompt '3214>' --control '{type: examples/custom_control.py:MinP, least: 0.2}'
"""

import math
from dataclasses import dataclass

import torch

from rlkit.bounds import Share
from rlkit.rollout.control import Seen, Steering


@dataclass(frozen=True, kw_only=True)
class MinP(Steering):
    """Min-p sampling: no token that is less than ``least`` times as likely as the likeliest one (2407.01082)."""

    least: Share = 0.1

    def steer(self, logits: torch.Tensor, seen: Seen) -> torch.Tensor:
        floor = logits.amax(-1, keepdim=True) + math.log(max(self.least, 1e-30))
        return logits.masked_fill(logits < floor, -torch.inf)
