"""What a backend leaves behind in the process that it is made in."""

from __future__ import annotations

import os

import pytest

from rlkit.learner.backend import alone, rank_environment

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
