"""Lost workers, without Ray: who notices, who hears of it, what is asked again, and which weights the newcomer gets."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkit.cluster import reaper
from rlkit.cluster.groups import EngineGroup
from rlkit.cluster.ray import Asked, RayWorkers, told_regularly
from rlkit.cluster.sync import WeightSync
from rlkit.cluster.watch import Pulse, Watch
from rlkit.data.curriculum import Shuffle
from rlkit.data.statistics import PromptStatistics
from rlkit.errors import EngineError, WorkerError, WorkerTimeout
from rlkit.rollout.collector import Collector
from rlkit.rollout.section import RolloutSection
from rlkit.run import Cluster
from rlkit.types import Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow


def answered(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@pytest.fixture
def watch() -> Any:
    """One whose own thread does not come to look: tests look themselves, with as much time passed as they say."""
    made: list[Watch] = []

    def make(
        ask: Callable[[int], Future[Pulse]], ground: Callable[[], str | None] = lambda: None, timeout: float = 100.0
    ) -> Watch:
        made.append(Watch(2, "engine", timeout, 1000.0, ask, ground))
        return made[-1]

    yield make
    for w in made:
        w.close(WorkerError("closed"))


def look(w: Watch, index: int, passed: float) -> None:
    w._look(index, w._members[index], passed)


def test_a_silent_worker_is_lost_and_whoever_waits_for_it_hears_so(watch: Any) -> None:
    w = watch(lambda i: Future() if i else answered(Pulse(1, 0, 0)))
    waiting = [w.follow(i, Future()) for i in (0, 1)]
    for _ in range(12):
        for i in (0, 1):
            look(w, i, 10.0)
    with pytest.raises(WorkerTimeout, match=r"engine 1 gave no sign of life for 100 s \(cluster.timeout\)"):
        waiting[1].result(0)
    assert w.lost(0) is None and not waiting[0].done()
    with pytest.raises(WorkerTimeout):
        w.follow(1, Future()).result(0)  # later requests hear it at once
    w.renew(1)
    assert w.follow(1, answered(5)).result(0) == 5


def test_a_dead_worker_is_told_from_a_silent_one(watch: Any) -> None:
    died: Future[Pulse] = Future()
    died.set_exception(OSError("gone\nwith details"))
    w = watch(lambda i: died)
    look(w, 0, 1.0)
    look(w, 0, 1.0)
    assert str(w.lost(0)) == "engine 0 died: gone." and w.any_lost() is w.lost(0)


def test_long_work_is_not_cut_and_work_that_stands_still_is(watch: Any) -> None:
    steps = iter(range(10**6))
    w = watch(lambda i: answered(Pulse(5, 4, 7 if i else next(steps))))
    for _ in range(400):  # 4000 s
        look(w, 0, 10.0)
        look(w, 1, 10.0)
    assert w.lost(0) is None and isinstance(w.lost(1), WorkerTimeout) and "cluster.stall" in str(w.lost(1))


def test_a_worker_without_work_may_stand_still(watch: Any) -> None:
    w = watch(lambda i: answered(Pulse(5, 5, 7)))
    for _ in range(400):
        look(w, 0, 10.0)
    assert w.lost(0) is None


def test_a_start_says_what_is_waited_for(watch: Any) -> None:
    w = watch(lambda i: Future() if i else answered(Pulse(1, 0, 0, "imports")))
    for _ in range(2):
        for i in (0, 1):
            look(w, i, 1.0)
    assert [w.doing(i) for i in (0, 1)] == ["imports", "starts its process"]
    said, heard = list[str](), threading.Event()
    waited = iter(["engine 0 imports", ""])  # then all is there, and nothing is said

    def what() -> str:
        text = next(waited, None)
        if text is None:
            heard.set()
        return text or ""

    with told_regularly(said.append, what, 0.01):
        assert heard.wait(60)
    assert len(said) == 1 and said[0].endswith(" s: engine 0 imports")


def test_nobody_is_left_waiting_when_ray_itself_has_ended(watch: Any) -> None:
    w = watch(lambda i: Future(), lambda: "Ray itself has ended", timeout=0.5)
    with pytest.raises(WorkerError, match="Ray itself has ended"):
        w.follow(0, Future()).result(60)


class Fleet:
    """Engines in threads: each answers with its number and its life; ``strike(index)`` loses one with all that it works on."""

    def __init__(self, size: int) -> None:
        self.size, self.calls, self.lives = size, list[tuple[str, int, Any]](), [0] * size
        self.down: set[int] = set()
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)

    def one(self, index: int, method: str, prompt: Any, *args: Any) -> Any:
        life = self.lives[index]
        self.started.release()
        self.gate.wait(60)
        if index in self.down or self.lives[index] != life:
            raise WorkerError(f"engine {index} died")
        self.calls.append((prompt.id, index, life))
        return [Rollout(prompt, [3], [True], [-1.0], [0], "stop")]

    def some(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        self.calls += [(method, i, args) for i in which]
        return {i: {"busy": 1.0, "peak_mib": 1.0} for i in which if i not in self.down}

    def lost(self, index: int) -> Exception | None:
        return WorkerError(f"engine {index} died.") if index in self.down else None

    def replace(self, index: int) -> None:
        self.lives[index] += 1
        self.down.discard(index)

    def close(self) -> None: ...


PROMPTS = [Prompt(str(i), (3, 4), "") for i in range(12)]


def test_requests_of_a_lost_engine_are_asked_again_once_each() -> None:
    fleet, said = Fleet(2), list[str]()
    engines = EngineGroup(fleet, restarts=1, report=said.append)
    with ThreadPoolExecutor(12) as pool:
        groups = [pool.submit(engines.generate, p, 1, Sampling()) for p in PROMPTS]
        for _ in PROMPTS:
            fleet.started.acquire()
        fleet.down.add(0)
        fleet.gate.set()
        assert [g.result(60)[0].prompt.id for g in groups] == [p.id for p in PROMPTS]
    assert Counter(name for name, *_ in fleet.calls) == Counter(p.id for p in PROMPTS)
    assert len(said) == 1 and "engine 0 died" in said[0] and engines.restarts == 0  # six requests said so


@pytest.mark.parametrize(("max_lag", "over"), [(0, 0.0), (1, 0.0), (0, 0.5), (2, 0.5)])
def test_every_group_is_trained_on_once_however_often_engines_die(max_lag: int, over: float) -> None:
    rng, fleet = random.Random(max_lag), Fleet(3)
    answer = fleet.one

    def dies_at_random(index: int, *args: Any) -> Any:
        if rng.random() < 0.1:
            fleet.down.add(index)
        return answer(index, *args)

    fleet.one = dies_at_random  # type: ignore[method-assign]
    fleet.gate.set()
    lost: list[str] = []
    engines = EngineGroup(fleet, restarts=10_000, report=lost.append)
    rows = [Prompt(str(i), (3,), "") for i in range(400)]
    statistics = PromptStatistics(rows)
    collector = Collector(
        engines,
        SimpleNamespace(score=lambda group: [setattr(r, "reward", 1.0) for r in group]),
        Shuffle().build(rows, 0, statistics),
        statistics,
        RolloutSection(prompts=8, n=1, max_lag=max_lag, over=over, pause="continue"),
        Sampling(),
    )
    batches = [collector.next(step) for step in range(20)]
    used = [r.prompt.id for batch in batches for r in batch]
    assert [len(b) for b in batches] == [8] * 20 and len(set(used)) == 160 and len(lost) > 5
    ahead = [g.prompt.id for g in collector.in_flight()]
    assert len({*used, *ahead}) == 160 + len(ahead)
    collector.close()


def test_when_restarts_are_used_up_everybody_hears_one_sentence() -> None:
    fleet = Fleet(1)
    fleet.gate.set()
    engines = EngineGroup(fleet, restarts=2, report=lambda text: None)
    fleet.replace = lambda index: None  # type: ignore[method-assign]  # what is started is lost again
    fleet.down.add(0)
    for _ in range(2):
        with pytest.raises(
            EngineError, match=r"engine 0 died\. No engine is started again: cluster\.restarts are used up"
        ):
            engines.generate(PROMPTS[0], 1, Sampling())


def test_errors_of_requests_are_not_taken_for_lost_engines() -> None:
    fleet = Fleet(1)
    engines = EngineGroup(fleet, restarts=2)

    def refuse(*_: Any) -> Any:
        raise EngineError("refused")

    fleet.one = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="refused"):
        engines.generate(PROMPTS[0], 1, Sampling())
    assert engines.restarts == 2


class Learners:
    """Weights by name, of which ``b`` changes in training."""

    def __init__(self) -> None:
        self.lock, self.moved = threading.RLock(), True

    def buckets(self, everything: bool) -> list[tuple[list[str], int]]:
        return [(["a"], 1), (["b"], 1)] if everything else [(["b"], 1)]

    def gather(self, names: Sequence[str]) -> Any:
        return tuple(names)

    def made(self, handle: Any) -> None: ...


@pytest.mark.parametrize("moved", [False, True], ids=["at once", "with the next version"])
def test_a_newcomer_gets_all_weights_and_is_probed_before_it_gets_requests(moved: bool) -> None:
    fleet, learners, probed, joined = Fleet(2), Learners(), list[tuple[int, int]](), threading.Event()
    fleet.gate.set()
    engines = EngineGroup(fleet, restarts=1, report=lambda text: None)

    def check(engine: int, version: int) -> None:
        assert engine not in engines.up()
        probed.append((engine, version))

    sync = WeightSync(learners, engines, "wait", check)  # type: ignore[arg-type]
    sync.publish(0)
    sync.publish(1)
    learners.moved = moved
    fleet.calls.clear()
    join = engines.join

    def noted(index: int) -> None:
        join(index)
        joined.set()

    engines.join = noted
    fleet.down.add(0)
    engines.generate(PROMPTS[0], 1, Sampling())
    engines.generate(PROMPTS[1], 1, Sampling())
    assert joined.wait(60)
    assert engines.up() == ([1] if moved else [0, 1])
    version = 1
    if moved:
        fleet.calls.clear()
        version = 2
        sync.publish(version)
    sent = [(method, i, args) for method, i, args in fleet.calls if method in ("load", "end_update") and i == 0]
    assert sent == [("load", 0, (("a",),)), ("load", 0, (("b",),)), ("end_update", 0, (version,))]
    assert probed == [(0, version)] and engines.up() == [0, 1]


def test_an_engine_that_is_lost_in_a_weight_update_does_not_stop_it() -> None:
    fleet, learners = Fleet(2), Learners()
    engines = EngineGroup(fleet, restarts=1, report=lambda text: None)
    sync = WeightSync(learners, engines, "wait")  # type: ignore[arg-type]
    sync.publish(0)
    done = threading.Event()
    join = engines.join
    engines.join = lambda index: (join(index), done.set())[0]
    fleet.down.add(1)
    sync.publish(1)
    assert done.wait(60) and engines.up() == [0, 1]
    ends = [(i, args) for method, i, args in fleet.calls if method == "end_update"]
    assert ends[-2:] == [(0, (1,)), (1, (1,))]


def test_the_reaper_ends_what_the_driver_left_and_nothing_else(tmp_path: Path) -> None:
    """The driver is killed; a process that still writes into the session's folder and the folder go, another process stays."""
    (session := tmp_path / "session").mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (session / "log").open("w") as log:
        left = subprocess.Popen(sleep, stdout=log)
    other = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, signal, subprocess, sys; p = subprocess.Popen([sys.executable, '-I', '-S', {reaper.__file__!r}, {str(session)!r}, str(os.getpid())], "
            "stdin=subprocess.PIPE, start_new_session=True); print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None and driver.wait(60) == -9
        driver.stdout.readline()
        driver.stdout.read()  # until the reaper, which has it too, has ended
        assert left.wait(60) == -9 and not session.exists() and other.poll() is None
    finally:
        other.kill()
        other.wait()
        left.kill()
        driver.stdout.close()


def test_an_engine_that_cannot_read_what_a_dead_learner_made_says_that_a_worker_died() -> None:
    """Ray tells it as the error of the engine's call, whose cause may be wrapped once more."""
    from ray.exceptions import ActorDiedError, RayTaskError

    engines = RayWorkers(lambda index: None, 0, Cluster(), "engine")
    died: Future[Any] = Future()
    died.set_exception(RayTaskError("do", "trace", RayTaskError("do", "trace", ActorDiedError())))
    raised: Future[Any] = Future()
    raised.set_exception(RayTaskError("do", "trace", RayTaskError("gather", "trace", KeyError("lm_head"))))
    try:
        with pytest.raises(WorkerError, match="what engine 1 should have read is lost: The actor died unexpectedly"):
            engines._answer(Asked(1, None, died))
        with pytest.raises(KeyError, match="lm_head"):
            engines._answer(Asked(1, None, raised))
    finally:
        engines.close()
