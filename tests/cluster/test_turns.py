"""Engines and learners that share devices: what is moved when, and that neither is there in the other's turn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import rlkit as rk
from rlkit.checks import check
from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
from rlkit.cluster.sync import WeightSync
from rlkit.cluster.turns import SharedTurns
from rlkit.rollout.engine import SimpleEngine
from rlkit.types import Prompt, Rollout, Sampling


class Device:
    """An engine and a learner on one device, in one object; notes what is asked of them and refuses what is out of turn."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.awake: set[str] = set()
        self.has_weights, self.state_here = False, True
        self.gate, self.aborted = threading.Event(), threading.Event()
        self.gate.set()

    def sleep(self, level: int) -> None:
        self.gate.wait(60)
        assert self.awake == {"weights", "kv_cache"}
        self.calls.append(f"sleep {level}")
        self.awake, self.has_weights = set(), self.has_weights and level == 1

    def wake(self, tags: Sequence[str] | None = None) -> None:
        assert not self.state_here, "two would be on the device"
        self.calls.append(f"wake {' '.join(tags or ('all',))}")
        self.awake |= set(tags or ("weights", "kv_cache"))

    def offload(self) -> None:
        assert self.state_here and not self.awake
        self.calls.append("offload")
        self.state_here = False

    def onload(self) -> None:
        assert not self.state_here and not self.awake
        self.calls.append("onload")
        self.state_here = True

    def release(self) -> None:
        assert "kv_cache" not in self.awake
        self.calls.append("release")

    def abort(self) -> None:
        self.aborted.set()

    def load(self) -> None:
        assert "weights" in self.awake and not self.state_here
        self.calls.append("load")
        self.has_weights = True

    def generate(self) -> None:
        assert self.awake == {"weights", "kv_cache"} and self.has_weights

    def step(self) -> None:
        assert self.state_here and not self.awake


@pytest.mark.parametrize("level", [1, 2])
def test_a_step_moves_the_device_over_and_back(level: int) -> None:
    device = Device()
    turns = SharedTurns(device, device, level)
    turns.refill = device.load
    for step in range(2):
        with turns.training():
            device.step()
        with turns.loading():
            device.load()
        with turns.generating():
            device.generate()
        moved = ["offload", "wake weights", "load", "release", "wake kv_cache"]
        assert device.calls == ([f"sleep {level}", "onload"] if step else []) + moved
        device.calls.clear()
    with turns.training():  # a probe
        device.step()
    with turns.generating():  # and an evaluation, without an update between them
        device.generate()
    again = ["wake all"] if level == 1 else ["wake weights", "load", "release", "wake kv_cache"]
    assert device.calls == [f"sleep {level}", "onload", "offload", *again]
    device.calls.clear()
    with turns.loading():  # weights come while engines are awake
        device.load()
    assert device.calls == ["load"] and turns.state == "generating"


def test_each_side_waits_until_the_other_is_at_rest() -> None:
    device, order = Device(), list[str]()
    turns, answering, end = SharedTurns(device, device, 2), threading.Event(), threading.Event()
    turns.refill = device.load

    def request() -> None:
        with turns.generating():
            answering.set()
            end.wait(60)
            device.generate()
            order.append("answered")

    def step() -> None:
        with turns.training():
            device.step()
            order.append("stepped")

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(request)
        assert answering.wait(60)
        stepping = pool.submit(step)
        with turns.generating():  # another request is answered at once
            device.generate()
        assert not order
        end.set()
        for done in (asked, stepping):
            done.result(60)
    assert order == ["answered", "stepped"]


def test_a_load_that_fails_leaves_no_engine_that_answers() -> None:
    device = Device()
    turns = SharedTurns(device, device, 2)
    with pytest.raises(KeyError), turns.loading():
        raise KeyError("lm_head")
    assert turns.state == "loading" and device.awake == {"weights"}
    with turns.training():  # a checkpoint of the last step
        device.step()


@pytest.mark.parametrize("awake", [False, True])
def test_weights_of_a_load_that_failed_are_never_answered_with(awake: bool) -> None:
    device = Device()
    turns = SharedTurns(device, device, 1)
    turns.refill = device.load
    if awake:
        with turns.loading():
            device.load()
    with pytest.raises(KeyError), turns.loading():
        raise KeyError("lm_head")
    device.calls.clear()
    with turns.generating():
        device.generate()
    assert "load" in device.calls
    with pytest.raises(KeyError), turns.loading():
        raise KeyError("lm_head")
    with turns.training():
        device.step()
    device.calls.clear()
    with turns.generating():  # what sleeping engines kept was not whole
        device.generate()
    assert "load" in device.calls


class Told(Exception):
    """What a signal raises."""


def test_a_signal_ends_the_wait_for_a_move_and_not_the_move() -> None:
    device = Device()
    turns = SharedTurns(device, device, 2)
    with turns.loading():
        device.load()
    device.gate.clear()

    def hear(number: int, frame: Any) -> None:
        raise Told

    before = signal.signal(signal.SIGALRM, hear)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Told), turns.training():
            pytest.fail("the engine does not sleep yet")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert device.calls[-1] == "wake kv_cache"
    threading.Timer(0.1, device.gate.set).start()
    with turns.training():  # the checkpoint of a run that stops: it waits for the move, and makes it no second time
        device.step()
    assert device.calls[-2:] == ["sleep 2", "onload"] and device.calls.count("sleep 2") == 1


def test_a_move_that_fails_leaves_nobody_a_turn() -> None:
    device = Device()
    turns = SharedTurns(device, device, 2)
    device.wake = lambda tags=None: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError), turns.loading():
        pytest.fail("there is nothing to load into")
    with pytest.raises(rk.RunError, match=r"could not take turns: division by zero"), turns.training():
        pytest.fail("where the optimizer's state is, nobody knows")


def test_a_run_that_stops_does_not_wait_for_its_requests() -> None:
    device = Device()
    turns, answering = SharedTurns(device, device, 2), threading.Event()
    turns.refill = device.load

    def request() -> None:
        with turns.generating():
            answering.set()
            assert device.aborted.wait(60)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(request)
        assert answering.wait(60)
        turns.end()
        with turns.training():
            device.step()
        asked.result(60)
        with pytest.raises(rk.RunError, match="told to stop"), turns.generating():
            pytest.fail("it is over")


class Shared(SimpleEngine):
    """An engine, and a learner of one number, which is its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.weights, self.got = Device(), 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.device.generate()
        return [Rollout(prompt, [3], [True], [self.got], [self.version], "stop")]

    def load(self, packed: Any) -> None:
        self.device.load()
        self.got = packed["w"]

    def assign(self, tensors: Any) -> None: ...

    def ready(self) -> dict[str, Any]:
        return {"layout": "padded", "max_tokens": 1}

    def buckets(self, everything: bool = True) -> list[tuple[list[str], int]]:
        return [(["w"], 8)]

    def gather(self, names: Sequence[str]) -> dict[str, float]:
        return {"w": self.weights}

    def after_step(self, step: int, stats: Any) -> None:
        self.device.step()
        self.weights += 1


def test_groups_take_turns_by_themselves(small: dict[str, Any]) -> None:
    both = Shared()
    setup = rk.load(small).learner_setup("", frozenset())
    learners, engines = LearnerGroup(LocalWorkers(both), setup), EngineGroup(LocalWorkers(both))
    learners.turns = engines.turns = SharedTurns(engines, learners, 2)
    sync = WeightSync(learners, engines, "wait")
    for version in (1, 2):
        learners.after_step(version, None)  # type: ignore[arg-type]
        learners.moved = True
        sync.publish(version)
        (answer,) = engines.generate(Prompt("0", (3,), ""), 1, Sampling())
        assert answer.logp == [version] and answer.version == [version]
    with learners.turns.training():
        pass
    assert not both.device.has_weights
    (answer,) = engines.generate(Prompt("0", (3,), ""), 1, Sampling())  # the weights of the last publish come again
    assert answer.logp == [2.0] and answer.version == [2]


def test_what_cannot_share_a_device_is_refused(small: dict[str, Any]) -> None:
    cluster = {"colocate": True, "engines": 2}
    with pytest.raises(rk.ConfigError) as refused:
        check(rk.load({**small, "cluster": cluster, "rollout": {"engine": "hf", "max_lag": 1}}))
    told = str(refused.value)
    assert "cannot leave their device" in told and "2 engine(s) of 1 device(s) and 1 learner(s)" in told
    assert "nothing can be generated ahead" in told
    alone = {**small, "cluster": {"colocate": True}, "rollout": {"engine": "vllm"}}
    with pytest.raises(rk.ConfigError, match=r"cluster\.gpus is 1, but with cluster\.colocate"):
        check(rk.load({**alone, "cluster": {"colocate": True, "gpus": 1}}))
    check(rk.load(alone))
    for stage, dtype, more in (
        (2, "bfloat16", {}),
        (1, "float32", {}),
        (3, "float32", {"offload_optimizer": {"device": "cpu"}}),
    ):
        model = {**small["model"], "dtype": dtype}
        check(rk.load({**alone, "model": model, "deepspeed": {"zero_optimization": {"stage": stage, **more}}}))
    for stage, dtype in ((3, "float32"), (1, "bfloat16")):
        model = {**small["model"], "dtype": dtype}
        with pytest.raises(rk.ConfigError, match=f"under ZeRO-{stage} .*cannot move the optimizer's state"):
            check(rk.load({**alone, "model": model, "deepspeed": {"zero_optimization": {"stage": stage}}}))
