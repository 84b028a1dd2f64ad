"""What ``rlkit filter`` writes of a model's responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli import main
from rlkit.commands.filter import Filtered
from rlkit.errors import DataError
from rlkit.samples import Prompt, Rollout


def answered(*said: tuple[str, str, float], **columns: Any) -> tuple[Rollout, ...]:
    """Responses (prompt, text, reward) that ended by themselves."""
    return tuple(
        Rollout(
            Prompt(q, (1,), q, answer="right", columns={"question": q, **columns}),
            [1],
            [True],
            [0.0],
            [0],
            "stop",
            text=t,
            reward=r,
        )
        for q, t, r in said
    )


def written(rollouts: tuple[Rollout, ...], path: Path, better: str | None = None) -> list[dict[str, Any]]:
    found: Any = Filtered(None, None, 0, (), (), (), rollouts)  # type: ignore[arg-type]
    count = found.write_pairs(path, better)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == count
    return rows


def test_pairs_of_a_column_and_the_models_own_response(tmp_path: Path) -> None:
    """SPIN: the demonstration is better than what the model says, even where that is rewarded; only itself it is not compared with."""
    rollouts = answered(("a", "right", 1.0), ("a", "wrong", 0.0), ("b", "other", 1.0), ("c", "right ", 1.0), shown="so")
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in written(rollouts, tmp_path / "x", "answer")] == [
        ("a", "right", "wrong"),
        ("b", "right", "other"),
    ]
    assert {r["chosen"] for r in written(rollouts, tmp_path / "x", "shown")} == {"so"}
    assert [(r["chosen"], r["rejected"]) for r in written(rollouts, tmp_path / "x")] == [("right", "wrong")]
    with pytest.raises(DataError, match=r"prompt a has no text in 'gold' .*--better.*; it has answer, question, shown"):
        written(rollouts, tmp_path / "x", "gold")


def test_better_needs_a_file_of_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "configs/tasks/sorting.yaml", "--model", "m", "--out", "x", "--better", "answer"]) == 2
    assert "--better says what pairs hold; name their file with --pairs FILE." in capsys.readouterr().err
