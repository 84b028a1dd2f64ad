"""Files that survive: torn lines, full disks, dead processes; secrets that stay out of them."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.commands.audit import read_responses
from rlkit.errors import CheckpointError, RunError
from rlkit.evaluation.samples import SampleFile, read_samples
from rlkit.evaluation.scaling import read_curve
from rlkit.files import Appender, FolderLock, move_rows, read_rows, replace_file, told
from rlkit.record.log import Timeline, lock_folder
from rlkit.record.masking import mask_command, mask_values


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond so many bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TORN = [b'{"step": 3, "rew', b"\0" * 20, b'{"step": 3}\0\0\0', b"\xff\xfe\n", b"[" * 100_000, b"3\n", b'{"step": 3']


@pytest.mark.parametrize("tail", TORN, ids=lambda t: repr(t[:12]))
def test_a_torn_line_harms_neither_readers_nor_the_rows_after_it(tmp_path: Path, tail: bytes) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    before = path.read_bytes()
    assert [r["step"] for r in read_rows(path, said.append)][:2] == [1, 2] and path.read_bytes() == before
    Appender(path).add('{"step": 4}\n')
    assert path.read_bytes().startswith(before) and [r["step"] for r in read_rows(path)][-1] == 4
    assert len(said) == (3 not in [r["step"] for r in read_rows(path)])


def test_what_does_not_fit_is_written_when_it_does_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    log, lines = Appender(path), [f'{{"step": {k}, "text": "{"x" * k}"}}\n' for k in range(60)]
    for k, line in enumerate(lines):
        with largest_file(300 if k % 4 else 10_000):
            log.add(line)
            assert (log.error is None) == (not log.waiting)
    with largest_file(300):
        log.add('{"step": 60}\n')
        assert log.error is not None and log.error.filename == str(path) and not log.flush()
    assert log.flush() and path.read_text() == "".join(lines) + '{"step": 60}\n'


def test_rows_move_aside_and_none_is_destroyed(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "repeated" / "metrics.jsonl"
    lines = [f'{{"step": {k}}}\n'.encode() for k in range(1, 6)]
    path.write_bytes(b"".join(lines) + b'{"step": 6, "re')
    assert move_rows(path, aside, lambda row: row["step"] <= 3) == 3
    assert path.read_bytes() == b"".join(lines[:3]) and aside.read_bytes() == b"".join(lines[3:]) + b'{"step": 6, "re\n'
    assert move_rows(path, aside, lambda row: row["step"] <= 3) == 0
    before = path.read_bytes()
    with largest_file(aside.stat().st_size + 3), pytest.raises(OSError, match="File too large"):
        move_rows(path, aside, lambda row: row["step"] <= 1)
    assert path.read_bytes() == before


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    replace_file(path, "old")
    with (
        largest_file(100),
        pytest.raises(RunError, match=rf"the settings could not be written \({path}: File too large"),
        told("the settings"),
    ):
        replace_file(path, "x" * 200)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_belongs_to_one_process_as_long_as_it_lives(tmp_path: Path) -> None:
    code = f"from rlkit.files import FolderLock; from pathlib import Path; print(FolderLock(Path({str(tmp_path)!r})).acquire(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with pytest.raises(CheckpointError, match=f"is in use by process {other.pid} on "):
            lock_folder(tmp_path)
        other.kill()
        other.wait()
    lock = lock_folder(tmp_path)  # the kernel let go of it
    assert not FolderLock(tmp_path).acquire()
    lock.release()
    assert FolderLock(tmp_path).acquire()


def test_readers_of_samples_curves_and_responses_leave_torn_lines_out(tmp_path: Path, capsys: Any) -> None:
    settings = {"model": "m"}
    rows = [{"prompt_id": "p", "k": k, "correct": 1.0, "response": "r", "answer": "a"} for k in range(4)]
    store = SampleFile(tmp_path / "samples.jsonl", settings)
    store.add(rows[:2])
    whole = (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(whole + b'{"prompt_id": "p", "k"')
    assert read_responses(tmp_path / "samples.jsonl")[-1]["line"] == 3
    again = SampleFile(tmp_path / "samples.jsonl", settings)
    assert (tmp_path / "samples.jsonl").read_bytes().startswith(whole)  # not written again
    again.add(rows[2:])
    assert [r["k"] for r in read_samples(tmp_path)[1]] == [0, 1, 2, 3]
    # a line that is damaged in the middle is drawn again, with those after it, and counts once
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_bytes(b"".join([*lines[:2], b"\0" * 9 + b"\n", *lines[4:]]))
    third = SampleFile(tmp_path / "samples.jsonl", settings)
    assert [r["k"] for r in third.rows] == [0]
    third.add(rows[1:])
    assert sorted(r["k"] for r in read_samples(tmp_path)[1]) == [0, 1, 2, 3]

    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "reward/mean": 0.5}\n\0\0\0\0\n{"step": 2, "reward/mean": 0.6}\n{"st'
    )
    (tmp_path / "eval.jsonl").write_bytes(b'{"step": 1, "sc')
    assert read_curve(tmp_path, "step").y.tolist() == [0.5, 0.6]
    assert "metrics.jsonl: 2 line(s) were cut off or damaged" in capsys.readouterr().out


def test_a_timeline_goes_on_in_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        with Timeline(tmp_path / "trace.json")("generate"):
            pass
    assert (tmp_path / "trace.json").read_text().count("[\n") == 1 and len(list(tmp_path.iterdir())) == 1


def test_secrets_stay_out_of_what_is_written() -> None:
    line = [
        *(
            "train",
            "c.yaml",
            "log.wandb={project: a, api_key: abc, key: 'd e f'}",
            "HF_TOKEN=ghi",
            "--token",
            "jkl",
            "--password=mno",
        ),
        *(
            "vllm.hf_token=pqr",
            "url=http://me:stu@host/x",
            "x=hf_abcdefghijklmnopqrstu",
            'env={"OPENAI_API_KEY": "vwx"}',
        ),
    ]
    shown = mask_command(line)
    hidden = ("abc", "d e f", "ghi", "jkl", "mno", "pqr", "stu", "hf_abc", "vwx")
    assert (
        not [word for word in hidden if word in " ".join(shown)] and shown[:2] == line[:2] and "project: a" in shown[2]
    )
    plain = [
        "sampling.max_tokens=512",
        "data.columns={prompt: q, key: k}",
        "vllm.tokenizer=x",
        "--resume",
        "data.tokens=3",
    ]
    assert mask_command(plain) == plain
    config = {
        "log": {"wandb": {"api_key": "0123456789abcdef0123", "project": "p"}},
        "args": {"token": "<end>", "max_tokens": 3},
    }
    assert mask_values(config) == {"log": {"wandb": {"api_key": "***", "project": "p"}}, "args": config["args"]}
