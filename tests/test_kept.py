"""A run folder of an earlier version is kept in ``tests/kept``: its checkpoint is read, and the run goes on as it went on then.

``format5`` is what rlkit 0.1.0 at 8d722b4 left of ``run.yaml`` on a CPU: six steps, of whose checkpoints the one of step 3 is kept, so that
this is a run that was killed before its second one. ``FOLDER`` in its ``config.yaml`` stands for the folder that the paths are relative to.
A change of format that cannot read it breaks users' runs; then a newer one is kept beside it, and this one is to be refused by name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlkit as rk
from rlkit.rollout import hf

pytestmark = pytest.mark.slow

KEPT = Path("tests/kept").resolve()
CLOCKS = ("time/", "speed/", "memory/", "idle/", "seconds")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(KEPT / "format5", tmp_path / "kept")
    config = tmp_path / "kept" / "config.yaml"
    config.write_text(config.read_text().replace("FOLDER", str(KEPT)))
    return tmp_path / "kept"


def rows(path: Path) -> list[dict[str, Any]]:
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in kept]


@pytest.mark.parametrize("source", ["its own config.yaml", "the file that it was started with"])
def test_a_run_of_an_earlier_version_goes_on_as_it_went_on_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(hf, "MAX_ROWS", 1)  # as when it was recorded: a batch is a request
    path = folder / "config.yaml" if source.startswith("its own") else KEPT / "run.yaml"
    rk.train(rk.load(path, [f"out={folder.parent}"]), resume=True, quiet=True)
    for name in ("metrics", "eval", "rollouts"):
        then, now = rows(KEPT / "format5" / f"{name}.jsonl"), rows(folder / f"{name}.jsonl")
        assert [row["step"] for row in now] == [row["step"] for row in then], name
        for a, b in zip(then, now, strict=True):
            assert a.keys() <= b.keys(), (name, a.keys() - b.keys())
            numbers = {k: v for k, v in a.items() if isinstance(v, float)}
            assert {k: b[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5, nan_ok=True), (
                name,
                a["step"],
            )
            rest = {k: v for k, v in a.items() if k not in numbers}
            assert {k: b[k] for k in rest} == rest, (name, a["step"])
    start, final = (load_file(folder / where / "model.safetensors") for where in ("start", "final"))
    assert start.keys() == final.keys() and any(not torch.equal(start[k], final[k]) for k in start)
