"""The sections `cluster` and `probe`."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.bounds import Bounded, Count, Natural, NonNegative, Positive
from rlkit.rollout.engine import Transfer


@dataclass(frozen=True, kw_only=True)
class Cluster(Bounded):
    """Runs on Ray. ``address: null`` starts a local cluster; else ``auto`` or ``host:port`` of an existing one.

    Attributes:
        engines: number of vLLM engines, each of ``tensor_parallel`` devices. learners: number of training ranks.
        cpus: logical CPUs that Ray reserves for each actor. threads: of each actor's arithmetic on a CPU; null: as many as ``cpus``, at
            least one. With ``max_lag: 0`` engines and learners work in turns, so on one machine each may have all cores.
        gpus: GPUs of each learner and of each engine device; null takes 1 where the cluster has GPUs, else 0.
        timeout: seconds without a sign of life after which an engine or a learner is lost, or, before the first one, the cluster has no
            room for it (a minute is granted in any case). How long an answer takes does not matter.
        stall: seconds that one may be alive without getting further with what it was asked to do (a step of an engine, a micro-batch).
        restarts: how often in a run a lost engine is started again, and how often the learners are, from the last checkpoint.
        transfer: how weights go to vLLM engines. ``store``: through Ray's object store, which works everywhere. ``nccl``: between GPUs;
            each engine and learner has its own. ``ipc``: within a GPU that engine and learner share. ``gloo``: over sockets, on every
            device. null: ``nccl`` where each has a GPU of its own, else ``store``.
        bucket_mib: MiB of weights that are gathered and travel at a time; two such pieces exist at once on each side.
        sync_timeout: seconds that weights may take to arrive.
        colocate: engine and learner of one number share a device and take turns on it: as many of each, no ``tensor_parallel``, no lag.
            ``vllm.gpu_memory_utilization`` is what an engine takes in its turn.
    """

    address: str | None = None
    engines: Count = 1
    tensor_parallel: Count = 1
    learners: Count = 1
    cpus: NonNegative = 1.0
    threads: Count | None = None
    gpus: NonNegative | None = None
    timeout: Positive = 300.0
    stall: Positive = 1800.0
    restarts: Natural = 3
    transfer: Transfer | None = None
    bucket_mib: Positive = 64.0
    sync_timeout: Positive = 600.0
    colocate: bool = False

    @property
    def arithmetic(self) -> int:
        """Threads of an actor's arithmetic on a CPU."""
        return max(1, int(self.cpus)) if self.threads is None else self.threads

    @property
    def bucket_bytes(self) -> int:
        return int(self.bucket_mib * 2**20)


@dataclass(frozen=True, kw_only=True)
class Probe(Bounded):
    """The parity probe: engine and learner must agree on log-probs after a weight sync, else the run stops.

    Attributes:
        every: steps between probes; the first sync is always probed; 0 probes only that one.
        tolerance: largest mean |difference| in nats. null: 1e-3 in float32, 0.05 in bfloat16.
        final: load the exported model again at the end and compare it with the trained one; costs a load of the model.
    """

    every: Natural = 50
    tolerance: Positive | None = None
    final: bool = True
