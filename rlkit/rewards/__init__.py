"""Rewards: plain Python functions whose parameters are filled by name."""

from rlkit.rewards.scoring import RewardError, RewardSpec, Scorer

__all__ = ["RewardError", "RewardSpec", "Scorer"]
