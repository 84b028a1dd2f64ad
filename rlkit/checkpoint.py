"""Atomic step folders: a checkpoint is complete, or it is not there.

A checkpoint is written under a temporary name and renamed when its manifest is written, so a run that dies while saving
leaves the previous one untouched::

    checkpoints/step_00000050/
        manifest.json       step, format version, and the size of every file
        driver.json         sampler, coefficients, random state, counters
        learner.pt | deepspeed/
        prompts.sqlite      what is known about every prompt
        anchors.pt          the states of reference and teacher
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit.errors import CheckpointError

FORMAT = 3


class Checkpoints:
    """The checkpoints of one run; the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, driver: dict[str, Any], write: Callable[[str], None]) -> Path:
        """``write(folder)`` stores the learners' part; ``driver`` is plain data."""
        final = self.folder / f"step_{step:08d}"
        tmp = self.folder / f".writing_{step:08d}"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        write(str(tmp))
        (tmp / "driver.json").write_text(json.dumps(driver))
        files = {str(p.relative_to(tmp)): p.stat().st_size for p in sorted(tmp.rglob("*")) if p.is_file()}
        (tmp / "manifest.json").write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(tmp, final)
        for old in self.complete()[: -self.keep] if self.keep else []:
            shutil.rmtree(old)
        return final

    def complete(self) -> list[Path]:
        """Folders of finished checkpoints, oldest first."""
        return sorted(p.parent for p in self.folder.glob("step_*/manifest.json"))

    def latest(self) -> Path | None:
        found = self.complete()
        return found[-1] if found else None

    @staticmethod
    def read(folder: Path) -> tuple[int, dict[str, Any]]:
        """Step and driver state.

        Raises:
            ValueError: a file is missing or truncated, or another format.
        """
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: checkpoint format {manifest['format']}, this rlkit reads {FORMAT}. Continue with the rlkit that "
                "wrote it, or start from its exported model (model.path)."
            )
        for name, size in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
                raise CheckpointError(
                    f"{folder}: {name} should have {size} bytes, found {found}. The checkpoint is damaged; "
                    "delete its folder to continue from the one before it."
                )
        return manifest["step"], json.loads((folder / "driver.json").read_text())
