"""Prompts of files: their columns, templates and limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.data import Data
from rlkit.data.prompts import load_prompts
from rlkit.errors import DataError
from rlkit.model.tiny import make_tokenizer
from tests.data.tables import beside


def test_files_columns_templates_and_limits(tmp_path: Path) -> None:
    rows = [
        {"q": "1+1", "a": "2", "level": 1},
        {"q": "1+1", "a": "2", "level": 1},
        {"q": "2" * 50, "a": "3", "level": 2},
        {"q": "9-9", "a": "0", "level": 1},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "d.csv").write_text("q,a,level\n1+1,2,1\n9-9,0,1\n")
    (tmp_path / "t.txt").write_text("Q{question}=")
    tokenizer = make_tokenizer("0123456789+-=Q")
    said: list[str] = []
    columns = {"prompt": "q", "answer": "a"}
    data = beside(tmp_path, train="d.jsonl", columns=columns, template="t.txt", max_prompt_tokens=20)
    got = load_prompts(data, "train", tokenizer, said.append)
    assert [(p.text, p.answer, p.columns["level"]) for p in got] == [("Q1+1=", "2", 1), ("Q9-9=", "0", 1)]
    assert "d.jsonl:3 (52 tokens)" in said[0] and "1 duplicate" in said[1]
    csv = load_prompts(beside(tmp_path, train="d.csv", columns=columns), "train", tokenizer)
    assert [p.answer for p in csv] == ["2", "0"]
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        load_prompts(
            beside(tmp_path, train="d.jsonl", columns={"prompt": "q"}, max_prompt_tokens=20, too_long="raise"),
            "train",
            tokenizer,
        )
    with pytest.raises(ValueError, match=r"no column 'question'.*columns are q, a, level"):
        load_prompts(beside(tmp_path, train="d.jsonl", columns={"prompt": "question"}), "train", tokenizer)
    with pytest.raises(ValueError, match="Did you mean"):
        load_prompts(Data(train=str(tmp_path / "dd.jsonl")), "train", tokenizer)


def test_a_pattern_names_several_files_and_a_folder_none(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("0123456789+-=Q")
    (tmp_path / "rows").mkdir()
    for k in (2, 1):
        (tmp_path / "rows" / f"{k}.jsonl").write_text(json.dumps({"prompt": f"{k}+1", "answer": k + 1}) + "\n")
    (tmp_path / "rows" / "notes.txt").write_text("no rows")
    for pattern in ("rows/*", "rows/[0-9].jsonl", "**/*.jsonl"):
        data = beside(tmp_path, train=pattern, template="plain")
        assert [p.answer for p in load_prompts(data, "train", tokenizer)] == [2, 3]
    for name, says in (
        ("rows/*.csv", "has a name like"),
        ("rows", r"is a folder; .* Name one of those in it, or all: .*/rows/\*\.jsonl\."),
    ):
        with pytest.raises(DataError, match=says):
            load_prompts(beside(tmp_path, train=str(tmp_path / name)), "train", tokenizer)
    (tmp_path / "rows" / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"Of `save_to_disk`: write its rows with to_parquet"):
        load_prompts(beside(tmp_path, train="rows"), "train", tokenizer)
