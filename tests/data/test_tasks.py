"""Tasks: their rows, their verifiers, and demonstrations that are not always right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rlkit.data.tasks import Arithmetic, Countdown, Modular, Sorting, WordProblems
from rlkit.model.load import load_tokenizer
from rlkit.model.tiny import make_tiny, make_tokenizer

TASKS = [
    Sorting(levels=(1, 2)),
    Arithmetic(levels=(2, 4)),
    Modular(levels=(2,)),
    Countdown(levels=(2,), mistakes=0.8),
    WordProblems(levels=(1, 2, 3)),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_a_task_is_deterministic_verifiable_and_keeps_its_splits_apart(task: object, tmp_path: Path) -> None:
    train, test = task.rows("train", 80), task.rows("test", 20)
    assert train == task.rows("train", 80) and not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert len({r["id"] for r in [*train, *test]}) == 100
    rng = random.Random(0)
    right = [task.verify(task.demonstration(r, rng), r) for r in train]
    assert all(task.verify(r["answer"], r) and not task.verify("", r) for r in train)
    assert 0.05 < sum(right) / len(right) < 0.6
    made = make_tokenizer(task.alphabet)
    make_tiny(tmp_path, task.alphabet, hidden=64, layers=1, heads=2, kv_heads=1)
    tokenizer = load_tokenizer(tmp_path)  # saved beside a Qwen2 model and loaded again: blanks included
    for row in task.rows("train", 20):
        assert (
            tokenizer(row["prompt"])["input_ids"] == made(row["prompt"])["input_ids"]
            and tokenizer.decode(made(row["prompt"])["input_ids"]) == row["prompt"]
        )
    for r in train:
        ids = tokenizer(r["prompt"] + r["answer"])["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == r["prompt"] + r["answer"]
