"""Starts the learners and the engines of a run: the only place that knows whether they are in this process or on Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlkit.cluster import ray
from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers, NoWorkers
from rlkit.cluster.routes import Direct, Route, Store
from rlkit.cluster.section import Cluster
from rlkit.cluster.turns import SharedTurns
from rlkit.learner.learner import Learner
from rlkit.learner.setup import LearnerSetup
from rlkit.rewards.grader import Grader
from rlkit.rewards.scoring import RewardSpec, Used
from rlkit.rewards.workers import Job, Waits
from rlkit.rollout.engine import EngineSetup, EngineSpec


def start(
    learning: LearnerSetup,
    spec: EngineSpec | None,
    generating: EngineSetup,
    cluster: Cluster | None,
    folder: Path,
    *,
    crew: ray.Crew | None = None,
    shares: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[LearnerGroup, EngineGroup]:
    """Learners and engines that answer; on Ray, which is connected, they are made side by side, of a ``crew`` if there is one already.

    ``spec``: None starts no engine. ``shares``: in this process the engine generates with the learner's own model. ``folder``: the run's.
    ``report`` hears of machines that do not see it, and of engines that are lost and started again.
    """
    if cluster is None:
        learner = Learner(learning)
        lm = learner.policy.base if shares else None
        engine = NoWorkers() if spec is None else LocalWorkers(spec.start(replace(generating, lm=lm)))
        return LearnerGroup(LocalWorkers(learner), learning), EngineGroup(engine)
    crew = crew or crew_of(spec, cluster, learning.deepspeed is not None)
    crew.start(learning, generating, folder, report)
    learners, engines = crew.learners, crew.engines
    # One that shares its device cannot be started while a learner fills it.
    restarts = 0 if cluster.colocate else cluster.restarts
    groups = LearnerGroup(learners, learning), EngineGroup(engines, restarts, report)
    if cluster.colocate and spec is not None:
        take_turns(*groups)
    return groups


def crew_of(spec: EngineSpec | None, cluster: Cluster, deepspeed: bool) -> ray.Crew:
    """The processes of learners and engines on Ray, which is connected; they import while there is no model yet."""
    return ray.Crew.of(spec, cluster, deepspeed)


def take_turns(learners: LearnerGroup, engines: EngineGroup) -> None:
    """Learners and engines share devices: learners are at work, engines sleep without weights."""
    everything = learners.buckets(True) == learners.buckets(False)
    engines.bound = True
    learners.turns = engines.turns = SharedTurns(engines, learners, level=2 if everything else 1)


def route(spec: EngineSpec | None, cluster: Cluster | None) -> Route:
    """The way of weights to the engines of a run: ``cluster.transfer``, or what suits the cluster, which is connected.

    Raises:
        ClusterError: it was asked for, but nothing here can do it.
    """
    if cluster is None or spec is None or (backend := ray.transfer(cluster, spec)) == "store":
        return Store()
    return Direct(backend, cluster.tensor_parallel, cluster.bucket_bytes, cluster.sync_timeout)


def beside(cluster: Cluster, engines: int, tensor_parallel: int, gpus: float | None) -> Cluster:
    """The same cluster for engines of another model, which take no weights of this run and share no device with its learners."""
    gpus = cluster.gpus if gpus is None else gpus
    return replace(
        cluster, engines=engines, tensor_parallel=tensor_parallel, gpus=gpus, transfer="store", colocate=False
    )


def begin_beside(
    spec: EngineSpec, setup: EngineSetup, cluster: Cluster | None, report: Callable[[str], None] = print
) -> tuple[EngineGroup, Callable[[], None]]:
    """Engines of another model (``cluster`` is that of :func:`beside`, and connected), and what waits until they answer; None: one in
    this process.
    """
    if cluster is None:
        return EngineGroup(LocalWorkers(spec.start(setup))), lambda: None
    engines = ray.begin_engines(spec, setup, cluster)
    return EngineGroup(engines, cluster.restarts, report), engines.started


def start_beside(
    spec: EngineSpec, setup: EngineSetup, cluster: Cluster | None, report: Callable[[str], None] = print
) -> EngineGroup:
    """The engines of :func:`begin_beside`, which answer."""
    engines, wait = begin_beside(spec, setup, cluster, report)
    try:
        wait()
    except BaseException:
        engines.close()
        raise
    return engines


def hosting(cluster: Cluster) -> Callable[[Job, RewardSpec, Grader, Used], Waits]:
    """How a reward that takes a share of the cluster gets its actor there, once the cluster is connected."""
    return lambda job, spec, grader, used: ray.HostedGrader(job, spec, grader, cluster, used)


def start_engines(spec: EngineSpec, setup: EngineSetup, cluster: Cluster | None) -> EngineGroup:
    """Engines without learners: one in this process, or those of a cluster, which is joined."""
    if cluster is None:
        return EngineGroup(LocalWorkers(spec.start(setup)))
    ray.connect(cluster, learners=0)
    return EngineGroup(ray.start_engines(spec, setup, cluster), cluster.restarts)
