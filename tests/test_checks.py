"""What is wrong with a configuration is said at once, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.checks import Findings
from rlkit.errors import ConfigError, DataError, ModelError


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_left_behind(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = rk.load(
        {
            **small,
            "out": str(tmp_path / "file"),
            "model": {"path": str(tmp_path / "none")},
            "reference": {"type": "Frozen", "path": str(tmp_path / "nor this")},
            "sampling": {"temperature": 0.0},
            "learner": {"minibatches": 9},
        }
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError) as told:
        rk.train(run, quiet=True)
    lines = str(told.value).splitlines()
    starts = ("learner.minibatches", "sampling.temperature", "model.path", "reference.path", "out")
    assert len(lines) == len(starts) and all(map(str.startswith, lines, starts)), lines
    assert sorted(tmp_path.iterdir()) == before


def test_data_and_rewards_are_looked_at_together(small: dict[str, Any]) -> None:
    small["objective"] = [{"type": "AStar"}]  # reads the column v_star
    run = rk.load({**small, "rewards": ["tests/rewards/examples.py:nothing_of_that_name"]})
    with pytest.raises(ConfigError, match=r"nothing_of_that_name(.|\n)*v_star"):
        rk.train(run, quiet=True)


def test_a_single_finding_keeps_its_class_and_other_errors_are_no_findings() -> None:
    found = Findings()
    found.refuse()  # nothing was found
    with found:
        raise DataError("row 3")
    with pytest.raises(DataError, match="row 3"):
        found.refuse()
    with found:
        raise ModelError("no model")
    with pytest.raises(ConfigError, match=r"^row 3\nno model$"):
        found.refuse()
    with pytest.raises(ZeroDivisionError), found:
        raise ZeroDivisionError
