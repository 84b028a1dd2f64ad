"""Checkpoints of DeepSpeed's engines: read without unpickling, continued bit by bit, with the configured learning rate."""

from __future__ import annotations

import dataclasses
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.errors import CheckpointError
from rlkit.learner.backend import free_port, rank_environment
from rlkit.learner.learner import Learner
from rlkit.learner.plan import optimizer_steps
from rlkit.run import Run
from rlkit.run import load as make_run
from rlkit.types import Stats
from tests.stack.test_learner import batch

NEEDS = frozenset({"adv", "old", "ref", "behav"})


def learner(run: Run, tiny: Path) -> tuple[Learner, LearnerGroup]:
    one = Learner(run.learner_setup(str(tiny), NEEDS))
    return one, LearnerGroup(LocalWorkers(one), one.setup)


def step(group: LearnerGroup, k: int) -> float:
    b = batch(k)
    b = group.annotate(b, ("ref", "old"))
    return float(group.update(b, (1.0, 0.1), seed=k)["learner/lr"])


def weights(one: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in one.full_weights()}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_deepspeed_checkpoint_is_continued_exactly_and_nothing_in_it_is_run(
    small: dict[str, Any], tiny: Path, tmp_path: Path, stage: int
) -> None:
    run = make_run({**small, "deepspeed": {"zero_optimization": {"stage": stage}}})
    one, group = learner(run, tiny)
    for k in (0, 1):
        step(group, k)
    group.save(str(tmp_path))
    assert not list(tmp_path.rglob("*.py"))
    step(group, 2)
    want = weights(one)

    again, resumed = learner(run, tiny)
    resumed.load(str(tmp_path))
    assert step(resumed, 2) == run.learner.lr
    assert all(torch.equal(value, want[name]) for name, value in weights(again).items())
    resumed.load(str(tmp_path))  # going back to the best checkpoint, with an engine that has trained and saved
    step(resumed, 2)
    assert all(torch.equal(value, want[name]) for name, value in weights(again).items())

    slower = dataclasses.replace(run, learner=dataclasses.replace(run.learner, lr=0.0))
    still, stopped = learner(slower, tiny)
    stopped.load(str(tmp_path))
    before = weights(still)
    assert step(stopped, 2) == 0.0 and all(torch.equal(v, before[name]) for name, v in weights(still).items())

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "full").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            group.save(str(tmp_path / "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    for path in sorted((tmp_path / "deepspeed").iterdir()):
        whole, mark = path.read_bytes(), tmp_path / f"ran {path.name}"
        for content in (pickle.dumps({"module": Payload(mark)}), _saved(Payload(mark), tmp_path)):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="holds more than tensors") as told:
                resumed.load(str(tmp_path))
            assert not mark.exists() and "weights_only" not in str(told.value)
        path.write_bytes(whole)


def _saved(x: Any, folder: Path) -> bytes:
    torch.save({"module": x, "optimizer_state_dict": x}, folder / "payload")
    return (folder / "payload").read_bytes()


REFERENCES = {
    0: {"type": "HardReset", "every": 2},
    1: {"type": "EMA", "decay": 0.5},
    2: {"type": "EMA", "decay": 0.5},
    3: {"type": "ElasticReset", "every": 3, "decay": 0.5},
}


def train_on(one: Learner, k: int) -> None:
    """This rank's part of training step ``k``, after which references follow."""
    b = batch(k)
    b = b.with_logp(**one.annotate([b], ("ref", "old")))
    for shards in optimizer_steps(b, one.setup.objective, epochs=1, count=1, ranks=one.world, max_tokens=40, seed=k):
        one.step(shards[one.rank], (1.0, 0.1))
    one.after_step(k + 1, Stats())


def _two_ranks(rank: int, port: int, small: dict[str, Any], tiny: Path, folder: Path) -> None:
    os.environ.update(rank_environment(rank, 2, "127.0.0.1", port))
    torch.set_num_threads(1)
    for stage, reference in REFERENCES.items():
        given = {**small, "deepspeed": {"zero_optimization": {"stage": stage}}, "reference": reference}
        run = make_run(given)
        at = folder / str(stage)
        at.mkdir(exist_ok=True)
        one = Learner(run.learner_setup(str(tiny), NEEDS), rank, 2)
        for k in range(4):
            train_on(one, k)
            if k == 1:
                one.save(str(at))
        again = Learner(run.learner_setup(str(tiny), NEEDS), rank, 2)
        again.load(str(at))
        for k in (2, 3):
            train_on(again, k)
        want = weights(one)
        different = [name for name, value in weights(again).items() if not torch.equal(value, want[name])]
        (folder / f"different_{stage}_{rank}").write_text(" ".join(different))
        if (stage, rank) == (0, 0):
            save_file({name: value.contiguous() for name, value in want.items()}, folder / "want")


def test_two_ranks_continue_exactly_at_every_stage_with_references_that_follow(
    small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(_two_ranks, (free_port(), small, tiny, tmp_path), nprocs=2)
    assert [p.read_text() for p in sorted(tmp_path.glob("different_*"))] == [""] * 8

    # Without shards another number of ranks continues, with sums in another order.
    given = {**small, "deepspeed": {"zero_optimization": {"stage": 0}}, "reference": REFERENCES[0]}
    before = {name: os.environ.get(name) for name in rank_environment(0, 1, "", 0) if name != "LOCAL_RANK"}
    alone = Learner(make_run(given).learner_setup(str(tiny), NEEDS))
    alone.load(str(tmp_path / "0"))
    for k in (2, 3):
        train_on(alone, k)
    alone.save(str(tmp_path))
    assert {name: os.environ.get(name) for name in before} == before  # they are the user's
    found = weights(alone)
    for name, value in load_file(tmp_path / "want").items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
