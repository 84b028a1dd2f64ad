"""The part of rlkit that knows Ray: starting or joining a cluster, and actors around learners and engines."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlkit.errors import ClusterError, WorkerError, WorkerTimeout
from rlkit.learner.backend import free_port, rank_environment
from rlkit.run import Cluster, Run

REQUESTS = 1024  # groups that an engine works on at the same time; vLLM runs at most so many responses by default


def import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError(
            "cluster: is set, but ray is not installed. Install it with: pip install 'rlkit[cpu]' (or "
            "rlkit[gpu]), or set cluster: null to run in one process."
        ) from None
    return ray


def connect(cluster: Cluster, learners: int | None = None) -> None:
    """Starts a local cluster, or joins the one at ``cluster.address``; checks that the run fits on it.

    ``learners``: how many there will be, if not ``cluster.learners`` (evaluation has none).

    Raises:
        ValueError: the cluster does not answer, or it has too few CPUs or GPUs.
    """
    ray = import_ray()
    if not ray.is_initialized():
        common: dict[str, Any] = {
            "include_dashboard": False,
            "log_to_driver": bool(os.environ.get("RLKIT_RAY_LOGS")),
            "logging_level": "ERROR",
            "configure_logging": True,
        }
        if cluster.address is None:
            ray.init(address="local", object_store_memory=_store_bytes(), **common)
        else:
            common.pop("include_dashboard")
            try:
                _knock(cluster.address)
                ray.init(address=cluster.address, **common)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise ClusterError(
                    f"cluster.address: no Ray cluster answers at {cluster.address!r} "
                    f"({str(error).splitlines()[0]}). Start one with `ray start --head`, correct the "
                    "address, or set cluster.address: null to start a local one."
                ) from error
    check_resources(cluster, ray.cluster_resources(), learners)


def _knock(address: str) -> None:
    """Raises OSError at once if nobody listens there; Ray would try again for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _store_bytes() -> int:
    """Room for a few copies of a small model; Ray's default takes 30 % of the machine."""
    import psutil

    return int(max(200 << 20, min(psutil.virtual_memory().total // 10, 8 << 30)))


def gpus_per_device(cluster: Cluster, resources: dict[str, float]) -> float:
    return (1.0 if resources.get("GPU", 0) else 0.0) if cluster.gpus is None else cluster.gpus


def check_resources(cluster: Cluster, resources: dict[str, float], learners: int | None = None) -> None:
    """Raises ValueError if the engines and learners of the run (or so many ``learners``) do not fit on the cluster."""
    learners = cluster.learners if learners is None else learners
    gpus = gpus_per_device(cluster, resources)
    workers = cluster.engines + learners
    want_cpu = cluster.cpus * workers
    want_gpu = gpus * (cluster.engines * cluster.tensor_parallel + learners)
    layout = f"{cluster.engines} engine(s) of {cluster.tensor_parallel} device(s) and {learners} learner(s)"
    if want_cpu > resources.get("CPU", 0) + 1e-6:
        raise ClusterError(
            f"cluster: {layout} need {want_cpu:g} CPUs, but the cluster has {resources.get('CPU', 0):g}. "
            f"Use fewer workers, or set cluster.cpus to at most {resources.get('CPU', 0) / workers:.2g} "
            "so that they share."
        )
    if want_gpu > resources.get("GPU", 0) + 1e-6:
        raise ClusterError(
            f"cluster: {layout} need {want_gpu:g} GPUs, but the cluster has {resources.get('GPU', 0):g}. "
            "Use fewer workers, or set cluster.gpus to a fraction so that they share devices."
        )


class RayWorkers:
    """Actors of one kind. A call that fails, or that answers later than ``timeout``, ends the run with its cause."""

    def __init__(self, actors: Sequence[Any], timeout: float, what: str) -> None:
        self.actors, self.size, self.timeout, self.what = list(actors), len(actors), timeout, what

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        refs = [a.do.remote(method, *(each[i] if each else args)) for i, a in enumerate(self.actors)]
        return self.get(refs, method)

    def handles(self, method: str, *args: Any) -> list[Any]:
        return [a.do.remote(method, *args) for a in self.actors]

    def one(self, index: int, method: str, *args: Any) -> Any:
        """For the requests of many threads: they wait in an engine as long as they need, and never keep it from answering ``call``."""
        return self.get(
            [self.actors[index].do.options(concurrency_group="requests").remote(method, *args)], method, timeout=None
        )[0]

    def busy(self) -> float:
        return sum(self.get([a.busy.remote() for a in self.actors], "busy")) / self.size

    def get(self, refs: list[Any], method: str, timeout: float | None = -1) -> list[Any]:
        """Results of ``refs``; errors of workers come back as what was raised there."""
        ray = import_ray()
        try:
            return ray.get(refs, timeout=self.timeout if timeout == -1 else timeout)
        except ray.exceptions.GetTimeoutError:
            raise WorkerTimeout(
                f"{self.what}.{method} gave no answer within {self.timeout:g} s. A worker hangs or is "
                "still waiting for resources; raise cluster.timeout if it is only slow."
            ) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from error
        except ray.exceptions.RayActorError as error:
            raise WorkerError(
                f"a {self.what} worker died during {method}: {str(error).strip().splitlines()[0]} "
                "Its log is in Ray's session folder; `rlkit train ... --resume` continues from the last "
                "checkpoint."
            ) from error

    def close(self) -> None:
        ray = import_ray()
        for actor in self.actors:
            ray.kill(actor, no_restart=True)


class Host:
    """The one actor class: holds a learner rank or an engine, and calls its methods by name."""

    def address(self) -> tuple[str, int]:
        """Where rank 0 listens for the others."""
        return import_ray().util.get_node_ip_address(), free_port()

    def build(self, make: Callable[..., Any], env: dict[str, str], *args: Any, **kwargs: Any) -> Any:
        """Makes the worker; ``env`` is set before anything heavy is imported."""
        os.environ.update(env)
        self.seconds = 0.0
        self.worker = make(*args, **kwargs)
        return self.worker.ready()

    def do(self, method: str, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return getattr(self.worker, method)(*args)
        finally:
            self.seconds += time.perf_counter() - start

    def busy(self) -> float:
        """Seconds in ``do``; calls that run side by side (an engine's) count each by itself."""
        return self.seconds


def make_learner(run: Run, model_path: str, needs: frozenset[str], rank: int, world: int) -> Any:
    import torch

    assert run.cluster is not None
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(run.cluster.cpus)))
    from rlkit.learner.learner import Learner

    return Learner(run, model_path, needs, rank, world)


def _quiet(cluster: Cluster) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(max(1, int(cluster.cpus))), "TOKENIZERS_PARALLELISM": "false"}


def _spawn_engines(
    cluster: Cluster, model_path: str, make_engine: Callable[..., Any], env: dict[str, str], args: dict[str, Any]
) -> tuple[RayWorkers, list[Any]]:
    """Actors for the engines, and what to wait for until they are built."""
    ray = import_ray()
    gpus = gpus_per_device(cluster, ray.cluster_resources())
    actor = ray.remote(concurrency_groups={"requests": REQUESTS})(Host)
    actors = [
        actor.options(
            num_cpus=cluster.cpus,
            num_gpus=gpus * cluster.tensor_parallel,
            max_concurrency=2,
            runtime_env={"env_vars": {**_quiet(cluster), **env}},
        ).remote()
        for _ in range(cluster.engines)
    ]
    return RayWorkers(actors, cluster.timeout, "engine"), [
        a.build.remote(make_engine, env, model_path, **args) for a in actors
    ]


def start_engines(
    cluster: Cluster, model_path: str, make_engine: Callable[..., Any], env: dict[str, str], args: dict[str, Any]
) -> RayWorkers:
    """Engines without learners, for evaluation."""
    engines, building = _spawn_engines(cluster, model_path, make_engine, env, args)
    engines.get(building, "start")
    return engines


def start(
    run: Run,
    model_path: str,
    needs: frozenset[str],
    make_engine: Callable[..., Any],
    engine_env: dict[str, str],
    engine_args: dict[str, Any],
) -> tuple[RayWorkers, RayWorkers]:
    """Actors for all learners and engines of a run, built side by side: ``(learners, engines)``."""
    ray = import_ray()
    cluster = run.cluster
    assert cluster is not None
    gpus = gpus_per_device(cluster, ray.cluster_resources())
    engines, building = _spawn_engines(cluster, model_path, make_engine, engine_env, engine_args)
    learners = [
        ray.remote(Host)
        .options(num_cpus=cluster.cpus, num_gpus=gpus, runtime_env={"env_vars": _quiet(cluster)})
        .remote()
        for _ in range(cluster.learners)
    ]
    groups = (RayWorkers(learners, cluster.timeout, "learner"), engines)
    master, port = groups[0].get([learners[0].address.remote()], "address")[0]
    building += [
        a.build.remote(
            make_learner,
            rank_environment(rank, cluster.learners, master, port),
            run,
            model_path,
            needs,
            rank,
            cluster.learners,
        )
        for rank, a in enumerate(learners)
    ]
    groups[0].get(building, "start")
    return groups
