"""Checkpoints: whole or not there; damage is found before anything is read; what stays, and when one is due."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.data.statistics import PromptStatistics
from rlkit.errors import CheckpointError, ConfigError
from rlkit.record.checkpoint import Cadence, Checkpoints, folder_bytes, read_tensors, write_tensors
from rlkit.run import CheckpointSection
from rlkit.types import Prompt
from tests.test_files import largest_file


def store(folder: str) -> None:
    write_tensors(Path(folder) / "learner.pt", {"w": torch.arange(100.0)})
    (Path(folder) / "deepspeed").mkdir()
    (Path(folder) / "deepspeed" / "rank0.pt").write_bytes(bytes(range(256)) * 20)
    PromptStatistics([Prompt("a", (1,), "x")]).save(Path(folder) / "prompts.sqlite")


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    c = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        c.save(step, {"step": step}, store)
    return c


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def file_as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: list[Callable[[Path], Any]] = [
    lambda f: flip(f / "learner.pt", 700),
    lambda f: flip(f / "deepspeed" / "rank0.pt", -1),
    lambda f: flip(f / "prompts.sqlite", 5000),
    lambda f: (f / "learner.pt").write_bytes(bytes((f / "learner.pt").stat().st_size)),
    lambda f: (f / "learner.pt").write_bytes(b""),
    lambda f: (f / "deepspeed" / "rank0.pt").unlink(),
    lambda f: file_as_folder(f / "prompts.sqlite"),
    lambda f: (f / "manifest.json").write_bytes(b""),
    lambda f: (f / "manifest.json").unlink(),
    lambda f: (f / "manifest.json").write_text("[]"),
    lambda f: (f / "manifest.json").write_text("{}"),
    lambda f: (f / "manifest.json").write_bytes(b"\0" * 100),
    lambda f: flip(f / "manifest.json", 14),
    lambda f: flip(f / "manifest.json", 60),
    lambda f: (f / "driver.json").write_text('{"step": 2, "sam'),
    lambda f: (f / "driver.json").unlink(),
    as_file,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_kept(
    two: Checkpoints, damage: Callable[[Path], Any]
) -> None:
    damage(two.path(2))
    whole, damaged = two.newest_whole()
    assert whole == two.path(1) and list(damaged) == [two.path(2)] and "step_00000002" in damaged[two.path(2)]
    assert not any(word in damaged[two.path(2)] for word in ("Expecting", "weights_only", "Traceback"))
    (aside,) = two.set_aside(damaged)
    assert aside.name == "damaged_00000002" and aside.exists() and two.newest_whole() == (two.path(1), {})
    two.save(2, {}, store)
    damage(two.path(2))
    assert two.set_aside(two.newest_whole()[1])[0].name == "damaged_00000002_2"


def test_none_that_is_whole_is_said_and_nothing_is_changed(two: Checkpoints) -> None:
    for step in (1, 2):
        flip(two.path(step) / "learner.pt", 700)
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole, and nothing was changed.*another checksum"):
        two.newest_whole()
    assert len(two.complete()) == 2 and Checkpoints(two.folder / "none", 2).newest_whole() == (None, {})
    as_file(two.folder)
    with pytest.raises(CheckpointError, match="is a file"):
        two.newest_whole()


def test_older_and_newer_formats(two: Checkpoints) -> None:
    manifest = json.loads((two.path(2) / "manifest.json").read_text())
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    (two.path(2) / "manifest.json").write_text(json.dumps({"format": 3, "step": 2, "files": sizes}))
    assert two.newest_whole() == (two.path(2), {}) and Checkpoints.read(two.path(2)) == (2, {"step": 2})
    (two.path(2) / "manifest.json").write_text(json.dumps({"format": 9, "step": 2, "files": {}}))
    with pytest.raises(CheckpointError, match="checkpoint format 9, this rlkit reads 3 to 5"):
        two.newest_whole()


def test_a_full_disk_costs_only_the_new_checkpoint(two: Checkpoints) -> None:
    with largest_file(300), pytest.raises(OSError, match=r"File too large: .*learner\.pt"):
        two.save(3, {}, store)
    assert sorted(p.name for p in two.folder.iterdir()) == ["step_00000001", "step_00000002"]
    two.save(3, {}, store)
    assert two.newest_whole() == (two.path(3), {})


def test_what_stays(tmp_path: Path) -> None:
    def kept(keep: int, limit: int | None = None, best: int = -1, steps: int = 5) -> list[int]:
        shutil.rmtree(tmp_path, ignore_errors=True)
        c = Checkpoints(tmp_path, keep, limit)
        for step in range(steps):
            c.save(step, {}, store, protect={best})
        return [int(p.name[5:]) for p in c.complete()]

    assert kept(2) == [3, 4] and kept(1) == [4] and kept(0) == [0, 1, 2, 3, 4]
    assert kept(2, best=1) == [1, 3, 4]
    size = folder_bytes(tmp_path / "step_00000004")
    assert kept(0, limit=3 * size + 9) == [2, 3, 4] and kept(3, limit=2 * size + 9, best=1) == [1, 4]
    assert kept(2, limit=1) == [4]  # the newest stays, whatever the budget


@pytest.mark.parametrize(
    "wrong", [{"keep": -1}, {"every": -1}, {"minutes": 0.0}, {"max_gib": -1.0}, {"time_limit": float("nan")}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is .*; it must"):
        CheckpointSection(**wrong)


def test_when_one_is_due() -> None:
    now = 0.0
    cadence = Cadence(every=None, seconds=900, clock=lambda: now)
    assert not cadence.due(1)
    now = 900
    assert cadence.due(7)
    cadence.wrote(7)
    assert not cadence.due(7) and not cadence.due(8)
    now = 2000
    cadence.failed(took=30)  # not at every step: writing until the disk is full takes time
    now = 2299
    assert not cadence.due(9)
    now = 2301
    assert cadence.due(9)
    by_steps = Cadence(every=5, seconds=None, clock=lambda: now)
    assert [k for k in range(1, 11) if by_steps.due(k)] == [5, 10]
    by_steps.failed(took=0)  # a read-only file system says so at once: no line for each step
    now += 9
    assert not by_steps.due(6)
    now += 2
    assert by_steps.due(6)  # one is owed
    assert CheckpointSection().seconds == 900 and CheckpointSection(every=0).seconds is None


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return (open, (self.mark, "w"))


def test_nothing_in_a_file_of_tensors_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "learner.pt", tmp_path / "ran"
    torch.save({"model": Payload(mark)}, tmp_path / "zip")
    for content in (
        (tmp_path / "zip").read_bytes(),
        pickle.dumps(Payload(mark)),
        b"\0" * 500,
        b"",
        b"PK\3\4" + b"x" * 99,
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"learner\.pt") as told:
            read_tensors(path)
        assert not mark.exists() and "weights_only" not in str(told.value)
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path / "none.pt")


def test_a_damaged_table_of_prompts_is_named_and_a_missing_one_is_not_made(tmp_path: Path) -> None:
    table = PromptStatistics([Prompt("a", (1,), "x")])
    table.data["passes"][0] = 3
    table.save(tmp_path / "p.sqlite")
    frozen = table.copy()
    table.data["passes"][0] = 4
    assert frozen["passes"][0] == 3
    with sqlite3.connect(tmp_path / "p.sqlite") as db:
        assert db.execute("select passes from prompts").fetchall() == [(3.0,)]
    for content in (b"\0" * 4096, b"SQLite format 3\0" + b"x" * 5000):
        (tmp_path / "p.sqlite").write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.sqlite: not a table of prompt statistics"):
            table.load(tmp_path / "p.sqlite")
    with pytest.raises(ValueError, match="not a table"):
        table.load(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_a_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    c = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        c.save(step, {"step": step}, lambda folder: (Path(folder) / "learner.pt").write_bytes(b"x" * 9))
    assert [p.name for p in c.complete()] == ["step_00000002", "step_00000003"]

    def dies(folder: str) -> None:
        (Path(folder) / "learner.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        c.save(4, {}, dies)
    latest = c.complete()[-1]
    assert Checkpoints.read(latest) == (3, {"step": 3})
    (latest / "learner.pt").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"learner.pt should have 9 bytes, found 5"):
        Checkpoints.read(latest)
