"""rlkit: KL-regularized RL post-training of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {  # public name -> module; imported when first used
    "load": "rlkit.config",
    "to_yaml": "rlkit.config",
    "ConfigError": "rlkit.errors",
    "train": "rlkit.trainer",
    "Run": "rlkit.run",
    "Batch": "rlkit.types",
    "New": "rlkit.types",
    "Prompt": "rlkit.types",
    "Rollout": "rlkit.types",
    "Sampling": "rlkit.types",
    "Term": "rlkit.objective",
    **dict.fromkeys(
        (
            "PPOClip",
            "ISGradient",
            "Reinforce",
            "CISPO",
            "GSPO",
            "SAPO",
            "GMPO",
            "DPPO",
            "RPG",
            "PMD",
            "AStar",
            "REBEL",
            "NLL",
            "Entropy",
            "ValueMSE",
        ),
        "rlkit.objective.losses",
    ),
    **dict.fromkeys(("Divergence", "KL", "Mixture"), "rlkit.objective.divergences"),
    "FullDivergence": "rlkit.objective.full_vocab",
    **dict.fromkeys(
        ("Plain", "GroupMean", "GroupNorm", "RLOO", "ReinforcePlusPlus", "LogMeanExp", "GAE", "TokenKL"),
        "rlkit.objective.advantages",
    ),
    **dict.fromkeys(
        (
            "Constant",
            "Linear",
            "Cosine",
            "Step",
            "AdaptiveKL",
            "KLBudget",
            "DualAscent",
            "EntropyTarget",
            "AccuracyScaled",
            "DifficultyWeighted",
            "RewardMasked",
        ),
        "rlkit.objective.coefficients",
    ),
    **dict.fromkeys(("KLReward", "DivergenceReward"), "rlkit.objective.penalties"),
    "RewardSpec": "rlkit.rewards",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from rlkit.config import load as load
    from rlkit.trainer import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
