"""What ``rlkit filter`` writes of a model's responses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
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
    """SPIN: the demonstration is better than what the model says first, whatever its reward; only itself it is not compared with."""
    said = (("a", "right", 1.0), ("a", "near", 0.5), ("a", "wrong", 0.0), ("b", "other", 1.0), ("c", "right ", 1.0))
    rollouts = answered(*said, shown="so")
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in written(rollouts, tmp_path / "x", "answer")] == [
        ("a", "right", "near"),
        ("b", "right", "other"),
    ]
    assert {r["chosen"] for r in written(rollouts, tmp_path / "x", "shown")} == {"so"}
    assert [(r["chosen"], r["rejected"]) for r in written(rollouts, tmp_path / "x")] == [("right", "wrong")]
    with pytest.raises(DataError, match=r"prompt a has no text in 'gold' .*--better.*; it has answer, question, shown"):
        written(rollouts, tmp_path / "x", "gold")


def test_responses_that_were_cut_off_are_in_no_row_and_counted(tmp_path: Path) -> None:
    whole = answered(("a", "right", 1.0), ("a", "wrong", 0.0))
    cut = tuple(dataclasses.replace(r, finish="length") for r in answered(("b", "right", 1.0), ("b", "wro", 0.0)))
    found: Any = Filtered(None, None, 2, (), (), (), whole + cut)  # type: ignore[arg-type]
    assert found.unended == 2
    assert found.write_pairs(tmp_path / "x") == 1 and found.write_labelled(tmp_path / "y") == 2


def test_better_needs_a_file_of_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "configs/tasks/sorting.yaml", "--model", "m", "--out", "x", "--better", "answer"]) == 2
    assert "--better says what pairs hold; name their file with --pairs FILE." in capsys.readouterr().err


@pytest.mark.slow
def test_a_demonstration_is_learned_from_where_the_model_never_finds_it(tmp_path: Path, small: dict[str, Any]) -> None:
    """A random model solves next to nothing: `--pairs` alone has a row for what it solves, `--better` one for every prompt."""
    (tmp_path / "c.yaml").write_text(json.dumps(small))
    task = ["filter", str(tmp_path / "c.yaml"), "rewards=[task]", "--model", small["model"]["path"], "-n", "2"]
    pairs = ["--out", str(tmp_path / "kept.jsonl"), "--pairs", str(tmp_path / "pairs.jsonl")]
    assert main([*task, *pairs, "--better", "answer"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == 40 and any(row["pass_rate"] == 0 for row in kept)
    assert len(rows) > sum(row["pass_rate"] > 0 for row in kept)


@pytest.mark.slow
def test_prompts_are_kept_by_the_episodes_that_solve_them(tmp_path: Path, small: dict[str, Any], tiny: Path) -> None:
    (tmp_path / "some.py").write_text(
        "async def some(context, rng):\n"
        "    await context.generate(max_tokens=1)\n"
        "    context.add('>')\n"
        "    await context.generate(max_tokens=1)\n"
        "    return float(rng.random() < 0.5)\n"
    )
    small |= {"rewards": [], "rollout": {"engine": "hf", "episode": f"{tmp_path}/some.py:some", "max_model_len": 32}}
    found = rk.filter(rk.load(small), tiny, n=4, high=0.75, say=lambda text: None)
    assert 0 < len(found.prompts) < found.asked == 40
    for row in found.rows:
        group = [r for r in found.answered if r.prompt.id == row["id"]]
        assert len(group) == 4 and row["pass_rate"] == sum(r.reward for r in group) / 4 and 0 < row["pass_rate"] <= 0.75
    assert found.write_transcripts(tmp_path / "shown.txt") == len(found.answered)
    assert (tmp_path / "shown.txt").read_text().count("[added] >") == len(found.answered)
    for write in (found.write_pairs, found.write_labelled, found.write_demonstrations, found.write_solved):
        with pytest.raises(rk.ConfigError, match="is about single responses, and an episode is a conversation"):
            write(tmp_path / "x.jsonl")
    plain = dataclasses.replace(found, answered=tuple(dataclasses.replace(r, transcript="") for r in found.answered))
    with pytest.raises(rk.ConfigError, match=r"rollout\.episode is not set"):
        plain.write_transcripts("x")
