"""Everything that goes wrong, in one run, by seed: at the end every group is there once and the curve is that of an undisturbed run.

    python -m tests.stack.test_chaos --seeds 10

plays more seeds, with more strikes each, than the tests here have time for, and with `--engine vllm` the other engine.

A *life* is a driver of its own: all but the last are killed (-9) in the middle of something, and before the next one their files are
damaged. Within a life engines and learners are killed and stopped, checkpoints damaged, and the disk fills and empties.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlkit import trainer
from rlkit.cluster.ray import RayWorkers
from rlkit.data.tasks import Sorting
from rlkit.files import read_rows
from rlkit.model.tiny import make_tiny
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import RunLog
from rlkit.rollout.collector import Collector
from rlkit.run import load
from tests.conftest import settings_of_small
from tests.record.test_checkpoint import flip

STEPS, EVERY, PROMPTS, SIZE = 40, 4, 4, 40
TAILS = (b'{"step": 3, "rew', b"\0" * 700, b'{"step": 41}\0\0', b"\xff\xfe\n", b"")


@dataclass(frozen=True)
class Strike:
    """``act`` is done at the ``call``-th time in a step that the run comes to ``where``."""

    step: int
    where: str
    call: int
    act: str


def lives(seed: int, strikes: int, ends: int) -> list[list[Strike]]:
    """A plan: ``strikes`` within all lives, and ``ends`` of drivers, in any order. The first of each kind is sure to come."""
    draw = random.Random(seed)
    kinds = ["engine kill", "learner flip", "full", "engine stop", "learner stop", "learner kill"]
    order = [*kinds[:strikes], *draw.choices(kinds, k=max(0, strikes - len(kinds))), *["end"] * ends]
    draw.shuffle(order)
    first = 2 * EVERY + 1  # there are two checkpoints by then, one of which may be damaged
    width = (STEPS + 1 - first) // len(order)  # each has steps of its own, so that what was struck is back by the next
    plan: list[list[Strike]] = [[]]
    for k, kind in enumerate(order):
        start = first + k * width
        step = start + draw.randrange(width)
        who, _, act = kind.partition(" ")
        if who == "engine":
            where, calls = draw.choice([("engine.generate", PROMPTS), ("engine.load", 1), ("engine.end_update", 1)])
            plan[-1].append(Strike(step, where, draw.randint(1, calls), act))
        elif who == "learner":
            where = draw.choice(["learner.annotate", "learner.step", "learner.gather"])
            plan[-1].append(Strike(step, where, 1, act))
        elif kind == "full":
            plan[-1].append(Strike(start, "engine.generate", 1, "fill"))
            plan[-1].append(Strike(start + width - 1, "driver.log", 1, "empty"))
        else:
            plan[-1].append(Strike(step, draw.choice(["engine.generate", "learner.step", "driver.log"]), 1, "end"))
            plan.append([])
    return plan


# -- the driver's side --------------------------------------------------------------------------------------------------


class Chaos:
    """Does the strikes of one life, each once, from inside its driver."""

    def __init__(self, folder: Path, strikes: list[Strike]) -> None:
        self.folder, self.left = folder, strikes
        self.step, self.calls = 0, Counter[str]()
        self.lock = threading.Lock()
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def come(self, where: str, workers: RayWorkers | None = None, index: int = 0) -> None:
        with self.lock:
            self.calls[where] += 1
            now = (self.step, where, self.calls[where])
            due = [s for s in self.left if (s.step, s.where, s.call) == now]
            self.left = [s for s in self.left if s not in due]
        for strike in due:
            print(f"chaos: {strike}", flush=True)
            self.do(strike.act, workers, index)

    def do(self, act: str, workers: RayWorkers | None, index: int) -> None:
        """``flip``: the learner dies, and the checkpoint that it would start from is damaged."""
        if act == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "fill":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, self.limit[1]))
        elif act == "empty":
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)
        else:
            import ray

            assert workers is not None
            if act == "flip":
                damage_newest(self.folder, random.Random(self.step))
            pid = ray.get(workers.actors[index].__ray_call__.remote(lambda self: os.getpid()))
            os.kill(pid, signal.SIGSTOP if act == "stop" else signal.SIGKILL)

    def begin(self, step: int) -> None:
        with self.lock:
            self.step = step
            self.calls.clear()


def watched(chaos: Chaos) -> None:
    """Has the parts of the run come to ``chaos``."""

    def before(owner: Any, name: str, tell: Any) -> None:
        original = getattr(owner, name)

        def told(*args: Any, **options: Any) -> Any:
            tell(*args)
            return original(*args, **options)

        setattr(owner, name, told)

    before(Collector, "next", lambda _, version: chaos.begin(version + 1))
    before(RayWorkers, "one", lambda w, i, method, *_: chaos.come(f"{w.what}.{method}", w, i))
    before(RayWorkers, "some", lambda w, which, method, *_: which and chaos.come(f"{w.what}.{method}", w, which[0]))
    before(RayWorkers, "call", lambda w, method, *_: chaos.come(f"{w.what}.{method}", w))
    before(RayWorkers, "handles", lambda w, method, *_: chaos.come(f"{w.what}.{method}", w))
    before(RunLog, "rollouts", lambda *_: chaos.come("driver.log"))  # the step's row of metrics is written


def drive(task: Path) -> None:
    """One life."""
    told = json.loads(task.read_text())
    run = load(told["settings"])
    chaos = Chaos(Path(run.out) / run.name, [Strike(**s) for s in told["strikes"]])
    watched(chaos)
    trainer.train(run, resume=told["resume"])
    assert not chaos.left, chaos.left


# -- from outside -------------------------------------------------------------------------------------------------------


def damage_newest(folder: Path, draw: random.Random) -> None:
    """Flips a bit somewhere in the newest checkpoint, if there is an older one to go on from."""
    there = Checkpoints(folder / "checkpoints", 2).complete()
    if len(there) > 1:
        file = draw.choice(sorted(p for p in there[-1].rglob("*") if p.is_file()))
        if size := file.stat().st_size:  # there may be nothing ahead
            flip(file, draw.randrange(size))


def tear(folder: Path, draw: random.Random) -> None:
    """What a power failure leaves: the last lines cut or followed by rubbish. What a checkpoint counts on was on disk before it."""
    whole = Checkpoints(folder / "checkpoints", 2).complete()
    saved = int(whole[-1].name.removeprefix("step_")) if whole else 0
    for name in ("metrics.jsonl", "rollouts.jsonl", "eval.jsonl"):
        path, rows = folder / name, read_rows(folder / name)
        if rows and rows[-1]["step"] > saved:
            os.truncate(path, path.stat().st_size - draw.randrange(1, 40))
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(draw.choice(TAILS))
    if draw.random() < 0.5:
        damage_newest(folder, draw)


def begin(place: Path, settings: dict[str, Any], strikes: list[Strike], resume: bool) -> subprocess.Popen[bytes]:
    """Starts a life. What it prints goes through another process into a file, which is no part of its full disk."""
    task, log = place / f"{settings['name']}.json", place / f"{settings['name']}.log"
    task.write_text(
        json.dumps({"settings": settings, "strikes": [dataclasses.asdict(s) for s in strikes], "resume": resume})
    )
    tee = subprocess.Popen(["tee", "-a", str(log)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert __spec__ is not None and tee.stdin is not None
    command = [sys.executable, "-m", __spec__.name, "drive", str(task)]
    with tee.stdin:
        return subprocess.Popen(command, stdout=tee.stdin, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def killed_at_the_end(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def curve(folder: Path) -> list[dict[str, Any]]:
    kinds = ("step", "loss/", "reward/", "kl/", "entropy/", "batch/", "eval/", "grad")
    return [{k: v for k, v in r.items() if k.startswith(kinds)} for r in read_rows(folder / "metrics.jsonl")]


def play(settings: dict[str, Any], place: Path, seed: int, strikes: int, ends: int) -> None:
    """One run with the seed's strikes and one without any; they are the same."""
    settings = {
        **settings,
        "out": str(place / "runs"),
        "steps": STEPS,
        "data": {**settings["data"], "size": SIZE},
        "eval": {"prompts": 4, "every": 10},
        "checkpoint": {"every": EVERY, "minutes": None},
        "log": {"tensorboard": False, "rollouts": 1000},
        "rewards": [str(Path("tests/rewards/examples.py").absolute()) + ":varied"],
    }
    # vLLM takes long to start, so there is one, for whose successor the run waits; of two, the other takes over.
    engines = 1 if settings["rollout"]["engine"] == "vllm" else 2
    cluster = {"cpus": 0.2, "engines": engines, "timeout": 6.0, "restarts": 20}
    struck = {**settings, "name": "struck", "cluster": cluster}
    folder, whole = place / "runs" / "struck", place / "runs" / "whole"
    log, draw = place / "struck.log", random.Random(seed)
    plan = lives(seed, strikes, ends)
    with killed_at_the_end(begin(place, {**settings, "name": "whole"}, [], False)) as undisturbed:
        for k, life in enumerate(plan):
            with killed_at_the_end(begin(place, struck, life, resume=k > 0)) as driver:
                code = driver.wait()
            assert code == (0 if k == len(plan) - 1 else -signal.SIGKILL), (plan, log.read_text()[-5000:])
            if code:
                tear(folder, draw)
        assert undisturbed.wait() == 0, (place / "whole.log").read_text()[-5000:]

    told = log.read_text()
    done = Counter(s.where.partition(".")[0] for life in plan for s in life if s.act in ("kill", "stop", "flip"))
    acts = {s.act for life in plan for s in life}
    assert told.count("Starting it again") >= done["engine"], told
    assert told.count("The learners start again from the last checkpoint") == done["learner"], told
    assert "kept as damaged" in told or "flip" not in acts, told
    assert "can be written again" in told or "fill" not in acts, told

    groups = Counter((r["step"], r["group"], r["prompt_id"]) for r in read_rows(folder / "rollouts.jsonl"))
    assert set(groups.values()) == {settings["rollout"]["n"]} and len(groups) == STEPS * PROMPTS, told
    assert set(Counter(prompt for _, _, prompt in groups).values()) == {STEPS * PROMPTS // SIZE}, told
    for name, keys in (
        ("rollouts.jsonl", ("step", "group", "prompt_id", "response", "reward")),
        ("eval.jsonl", ("step", "score", "solved")),
    ):
        here, there = ([[r[k] for k in keys] for r in read_rows(f / name)] for f in (folder, whole))
        assert here == there, (name, told)
    rows, others = curve(folder), curve(whole)
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1)), told
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, abs=1e-4), told


@pytest.mark.timeout(900)
def test_a_run_that_is_struck_again_and_again_is_the_undisturbed_one(small: dict[str, Any], tmp_path: Path) -> None:
    play({**small, "rollout": {**small["rollout"], "engine": "hf"}}, tmp_path, seed=1, strikes=5, ends=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--strikes", type=int, default=8)
    parser.add_argument("--ends", type=int, default=3)
    parser.add_argument("--engine", choices=("vllm", "hf"), default="hf")
    a = parser.parse_args()
    for seed in range(a.first, a.first + a.seeds):
        place, start = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
        tiny = make_tiny(place / "tiny", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1)
        small = settings_of_small(place, tiny)
        play({**small, "rollout": {**small["rollout"], "engine": a.engine}}, place, seed, a.strikes, a.ends)
        print(f"seed {seed}: as undisturbed, after {time.monotonic() - start:.0f} s", flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        drive(Path(sys.argv[2]))
    else:
        main()
