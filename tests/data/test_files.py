"""Files of rows as programs write them, and every damage answered in one sentence with its place."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlkit.data.prompts import load_prompts
from rlkit.data.stored import Stored, StoredRows
from rlkit.errors import DataError
from rlkit.model.tiny import make_tokenizer
from rlkit.types import Prompt
from tests.data.tables import beside

GOOD = b'{"prompt": "1", "answer": "2"}\n'
ROWS = [("1", "2"), ("2", "4")]


def read(folder: Path, name: str, **settings: object) -> list[Prompt]:
    return load_prompts(beside(folder, train=name, **settings), "train", make_tokenizer("0123456789 "))


WHOLE = {
    "mark.jsonl": b"\xef\xbb\xbf" + GOOD + b'{"prompt": "2", "answer": "4"}',
    "windows.jsonl": GOOD.replace(b"\n", b"\r\n") + b'{"prompt": "2", "answer": "4"}\r\n',
    "empty_end.jsonl": GOOD + b'{"prompt": "2", "answer": "4"}\n\n  \n\n',
    "packed.jsonl.gz": gzip.compress(GOOD + b'{"prompt": "2", "answer": "4"}'),
    "upper.JSONL": GOOD + b'{"prompt": "2", "answer": "4"}',
    "mark.json": b'\xef\xbb\xbf[{"prompt": "1", "answer": "2"},\n {"prompt": "2", "answer": "4"}]\n\n',
    "mark.csv": b"\xef\xbb\xbfprompt,answer\r\n1,2\r\n2,4\r\n\r\n",
    "packed.csv.gz": gzip.compress(b'prompt,answer\n"1",2\n2,4'),
}


@pytest.mark.parametrize("name", WHOLE)
def test_files_as_programs_write_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WHOLE[name])
    assert [(p.text, p.answer) for p in read(tmp_path, name)] == ROWS


DAMAGED = {
    "empty.jsonl": (GOOD + b"\n\n" + GOOD, ":2: the line is empty"),
    "binary.jsonl": (GOOD + bytes(range(128, 256)), ":2: the file is not UTF-8 text (byte 0x80 at place 1 of"),
    "latin.jsonl": (
        GOOD + '{"prompt": "é"}'.encode("latin-1"),
        ":2: the file is not UTF-8 text (byte 0xe9 at place 13",
    ),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), " is UTF-16 text: save it as UTF-8."),
    "utf16.csv": ("prompt,answer\n1,2".encode("utf-16"), " is UTF-16 text"),
    "latin.csv": ("prompt,answer\n1,é".encode("latin-1"), ":2: the file is not UTF-8 text"),
    "nul.csv": (b"prompt,answer\n1\x00,2\n" + bytes([0xFF]), ":3: the file is not UTF-8 text"),
    "packed.jsonl": (gzip.compress(GOOD), " is compressed by gzip: let its name end in .gz."),
    "torn.jsonl.gz": (gzip.compress(GOOD * 50)[:-12], ": the file cannot be read (Compressed file ended"),
    "no.json.gz": (b"no gzip at all", ": the file cannot be read (Not a gzipped file"),
    "columns.jsonl": (b"PAR1 and more", " is a Parquet file: let its name end in .parquet."),
    "nan.jsonl": (GOOD + b'{"prompt": "2", "answer": NaN}', ":2: NaN is not JSON; write null"),
    "inside.jsonl": (b'{"prompt": "2", "x": [-Infinity]}', ":1: -Infinity is not JSON"),
    "nan.json": (b'[{"prompt": "2", "answer": NaN}]', ":1: NaN is not JSON"),
    "twice.jsonl": (b'{"prompt": "2", "prompt": "3"}', ":1: the key 'prompt' stands twice in one object"),
    "half.jsonl": (GOOD + b'{"prompt": "2", "x": ["\\ud800"]}', r":2: \ud800 is half a surrogate pair"),
    "half.json": (b'[{"prompt": "\\uDC00 1"}]', r":1: \udc00 is half a surrogate pair"),
    "list.jsonl": (
        b'[{"prompt": "1"}]',
        ":1: found a list; each line must be one JSON object. The file is one JSON list",
    ),
    "pretty.jsonl": (
        b'{\n "prompt": "1"\n}',
        ":1: not valid JSON (Expecting property name enclosed in double quotes at",
    ),
    "long.jsonl": (GOOD + b'{"prompt": "' + b"1" * 30_000_000, ":2: not valid JSON (Unterminated string"),
    "deep.jsonl": (b"[" * 200_000, ":1: not readable JSON (maximum recursion depth"),
    "digits.jsonl": (b'{"prompt": "1", "answer": ' + b"1" * 5000 + b"}", ":1: not readable JSON (Exceeds the limit"),
    "lines.json": (GOOD * 2, " has one object a line: let its name end in .jsonl."),
    "torn.json": (b'[{"prompt": "1"},\n {"prompt"', ":2: not valid JSON (Expecting ':' delimiter at column"),
    "dict.json": (b'{"data": []}', ": found a dict; a .json file must hold a list of objects"),
    "text.json": (b'[{"prompt": "1"}, "2"]', "[1]: found a str; each entry must be one JSON object"),
    "short.csv": (b"prompt,answer\n1,2\n2\n", ":3: 1 fields, but the first line names 2 columns"),
    "wide.csv": (b'prompt,answer\n"1\n0",2\n2,4,5\n', ":4: 3 fields, but the first line names 2 columns"),
    "open.csv": (b'prompt,answer\n1,2\n"2,4\n', ":3: not valid CSV (unexpected end of data)"),
    "large.csv": (b"prompt,answer\n1," + b"2" * 200_000, ":2: not valid CSV (field larger than field limit (131072))"),
    "same.csv": (b"prompt,answer,answer\n1,2,3\n", ":1: the column 'answer' stands twice"),
    "no.parquet": (b"no parquet", "[0]: not a readable Parquet file (Parquet magic bytes not found"),
    "torn.parquet": (b"PAR1" + b"\x00" * 40 + b"PAR1", "[0]: not a readable Parquet file ("),
    "nothing.jsonl": (b"\n\n", "data.train: no prompt is left of "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_said_with_its_place(name: str, tmp_path: Path) -> None:
    data, says = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(tmp_path, name)
    message = str(caught.value)
    assert (says if says.startswith("data.") else f"{tmp_path / name}{says}") in message and len(message) < 400, message
    assert "\n" not in message


def test_places_that_are_no_file_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.tsv").write_text("prompt\n1")
    for name, says in (
        ("folder.jsonl", r"folder\.jsonl is a folder; name a file"),
        ("data", r"data' is a folder; rows are read from \.jsonl"),
        ("data/rows.tsv", r"data/rows\.tsv' is a file; rows are read from"),
        ("data/rows.jsonl", r"there is no file 'data/rows\.jsonl'\. Did you mean .*rows\.tsv"),
    ):
        with pytest.raises(DataError, match=says):
            read(tmp_path, name)


NUMBERS = [float("nan"), float("inf"), [1.0, float("nan")], ["1", None]]


@pytest.mark.parametrize("answer", NUMBERS, ids=str)
def test_an_answer_that_is_no_number_is_refused_with_its_row(answer: object, tmp_path: Path) -> None:
    good = [answer] if not isinstance(answer, list) else answer[:1]
    table = pyarrow.table({"prompt": ["1", "2"], "gold": [good[0] if not isinstance(answer, list) else good, answer]})
    if not isinstance(answer, list):
        table = pyarrow.table({"prompt": ["1", "2"], "gold": [3.0, answer]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=re.escape("d.parquet[1]: the answer is ")):
        read(tmp_path, "d.parquet", columns={"answer": "gold"})


def test_null_answers_are_refused_and_ids_may_be_anything(tmp_path: Path) -> None:
    rows = [{"prompt": "1", "answer": "2", "id": 7}, {"prompt": "2", "answer": None, "id": [1, "x"]}]
    (tmp_path / "null.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"null\.jsonl:2: the answer is empty \(1 of 2"):
        read(tmp_path, "null.jsonl")
    rows[1]["answer"] = ["4", "5"]
    rows.append({"prompt": "3", "answer": 0, "id": None})
    (tmp_path / "null.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = read(tmp_path, "null.jsonl")
    assert [p.id for p in got[:2]] == ["7", "[1, 'x']"] and re.fullmatch("[0-9a-f]{16}", got[2].id)


def test_stored_rows_are_read_by_the_same_rules(tmp_path: Path) -> None:
    row = {"prompt": "1\u20282", "tokens": [5, 1], "logp": [-1.0, -0.5]}
    line = json.dumps(row, ensure_ascii=False).encode()  # a line separator of Unicode ends no line
    (tmp_path / "s.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n")
    rows = StoredRows(Stored(path=str(tmp_path / "s.jsonl")), make_tokenizer("12\u2028"), 0).rows
    assert [r.prompt.text for r in rows] == ["1\u20282"] and rows[0].prompt.token_ids == (3, 5, 4)
    for bad, says in (
        (b"\xff", "not UTF-8"),
        (b"\n" + line, "line is empty"),
        (line.replace(b"5,", b"-5,"), "ids from 0"),
    ):
        (tmp_path / "s.jsonl").write_bytes(line + b"\n" + bad)
        with pytest.raises(DataError, match=rf"s\.jsonl:2: .*{says}"):
            StoredRows(Stored(path=str(tmp_path / "s.jsonl")), make_tokenizer("12\u2028"), 0)
