"""Models that no rank has a copy of; and every way of keeping numbers small or elsewhere trains as the plain one does."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.learner.backend import free_port, rank_environment
from rlkit.learner.learner import Learner
from rlkit.learner.plan import optimizer_steps
from rlkit.model.load import load_lm
from rlkit.objective.losses import NLL
from rlkit.run import load as make_run
from rlkit.types import Batch, Prompt, Rollout

pytestmark = pytest.mark.slow

Case = tuple[int, str, bool, bool]  # stage, type, offloaded, checkpointed
TWO: tuple[Case, ...] = ((3, "bfloat16", False, False), (3, "bfloat16", True, True), (3, "float32", False, True))
CASES: tuple[Case, ...] = (
    *itertools.product((1, 2, 3), ("bfloat16",), (False, True), (False, True)),
    *((stage, "float32", True, True) for stage in (1, 2, 3)),
)


@pytest.fixture(scope="module")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with files in bfloat16."""
    path = tmp_path_factory.mktemp("other")
    shutil.copytree(tiny, path, dirs_exist_ok=True)
    load_lm(tiny).to(torch.bfloat16).save_pretrained(path)
    return path


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    rows = []
    for s in range(6):
        tokens = torch.randint(3, 13, (3 + s,), generator=g).tolist()
        n = len(tokens)
        rows.append(Rollout(Prompt(f"p{s}", (4, 5, 6), ""), tokens, [True] * n, [-2.5] * n, [0] * n, "stop", group=s))
    return Batch.from_rollouts(rows)


def weights(learner: Learner) -> Tensor:
    return torch.cat([x.float().flatten().clone() for _, x in learner.full_weights()])


def trained(given: dict[str, Any], path: Path, case: Case | None, rank: int = 0, world: int = 1) -> tuple[Tensor, ...]:
    """All weights before and after three steps; without a case in float32 without DeepSpeed."""
    stage, dtype, offloaded, checkpointed = case or (0, "float32", False, False)
    zero = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offloaded else {})}
    more = {
        "model": {"path": str(path), "dtype": dtype},
        "objective": [{"type": "NLL", "acknowledge": True}],
        "learner": {"lr": 1e-2, "gradient_checkpointing": checkpointed, "max_tokens": 24},
        "reference": None,
        **({"deepspeed": {"zero_optimization": zero}} if case else {}),
    }
    run = make_run({**given, **more}).replace(objective=(NLL(acknowledge=True),))
    learner = Learner(run.learner_setup(str(path), frozenset()), rank, world)
    assert (learner.cut is None) == (stage < 3)
    start = weights(learner)
    for k in range(3):
        [shards] = optimizer_steps(
            batch(), learner.setup.objective, epochs=1, count=1, ranks=world, max_tokens=24, seed=k
        )
        learner.step(shards[rank], (1.0,))
    return start, weights(learner)


def _rank(rank: int, world: int, port: int, given: dict[str, Any], paths: tuple[Path, ...], found: Path) -> None:
    os.environ.update(rank_environment(rank, world, "127.0.0.1", port))
    torch.set_num_threads(1)
    ends = [trained(given, path, case, rank, world) for path, case in zip(paths, TWO, strict=True)]
    torch.save(ends, found / f"{rank}.pt")


def agree(moved: Tensor, want: Tensor, noise: float) -> None:
    assert float((moved - want).norm() / want.norm()) < noise


def test_two_ranks_read_their_parts_and_train_as_one_process_does(
    small: dict[str, Any], tiny: Path, other: Path, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(_rank, (2, free_port(), small, (tiny, other, other), tmp_path), nprocs=2)
    ends, same = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    print([[torch.equal(x, y) for x, y in zip(a, b)] for a, b in zip(ends, same)])
    for (a, b), path, case in zip(ends, (tiny, other, other), TWO):
        c = trained(small, path, (1, *case[1:]))
        print(case, path.name, torch.equal(a, c[0]), float((b - a - c[1] + c[0]).norm() / (c[1] - c[0]).norm()))
    torch.save((ends, same), "/tmp/gpu_two.pt")


def test_every_way_trains_as_the_plain_one(small: dict[str, Any], tiny: Path) -> None:
    plain = trained(small, tiny, None)
    want = plain[1] - plain[0]
    first = None
    for case in CASES:
        start, end = trained(small, tiny, case)
        a = end - start
        first = a if first is None else first
        print(
            case,
            float((a - want).norm() / want.norm()),
            float((a - first).norm() / want.norm()),
            float((start - plain[0]).abs().max()),
        )
    assert 0
