"""What a run on Ray does when a part of it dies, is stopped or hangs; and who can reach the Ray that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from rlkit import heldout
from rlkit.cluster import ray as on_ray
from rlkit.cluster.groups import EngineGroup
from rlkit.cluster.local import is_open
from rlkit.cluster.ray import RayWorkers, start_engines
from rlkit.cluster.reaper import users
from rlkit.errors import EngineError
from rlkit.rollout.engine import EngineSetup, EngineSpec, SimpleEngine
from rlkit.run import Cluster, load
from rlkit.trainer import train
from rlkit.types import Prompt, Rollout, Sampling


def pid(workers: RayWorkers, index: int) -> int:
    import ray

    return int(ray.get(workers.actors[index].__ray_call__.remote(lambda self: os.getpid())))


def signal_to(number: signal.Signals) -> Callable[[RayWorkers, int], None]:
    return lambda workers, index: os.kill(pid(workers, index), number)


def end_ray(workers: RayWorkers, index: int) -> None:
    own = on_ray._own
    assert own is not None
    own._processes["gcs_server"][0].kill()
    while workers.lost(0) is None:
        time.sleep(0.1)


def strike(
    monkeypatch: pytest.MonkeyPatch, plan: dict[tuple[str, str, int], Callable[[RayWorkers, int], None]]
) -> dict[tuple[str, str, int], Callable[[RayWorkers, int], None]]:
    """Does what ``plan`` says to a worker before the ``k``-th call of a method of its kind; returns what is left to do."""
    counts: dict[tuple[str, str], int] = {}

    def before(name: str) -> None:
        original = getattr(RayWorkers, name)

        def struck(self: RayWorkers, first: Any, *rest: Any, **options: Any) -> Any:
            method = first if name == "call" else rest[0]
            counts[self.what, method] = k = counts.get((self.what, method), 0) + 1
            act = plan.pop((self.what, method, k), None)
            if act is not None:
                act(self, first if name == "one" else first[0] if name == "some" else 0)
            return original(self, first, *rest, **options)

        monkeypatch.setattr(RayWorkers, name, struck)

    for name in ("one", "some", "call"):
        before(name)
    return plan


def curve(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[r[k] for k in ("step", "reward/mean", "entropy/sampled", "batch/tokens", "batch/sequences")] for r in rows]


@pytest.fixture
def shaken(small: dict[str, Any]) -> dict[str, Any]:
    return {
        **small,
        "steps": 3,
        "cluster": {"cpus": 0.2, "engines": 2, "timeout": 8.0},
        "eval": {"prompts": 4, "every": 2},
        "probe": {"every": 1},
        "checkpoint": {"every": 1},
    }


def test_lost_engines_change_nothing(
    shaken: dict[str, Any], ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while it generates, stopped in a weight update, killed in an evaluation: the curve is that of an undisturbed run."""
    whole = train(load({**shaken, "name": "whole", "cluster": None}), quiet=True)
    left = strike(
        monkeypatch,
        {
            ("engine", "generate", 20): signal_to(signal.SIGKILL),
            ("engine", "load", 3): signal_to(signal.SIGSTOP),
        },
    )
    evaluations: list[int] = []

    def sample_and_score(engines: EngineGroup, *rest: Any) -> Any:
        while not engines.up():  # both may be starting again
            time.sleep(0.1)
        evaluations.append(engines.up()[0])
        if len(evaluations) == 3:
            signal_to(signal.SIGKILL)(engines.workers, evaluations[-1])  # type: ignore[arg-type]
        return original(engines, *rest)

    original = heldout.sample_and_score
    monkeypatch.setattr(heldout, "sample_and_score", sample_and_score)
    folder = train(load(shaken))
    told = capsys.readouterr().out
    assert not left and told.count("Starting it again") == 3 and told.count("gave no sign of life") == 1, told
    assert curve(folder) == [pytest.approx(row, abs=1e-4) for row in curve(whole)]


def test_lost_learners_and_a_lost_ray_go_back_to_the_last_checkpoint(
    shaken: dict[str, Any], ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**shaken, "cluster": {**shaken["cluster"], "engines": 1}}
    whole = train(load({**settings, "name": "whole", "cluster": None}), quiet=True)
    left = strike(
        monkeypatch,
        {
            ("learner", "step", 1): signal_to(signal.SIGKILL),  # before there is a checkpoint
            ("learner", "step", 3): end_ray,
        },
    )
    folder = train(load(settings))
    told = capsys.readouterr().out
    assert not left and told.count("start again from the last checkpoint") == 2, told
    assert curve(folder) == [pytest.approx(row, abs=1e-4) for row in curve(whole)]


class Sticky(SimpleEngine):
    """An engine whose requests get stuck once: not in its second life, which the file ``path`` remembers."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        if not self.path.exists():
            self.path.touch()
            time.sleep(600)
        if prompt.id == "fatal":
            raise EngineError("vLLM failed: out of memory")
        return [Rollout(prompt, [3], [True], [-1.0], [0], "stop")]

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        pass


@dataclass(frozen=True)
class Stuck(EngineSpec):
    def start(self, setup: EngineSetup) -> Sticky:
        return Sticky(setup.path)


def test_an_engine_that_is_stuck_or_has_failed_inside_is_started_again(tmp_path: Path, ray_session: None) -> None:
    cluster = Cluster(cpus=0.2, timeout=10.0, stall=1.0)
    said: list[str] = []
    engines = EngineGroup(start_engines(Stuck(), EngineSetup(path=str(tmp_path / "stuck")), cluster), 2, said.append)
    try:
        assert engines.generate(Prompt("0", (3,), ""), 1, Sampling())[0].tokens == [3]
        assert "got no further for 1 s (cluster.stall)" in said[0]
        with pytest.raises(EngineError, match=r"out of memory\. No engine is started again"):
            engines.generate(Prompt("fatal", (3,), ""), 1, Sampling())
        assert len(said) == 2
    finally:
        engines.close()


OWN = """
import sys, time
from rlkit.cluster import ray as on_ray
from rlkit.run import Cluster

on_ray.connect(Cluster(cpus=0.1))
import ray
actor = ray.remote(on_ray.LearnerHost).remote()
ray.get(actor.address.remote())
print(on_ray._own.folder, ray.get_runtime_context().gcs_address, flush=True)
time.sleep(600)
"""


def test_our_ray_answers_nobody_else_and_ends_with_its_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", OWN], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        folder, address = driver.stdout.readline().split()
        assert os.stat(folder).st_mode & 0o077 == 0 and os.stat(f"{folder}/token").st_mode & 0o077 == 0
        token = Path(folder, "token").read_text()
        running = [psutil.Process(p) for p in users(folder, driver.pid)]
        for process in running:
            with contextlib.suppress(psutil.Error):  # it has ended
                assert token not in " ".join([*process.cmdline(), *process.environ().values()])
        ports = {
            c.laddr.port
            for p in [psutil.Process(driver.pid), *running]
            for c in p.net_connections("tcp")
            if c.status == "LISTEN"
        }
        assert len(ports) > 5 and int(address.rpartition(":")[2]) in ports
        others = {
            a.address
            for found in psutil.net_if_addrs().values()
            for a in found
            if a.family == socket.AF_INET and not a.address.startswith("127.")
        }
        for host in others:
            for port in ports:
                with pytest.raises(OSError), socket.create_connection((host, port), timeout=5):
                    pass
        assert not is_open(address)  # it refuses a call without the token, which an open cluster answers
        driver.kill()
        driver.wait()
        while users(folder, driver.pid) or os.path.exists(folder):
            time.sleep(0.1)
    finally:
        driver.kill()
