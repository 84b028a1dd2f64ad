"""The straight line: prompts -> rollouts -> rewards -> log-probs -> advantages -> loss -> update -> weight sync.

Read :func:`train`; everything else in this file builds its parts or writes down what happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.build import Parts, build
from rlkit.log import RunLog, duration
from rlkit.objective import needs
from rlkit.objective.penalties import apply_penalties
from rlkit.run import Run
from rlkit.types import Batch, Rollout, Stats


def train(run: Run, *, resume: bool = False, quiet: bool = False) -> Path:
    """Trains as ``run`` says and returns the run folder; ``folder/"final"`` is the model.

    With ``resume`` the newest run of this name continues from its last complete checkpoint.

    Raises:
        ValueError: something is wrong with the configuration, the data, a reward or the cluster; says what to do.
    """
    with build(run, resume=resume, quiet=quiet) as p:
        step = p.restore()
        p.sync.publish(step)
        p.probe(step)
        p.evaluate(step)
        while step < run.steps:
            clock = Clock()
            with clock("generate"):
                rollouts = p.collector.next(step)
            with clock("annotate"):
                batch = make_batch(run, rollouts)
                p.learners.annotate(batch, p.before_update)
                if run.correction is not None:
                    run.correction(batch)
                apply_penalties(run.reward_penalties, batch, p.coefficients.of_penalties())
                batch.adv = run.advantage(batch)
            with clock("update"):
                stats = p.learners.update(batch, p.coefficients.of_terms(), seed=run.seed + step)
            step += 1
            with clock("sync"):
                p.sync.publish(step)
            stats.merge(summarize(rollouts, batch, clock)).update(p.collector.metrics())
            p.learners.after_step(step, stats)
            p.coefficients.update(stats)
            p.after_step(step, stats, rollouts)
        return p.finish(step)
'''
