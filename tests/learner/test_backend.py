"""What a backend leaves behind in the process that it is made in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.learner.backend import alone, rank_environment
from rlkit.learner.learner import Learner
from rlkit.types import Batch, Prompt, Rollout

pytestmark = pytest.mark.slow


def test_variables_of_the_only_rank_are_there_for_a_while_and_then_the_users_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [*rank_environment(0, 1, "", 0)]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # as in a script that torchrun has started
    with pytest.raises(OSError, match="refused"), alone():
        assert os.environ["RANK"] == "0" and os.environ["WORLD_SIZE"] == "1" and int(os.environ["MASTER_PORT"]) > 0
        raise OSError("refused")
    assert {name: os.environ[name] for name in names if name in os.environ} == {"WORLD_SIZE": "8", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(("stage", "dtype"), [(None, "float32"), (2, "bfloat16")])
def test_a_state_that_has_been_on_the_host_trains_as_one_that_stayed(
    small: dict[str, Any], tiny: Path, stage: int | None, dtype: str
) -> None:
    """On a CPU nothing moves, but every tensor goes through what moves it."""
    given = {
        **small,
        "model": {"path": str(tiny), "dtype": dtype},
        "reference": None,
        "objective": [{"type": "NLL", "acknowledge": True}],
        "deepspeed": None if stage is None else {"zero_optimization": {"stage": stage}},
    }
    row = Rollout(Prompt("0", (3, 4, 5), ""), [4, 5, 6, 7], [True] * 4, [-1.0] * 4, [0] * 4, "stop")
    found = []
    for moves in (False, True):
        learner = Learner(rk.load(given).learner_setup(str(tiny), frozenset()))
        group = LearnerGroup(LocalWorkers(learner), learner.setup)
        for _ in range(3):
            group.update(Batch.from_rollouts([row]), (1.0,), seed=0)
            if moves:
                group.offload()
                sent = {name: x.clone() for name, x in learner.full_weights()}  # weights can be sent meanwhile
                group.onload()
        found.append({name: x.clone() for name, x in learner.full_weights()})
    assert all(torch.equal(x, found[1][name]) and torch.equal(x, sent[name]) for name, x in found[0].items())
