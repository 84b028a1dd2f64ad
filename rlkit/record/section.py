"""The sections `checkpoint` and `log`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.bounds import Bounded, Natural, Positive


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Bounded):
    """When checkpoints are written and which are kept. One is also written at the last step and when the run is told to stop.

    Attributes:
        every: steps between checkpoints; null: by time alone; 0: none on the way, neither by steps nor by time.
        minutes: also when the last one is so old; null: by steps alone.
        keep: the newest so many are kept; 0: all. best: that with the best held-out score is kept beside them (with ``eval.every``).
        max_gib: the most that all of them take; null: half of the room that they and the free disk are. The newest is always kept.
        time_limit: minutes after which the run ends, with a checkpoint; null: none but Slurm's.
    """

    every: Natural | None = None
    minutes: Positive | None = 15.0
    keep: Natural = 2
    best: bool = True
    max_gib: Positive | None = None
    time_limit: Positive | None = None

    @property
    def seconds(self) -> float | None:
        """Between two checkpoints; None: time does not count."""
        return None if self.minutes is None or self.every == 0 else 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class LogSection(Bounded):
    """``metrics.jsonl`` is always written.

    Attributes:
        tensorboard: write ``tensorboard/``; null: where the package is installed.
        wandb: what ``wandb.init`` gets: ``{project: ...}``, ``{mode: offline}``.
        mlflow: ``tracking_uri``, ``experiment``, ``run_name``, ``tags``.
        rollouts: sampled responses kept per step, and of the same held-out prompts at every evaluation.
        tokens: ``rollouts.jsonl`` also has the tokens of prompts and responses with their log-probs, as ``data.stored`` reads them.
        breakdown: every so many steps, where KL and gradients come from (0: never).
        drift: every so many steps, how far the policy is from the start model (0: never; :mod:`rlkit.record.drift`).
        report: write ``report.html`` when the run ends or is stopped; it has curves, responses, configuration and alarms.
        trace: write ``trace.json``, a timeline of stages and prompt groups for Chrome's trace viewer.
    """

    tensorboard: bool | None = None
    wandb: dict[str, Any] | None = None
    mlflow: dict[str, Any] | None = None
    rollouts: Natural = 8
    tokens: bool = False
    breakdown: Natural = 10
    drift: Natural = 10
    report: bool = True
    trace: bool = False
