"""Tasks, files, templates and samplers."""
from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from rlkit.data import Data
from rlkit.data.curriculum import GaussianDifficulty, Learnability, Overlong, Shuffle, ZeroVariance
from rlkit.data.prompts import load_prompts
from rlkit.data.tasks import Arithmetic, Modular, Sorting
from rlkit.data.tiny import make_tokenizer
from rlkit.types import Prompt, Rollout

TASKS = [Sorting(levels=(1, 2)), Arithmetic(levels=(2, 4)), Modular(levels=(2,))]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_a_task_is_deterministic_verifiable_and_keeps_its_splits_apart(task: object) -> None:
    train, test = task.rows("train", 80), task.rows("test", 20)
    assert train == task.rows("train", 80) and not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert len({r["id"] for r in [*train, *test]}) == 100
    rng = random.Random(0)
    right = [task.verify(task.demonstration(r, rng), r) for r in train]
    assert all(task.verify(r["answer"], r) and not task.verify("", r) for r in train)
    assert 0.05 < sum(right) / len(right) < 0.6
    tokenizer = make_tokenizer(task.alphabet)
    for r in train:
        ids = tokenizer(r["prompt"] + r["answer"])["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == r["prompt"] + r["answer"]


def prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (3,), str(i)) for i in range(n)]


def group(p: Prompt, rewards: list[float], finish: str = "stop") -> list[Rollout]:
    return [Rollout(p, [1], [True], [0.0], [0], finish, reward=x) for x in rewards]


def test_shuffle_sees_every_prompt_once_an_epoch_and_resumes() -> None:
    state = Shuffle().build(prompts(7), seed=1)
    first, second = [next(state).id for _ in range(7)], [next(state).id for _ in range(3)]
    assert sorted(first) == sorted(p.id for p in prompts(7)) and first[:3] != second
    again = Shuffle().build(prompts(7), seed=1)
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert [next(again).id for _ in range(9)] == [next(state).id for _ in range(9)]


@pytest.mark.parametrize("spec", [GaussianDifficulty(center=0.5, width=0.15, decay=0.5), Learnability(decay=0.5)], ids=lambda s: type(s).__name__)
def test_difficulty_samplers_prefer_what_is_half_solved_and_resume(spec: object) -> None:
    ps = prompts(3)
    state = spec.build(ps, seed=0)
    for _ in range(12):
        for p, rewards in zip(ps, ([1.0, 1.0], [1.0, 0.0], [0.0, 0.0]), strict=True):
            state.observe(group(p, rewards))
    drawn = Counter(next(state).id for _ in range(600))
    weights = [spec.weight(x) for x in (1.0, 0.5, 0.0)]
    for p, w in zip(ps, weights, strict=True):
        assert drawn[p.id] / 600 == pytest.approx(w / sum(weights), abs=0.06)
    again = spec.build(ps, seed=5)
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert [next(again).id for _ in range(20)] == [next(state).id for _ in range(20)]


def test_drop_rules() -> None:
    p = prompts(1)[0]
    assert ZeroVariance()(group(p, [1.0, 1.0])) and not ZeroVariance()(group(p, [1.0, 0.0]))
    assert Overlong(share=0.5)(group(p, [0.0, 1.0], "length")) and not Overlong()(group(p, [0.0, 1.0]))


def test_files_columns_templates_and_limits(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "2", "level": 1}, {"q": "1+1", "a": "2", "level": 1}, {"q": "2" * 50, "a": "3", "level": 2}, {"q": "9-9", "a": "0", "level": 1}]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "d.csv").write_text("q,a,level\n1+1,2,1\n9-9,0,1\n")
    (tmp_path / "t.txt").write_text("Q{question}=")
    tokenizer = make_tokenizer("0123456789+-=Q")
    said: list[str] = []
    data = Data(train="d.jsonl", columns={"prompt": "q", "answer": "a"}, template="t.txt", max_prompt_tokens=20)
    got = load_prompts(data, "train", tokenizer, said.append, base=tmp_path)
    assert [(p.text, p.answer, p.columns["level"]) for p in got] == [("Q1+1=", "2", 1), ("Q9-9=", "0", 1)]
    assert "d.jsonl:3 (52 tokens)" in said[0] and "1 duplicate" in said[1]
    csv = load_prompts(Data(train="d.csv", columns={"prompt": "q", "answer": "a"}), "train", tokenizer, base=tmp_path)
    assert [p.answer for p in csv] == ["2", "0"]
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        load_prompts(Data(train="d.jsonl", columns={"prompt": "q"}, max_prompt_tokens=20, too_long="raise"), "train", tokenizer, base=tmp_path)
    with pytest.raises(ValueError, match=r"no column 'question'.*columns are q, a, level"):
        load_prompts(Data(train="d.jsonl", columns={"prompt": "question"}), "train", tokenizer, base=tmp_path)
    with pytest.raises(ValueError, match="Did you mean"):
        load_prompts(Data(train="dd.jsonl"), "train", tokenizer, base=tmp_path)
