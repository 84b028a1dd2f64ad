"""Starts the learners and the engines of a run: the only place that knows whether they are in this process or on Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlkit.cluster import ray
from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers, NoWorkers
from rlkit.cluster.section import Cluster
from rlkit.learner.learner import Learner
from rlkit.learner.setup import LearnerSetup
from rlkit.rollout.engine import EngineSetup, EngineSpec


def start(
    learning: LearnerSetup,
    spec: EngineSpec | None,
    generating: EngineSetup,
    cluster: Cluster | None,
    folder: Path,
    *,
    shares: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[LearnerGroup, EngineGroup]:
    """Learners and engines that answer; on Ray, which is connected, they are made side by side.

    ``spec``: None starts no engine. ``shares``: in this process the engine generates with the learner's own model. ``folder``: where
    learners write checkpoints. ``report`` hears of engines that are lost and started again.

    Raises:
        ClusterError: a learner runs where ``folder`` is not seen.
    """
    if cluster is None:
        learner = Learner(learning)
        lm = learner.policy.base if shares else None
        engine = NoWorkers() if spec is None else LocalWorkers(spec.start(replace(generating, lm=lm)))
        return LearnerGroup(LocalWorkers(learner), learning), EngineGroup(engine)
    learners, engines = ray.start(learning, spec, generating, cluster)
    groups = LearnerGroup(learners, learning), EngineGroup(engines, cluster.restarts, report)
    ray.check_shared(learners, folder)
    return groups


def start_engines(spec: EngineSpec, setup: EngineSetup, cluster: Cluster | None) -> EngineGroup:
    """Engines without learners: one in this process, or those of a cluster, which is joined."""
    if cluster is None:
        return EngineGroup(LocalWorkers(spec.start(setup)))
    ray.connect(cluster, learners=0)
    return EngineGroup(ray.start_engines(spec, setup, cluster), cluster.restarts)
