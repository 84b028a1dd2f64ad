"""Weights that go from the learner to engines on Ray by sockets: several engines, one that dies while it takes them, and its heir."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rlkit as rk
from rlkit.cluster import ray as on_ray
from rlkit.cluster.routes import Direct
from rlkit.cluster.start import route, start
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.data.tasks import Sorting
from rlkit.errors import WorkerError
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.model.tiny import make_tiny
from rlkit.model.wire import Announced, GlooGroup
from rlkit.rollout.engine import EngineSetup, EngineSpec, SimpleEngine
from rlkit.rollout.vllm_gpu import IpcTransfer, NcclTransfer
from rlkit.rollout.vllm_weights import BACKENDS, GlooTransfer, InProcessTransfer, Loading
from rlkit.types import Batch, Prompt, Rollout, Sampling


class Listener(SimpleEngine):
    """Scores one response by the weights that it was sent. The first one of which a file says so dies of its second run of tensors."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__()
        self.policy = PolicyModel(load_lm(setup.path)).eval()
        self.named = dict(self.policy.base.named_parameters())
        self.fatal = Path(setup.path) / "fatal"
        self.group: GlooGroup | None = None
        for p in self.named.values():
            torch.nn.init.zeros_(p)

    def meet(self, info: Mapping[str, Any]) -> None:
        told = dict(info)
        self.bucket, rank, world = told["bucket"], told["rank_offset"], told["world_size"]
        self.group = GlooGroup(told["master_address"], told["master_port"], rank, world, told["timeout"])

    def receive(self, info: Mapping[str, Any]) -> None:
        assert self.group is not None
        told = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        announced = (Announced(n, getattr(torch, d), tuple(s)) for n, d, s in told)
        for k, tensors in enumerate(self.group.receive(announced, self.bucket)):
            if k and self.fatal.exists():
                self.fatal.unlink()
                os._exit(1)
            self.assign(dict(tensors))

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.named[name].copy_(tensor)

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        row = Rollout(prompt, [4, 5, 6], [True] * 3, [0.0] * 3, [self.version] * 3, "length")
        with torch.no_grad():
            logp = evaluate_new(self.policy, Batch.from_rollouts([row]), sampling, frozenset()).logp.tolist()
        return [Rollout(prompt, [4, 5, 6], [True] * 3, logp, [self.version] * 3, "length") for _ in range(n)]


@dataclass(frozen=True)
class Listens(EngineSpec):
    meets = True

    def start(self, setup: EngineSetup) -> Listener:
        return Listener(setup)


def test_engines_have_the_learners_weights_whatever_dies_on_the_way(
    small: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    path = make_tiny(tmp_path / "m", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1)
    run = rk.load(
        {
            **small,
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {"lr": 1e-1},
            "peft": {"r": 4, "target_modules": ["q_proj"]},
            "cluster": {"engines": 2, "cpus": 0.3, "timeout": 20.0, "transfer": "gloo", "bucket_mib": 0.05},
        }
    )
    assert run.cluster is not None
    said: list[str] = []
    setup = run.learner_setup(str(path), frozenset())
    learners, engines = start(setup, Listens(), EngineSetup(path=str(path)), run.cluster, tmp_path, report=said.append)
    way = route(Listens(), run.cluster)
    assert way == Direct("gloo", 1, 52428, 600.0) and len(learners.buckets(False)) > 1
    sync = WeightSync(learners, engines, "wait", route=way)
    prompts = [Prompt("0", (3, 4, 5), "")]
    try:
        sent = []
        for version in (1, 2, 3):
            if version == 3:
                (path / "fatal").touch()
            sent.append(sync.publish(version)["sync/mib"])
            found = probe_parity(learners, engines, prompts, Sampling(), 1e-5, version)
            assert found["probe/max"] < 1e-5, version
            rows = engines.generate(prompts[0], 2, Sampling())
            learners.update(Batch.from_rollouts(rows), (1.0,), seed=0)
        assert sent[1] == sent[2] < sent[0]  # with an adapter, what it changes
        lost = [line for line in said if line.startswith("warning")]  # a slow start says what it waits for, too
        assert len(lost) == 1 and "engine" in lost[0] and not (path / "fatal").exists()
        sync.publish(4)
        while len(engines.up()) < 2:  # another has taken its place, and is up to date before it is asked
            engines._changed.acquire()
            engines._changed.wait(60)
            engines._changed.release()
        probe_parity(learners, engines, prompts, Sampling(), 1e-5, 4)
    finally:
        learners.close()
        engines.close()


class Sleeper(Listener):
    """One that leaves its device, and notes when."""

    def sleep(self, level: int) -> None:
        self.awake = False
        if level == 2:
            for p in self.named.values():
                torch.nn.init.zeros_(p)

    def wake(self, tags: Any) -> None:
        self.awake = True

    def abort(self) -> None: ...

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        if self.fatal.exists():
            self.fatal.unlink()
            os._exit(1)
        assert self.awake
        return super().answer(prompt, n, sampling)


@dataclass(frozen=True)
class Sleeps(EngineSpec):
    meets = True
    rests = True

    def start(self, setup: EngineSetup) -> Sleeper:
        return Sleeper(setup)


def test_devices_that_are_shared_are_given_back_when_an_engine_is_lost(
    small: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    """The places of a first fleet take nearly all of the cluster, so that a second one starts only once they are free."""
    import ray

    path = make_tiny(tmp_path / "m", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1)
    share = 0.4 * ray.cluster_resources()["CPU"]  # of an engine, and of a learner
    run = rk.load({**small, "cluster": {"cpus": share, "threads": 1, "timeout": 20.0, "colocate": True}})
    assert run.cluster is not None
    setup, prompt = run.learner_setup(str(path), frozenset()), Prompt("0", (3, 4, 5), "")
    for life in range(2):
        learners, engines = start(setup, Sleeps(), EngineSetup(path=str(path)), run.cluster, tmp_path)
        sync = WeightSync(learners, engines, "wait", route=route(Sleeps(), run.cluster))
        try:
            sync.publish(1)
            for _ in range(2):  # between them the learner has its turn, in which the engine loses its weights
                assert probe_parity(learners, engines, [prompt], Sampling(), 1e-5, 1)["probe/max"] < 1e-5
            if not life:
                (path / "fatal").touch()
                with pytest.raises(WorkerError, match=r"engine 0 died.*cluster.colocate starts it with its learner"):
                    engines.generate(prompt, 1, Sampling())
        finally:
            engines.close()
            learners.close()


@pytest.mark.skipif(
    "RLKIT_TENSOR_PARALLEL" not in os.environ, reason="vLLM's two workers take minutes on two cores: by hand"
)
def test_an_engine_of_two_devices_has_the_learners_weights(
    small: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    """By hand: ``RLKIT_TENSOR_PARALLEL=1 pytest tests/stack/test_transfer.py -k two_devices``; on a CPU, two processes of vLLM's."""
    path = make_tiny(tmp_path / "m", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=2)
    run = rk.load(
        {
            **small,
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {"lr": 1e-2},
            "rollout": {"engine": "vllm"},
            "cluster": {"engines": 1, "cpus": 0.3, "tensor_parallel": 2, "transfer": "gloo"},
        }
    )
    assert run.cluster is not None
    kind, setup = run.rollout.kind, run.learner_setup(str(path), frozenset())
    learners, engines = start(setup, kind, run.engine_setup(str(path), 128), run.cluster, tmp_path)
    way = route(kind, run.cluster)
    assert isinstance(way, Direct) and way.devices == 2
    sync = WeightSync(learners, engines, "wait", route=way)
    prompt = Prompt("0", (3, 4, 5), "")
    try:
        for version in (1, 2):
            sync.publish(version)
            found = probe_parity(learners, engines, [prompt], Sampling(max_tokens=8), 1e-4, version)
            assert found["probe/max"] < 1e-4
            learners.update(Batch.from_rollouts(engines.generate(prompt, 2, Sampling(max_tokens=8))), (1.0,), seed=0)
    finally:
        learners.close()
        engines.close()


def test_the_way_follows_from_the_cluster() -> None:
    def chosen(gpus: float, spec: EngineSpec | None = None, **cluster: Any) -> str:
        return on_ray.chosen_transfer(rk.Cluster(**cluster), spec or Listens(), gpus)

    class Plain(Listens):
        meets = False

    assert [chosen(gpus) for gpus in (0, 1, 0.5)] == ["store", "nccl", "store"]
    assert chosen(0.5, colocate=True) == "ipc" and chosen(0, colocate=True) == "store" and chosen(1, Plain()) == "store"
    assert chosen(0, transfer="gloo") == "gloo"
    for told, gpus, options in (
        ("needs a GPU for each engine", 0, {"transfer": "nccl"}),
        ("has 0.5 of one", 0.5, {"transfer": "nccl"}),
        ("here none do", 1, {"transfer": "ipc"}),
        ("object store alone", 1, {"transfer": "nccl", "spec": Plain()}),
    ):
        with pytest.raises(rk.ClusterError, match=told):
            chosen(gpus, **options)


def test_all_backends_load_alike_and_differ_in_how_tensors_come() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Known
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    classes = {"store": InProcessTransfer, "gloo": GlooTransfer, "nccl": NcclTransfer, "ipc": IpcTransfer}
    for name, cls in classes.items():
        assert Known._registry[BACKENDS[name][0]]() is cls and not cls.__abstractmethods__
        assert cls.start_weight_update is Loading.start_weight_update and cls.receive_weights is Loading.receive_weights
    assert NcclTransfer.init_transfer_engine is NCCLWeightTransferEngine.init_transfer_engine
    assert IpcTransfer.init_transfer_engine is IPCWeightTransferEngine.init_transfer_engine
