"""Models that no rank has a copy of; and every way of keeping numbers small or elsewhere trains as the plain one does."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.learner.backend import free_port, rank_environment
from rlkit.learner.learner import Learner
from rlkit.learner.plan import optimizer_steps
from rlkit.model.load import load_lm
from rlkit.run import load as make_run
from rlkit.types import Batch, Prompt, Rollout

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    stage: int
    dtype: str = "bfloat16"
    offloaded: bool = False
    checkpointed: bool = False
    sharing: int = 1  # ranks that share a row


BF16 = 0.15  # of what three steps change, bfloat16 may change otherwise than float32
TWO = (
    Case(3),
    Case(3, offloaded=True, checkpointed=True),
    Case(3, "float32", checkpointed=True),
    Case(2, "float32", sharing=2),
    Case(3, "float32", checkpointed=True, sharing=2),
)
ONE = (
    *(Case(*c) for c in itertools.product((1, 2, 3), ("bfloat16",), (False, True), (False, True))),
    *(Case(stage, "float32", True, True) for stage in (1, 2, 3)),
)


@pytest.fixture(scope="module")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with files in bfloat16."""
    path = tmp_path_factory.mktemp("other")
    shutil.copytree(tiny, path, dirs_exist_ok=True)
    load_lm(tiny).to(torch.bfloat16).save_pretrained(path)
    return path


def batch() -> Batch:
    """Prompts with two responses each, one of which is the shorter."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for s in range(6):
        tokens = torch.randint(3, 13, (3 + s,), generator=g).tolist()
        n, prompt = len(tokens), Prompt(f"p{s // 2}", tuple(range(4, 7 + s // 2)), "")
        rows.append(Rollout(prompt, tokens, [True] * n, [-2.5] * n, [0] * n, "stop", group=s // 2))
    return Batch.from_rollouts(rows)


def weights(learner: Learner) -> Tensor:
    return torch.cat([x.float().flatten().clone() for _, x in learner.full_weights()])


def trained(
    given: dict[str, Any], path: Path, case: Case | None, rank: int = 0, world: int = 1
) -> tuple[Tensor, Tensor]:
    """All weights before and after three steps; without a case in float32 without DeepSpeed."""
    c = case or Case(0, "float32")
    zero = {"stage": c.stage, **({"offload_optimizer": {"device": "cpu"}} if c.offloaded else {})}
    run = make_run(
        {
            **given,
            "model": {"path": str(path), "dtype": c.dtype},
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {
                "lr": 1e-2,
                "gradient_checkpointing": c.checkpointed,
                "max_tokens": 24,
                "sequence_parallel": c.sharing,
            },
            "reference": None,
            **({"deepspeed": {"zero_optimization": zero}} if case else {}),
        }
    )
    learner = Learner(run.learner_setup(str(path), frozenset()), rank, world)
    assert (learner.cut is None) == (c.stage < 3)
    start, objective = weights(learner), learner.setup.objective
    for k in range(3):
        [shards] = optimizer_steps(
            batch(), objective, epochs=1, count=1, ranks=world // c.sharing, max_tokens=24, seed=k, packed=True
        )
        learner.step(shards[rank // c.sharing], (1.0,))
    return start, weights(learner)


def _rank(rank: int, world: int, port: int, given: dict[str, Any], paths: tuple[Path, ...], found: Path) -> None:
    os.environ.update(rank_environment(rank, world, "127.0.0.1", port))
    torch.set_num_threads(1)
    ends = [trained(given, path, case, rank, world) for path, case in zip(paths, TWO, strict=True)]
    torch.save(ends, found / f"{rank}.pt")


def apart(end: Tensor, start: Tensor, want: tuple[Tensor, Tensor]) -> float:
    """How far what was trained is from what another run trained, as a share of it."""
    moved = want[1] - want[0]
    return float((end - start - moved).norm() / moved.norm())


def test_two_ranks_read_their_parts_and_train_as_one_process_does(
    small: dict[str, Any], tiny: Path, other: Path, tmp_path: Path
) -> None:
    paths = (tiny, other, other, tiny, tiny)
    torch.multiprocessing.spawn(_rank, (2, free_port(), small, paths, tmp_path), nprocs=2)
    ends, same = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    plain = {path: trained(small, path, None) for path in (tiny, other)}
    for (start, end), twin, path, case in zip(ends, same, paths, TWO, strict=True):
        assert torch.equal(start, twin[0]) and torch.equal(end, twin[1])
        lm = load_lm(path, getattr(torch, case.dtype))
        assert torch.equal(start, torch.cat([p.detach().float().flatten() for p in lm.parameters()])), case
        assert apart(end, start, plain[path]) < (BF16 if case.dtype == "bfloat16" else 1e-4), case


def test_every_way_trains_as_the_plain_one(small: dict[str, Any], tiny: Path) -> None:
    plain, first = trained(small, tiny, None), trained(small, tiny, ONE[0])
    for case in ONE:
        start, end = trained(small, tiny, case)
        if case.dtype == "float32":
            assert apart(end, start, plain) < 1e-4, case
        else:  # stages add the same numbers up in another order
            assert apart(end, start, plain) < BF16 and apart(end, start, first) < BF16 / 3, case
