"""Rewards: plain Python functions whose parameters are filled by name."""

from rlkit.errors import RewardError
from rlkit.rewards.scoring import RewardSpec, Scorer

__all__ = ["RewardError", "RewardSpec", "Scorer"]
