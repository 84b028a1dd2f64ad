"""An engine of the user's own: its requests and weight updates take turns, and a run trains with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.rollout.engine import SimpleEngine
from rlkit.run import load
from rlkit.trainer import train
from rlkit.types import Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow


class Slow(SimpleEngine):
    """Answers with the number that is its weight, when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked, self.go = 0.0, threading.Semaphore(0), threading.Event()

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.asked.release()
        self.go.wait(60)
        return [Rollout(prompt, [3], [True], [self.weight], [self.version], "stop")] * n

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        self.weight = float(tensors["w"])


def test_weights_wait_for_the_last_answer_and_requests_for_the_last_weights() -> None:
    engine = Slow()

    def ask() -> Rollout:
        return engine.generate(Prompt("0", (3,), ""), 2, Sampling())[1]

    def update() -> None:
        engine.begin_update("continue")  # it cannot: it waits
        engine.load({"w": np.float32(-1.0)})
        engine.load({"w": torch.tensor(-2.0, dtype=torch.bfloat16).view(torch.int16).numpy()})  # as bfloat16 travels
        engine.end_update(7)

    with ThreadPoolExecutor(4) as threads:
        early = [threads.submit(ask) for _ in range(2)]
        for _ in early:
            assert engine.asked.acquire(timeout=60)
        updated = threads.submit(update)
        with engine._turn:
            assert engine._turn.wait_for(lambda: engine._updating, 60)
        late = threads.submit(ask)
        assert not engine.asked.acquire(timeout=0.1) and not updated.done()
        engine.go.set()
        updated.result(60)
        assert [(r.logp, r.version) for r in (f.result(60) for f in early)] == [([0.0], [0])] * 2
        assert (late.result(60).logp, late.result().version) == ([-2.0], [7])
    assert engine.progress() == 3 and engine.stats()["tokens"] == 6 and engine.stats()["busy"] > 0


class Failing(SimpleEngine):
    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        raise OSError("no answer")

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        pass


def test_an_answer_that_fails_does_not_keep_weights_waiting() -> None:
    engine = Failing()
    with ThreadPoolExecutor(1) as threads:
        failed = threads.submit(engine.generate, Prompt("0", (3,), ""), 1, Sampling())
        assert isinstance(failed.exception(60), OSError)
        threads.submit(engine.begin_update, "wait").result(60)


def test_what_is_no_engine_is_refused_where_the_file_is_read(small: dict[str, Any]) -> None:
    for given, said in (
        ({"type": "examples/custom_loss.py:TOPR"}, "TOPR is a Term; here stands an EngineSpec"),
        ({"type": "examples/custom_engine.py:PlainEngine"}, "PlainEngine is no EngineSpec"),
        ("vlm", "expected one of 'vllm', 'hf' or a mapping with `type`"),
    ):
        with pytest.raises(ConfigError, match=f"rollout.engine.*{said}"):
            load({**small, "rollout": {"engine": given}})


def test_an_engine_in_a_file_trains_and_agrees_with_the_learner(small: dict[str, Any]) -> None:
    engine = {"type": "examples/custom_engine.py:Plain"}
    run = load({**small, "rollout": {**small["rollout"], "engine": engine}, "probe": {"every": 1}})
    train(run, quiet=True)
    folder = Path(small["out"]) / "small"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["probe/max"] < 1e-4 for row in rows)  # of every version of the weights
    assert load(folder / "config.yaml").rollout.engine == run.rollout.engine
