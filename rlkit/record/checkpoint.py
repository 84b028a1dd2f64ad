"""Step folders: a checkpoint is whole, or it is not there, and a damaged one is found before anything is read from it.

A checkpoint is written under a temporary name, forced to disk, and renamed when its manifest is written, so a run that dies while saving
leaves the previous one untouched::

    checkpoints/step_00000050/
        manifest.json       step, format version, and the size and CRC-32 of every file; a checksum of itself
        driver.json         sampler, coefficients, random state, counters
        learner.pt | deepspeed/
        prompts.sqlite      what is known about every prompt
        anchors.pt          the states of reference and teacher
        ahead.jsonl         prompt groups that were in flight, with the responses that were there
    checkpoints/best.json   which step had the best held-out score
    checkpoints/damaged_00000060/   kept aside by a run that continued from an older one

Nothing in such a folder is unpickled: files of tensors are read by torch with ``weights_only``, the others are JSON and SQLite. The
checksums find what breaks by itself (CRC-32 by zlib, some 6 GB a second); they do not protect from somebody who can write in the folder.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlkit.errors import CheckpointError
from rlkit.files import checksum, reason, replace_file, replace_folder
from rlkit.record.section import CheckpointSection

FORMAT = 5
READABLE = (3, 4, 5)  # 3 had sizes in place of checksums; up to 4 there were no responses of groups in flight


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not as it was written; an older one may be."""


class Checkpoints:
    """The checkpoints of one run: the newest ``keep`` stay (0: all), and those of ``save``'s ``protect``.

    ``max_bytes`` bounds what they take together; null: half of what they and the free disk are. Whatever it is, the newest stays.
    """

    def __init__(self, folder: Path, keep: int, max_bytes: int | None = None) -> None:
        self.folder, self.keep, self.max_bytes = folder, keep, max_bytes

    @classmethod
    def of(cls, section: CheckpointSection, folder: Path) -> Checkpoints:
        """Those of a run folder."""
        limit = None if section.max_gib is None else int(section.max_gib * 2**30)
        return cls(folder / "checkpoints", section.keep, limit)

    def save(
        self,
        step: int,
        driver: dict[str, Any],
        write: Callable[[str], None],
        protect: Iterable[int] = (),
    ) -> Path:
        """``write(folder)`` stores the learners' part; ``driver`` is plain data.

        Raises:
            OSError: it cannot be written; the others are untouched.
        """
        final, tmp = self.path(step), self.folder / f".writing_{step:08d}"
        driver_text = json.dumps(driver)
        try:
            self._make_room(protect)
            self._sweep()
            tmp.mkdir(parents=True)
            write(str(tmp))
            (tmp / "driver.json").write_text(driver_text)
            paths = [p for p in sorted(tmp.rglob("*")) if p.is_file()]
            with ThreadPoolExecutor(8) as pool:
                sums = list(pool.map(lambda p: checksum(p, sync=True), paths))
            files = {
                str(p.relative_to(tmp)): {"bytes": n, "crc32": crc} for p, (n, crc) in zip(paths, sums, strict=True)
            }
            manifest = {"format": FORMAT, "step": step, "files": files}
            (tmp / "manifest.json").write_text(json.dumps({**manifest, "check": _check(manifest)}, indent=1))
            replace_folder(tmp, final)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        self._prune({step, *protect})
        return final

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    # -- what stays -----------------------------------------------------------------------------------------------

    def _prune(self, protect: set[int]) -> None:
        """Removes what neither ``keep`` nor ``protect`` names, and the oldest of what is left until the budget holds."""
        there = self.complete()
        kept = there[-self.keep :] if self.keep else there
        safe = {self.path(s) for s in protect}
        for path in there:
            if path not in kept and path not in safe:
                shutil.rmtree(path, ignore_errors=True)
        there = [p for p in there if p in kept or p in safe]
        budget = self._budget(there)
        sizes = {p: folder_bytes(p) for p in there}
        for path in sorted(there, key=lambda p: (p in safe, p)):  # those that are protected go last
            if path == there[-1] or sum(sizes.values()) <= budget:
                break
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]

    def _budget(self, there: list[Path]) -> float:
        if self.max_bytes is not None:
            return float(self.max_bytes)
        return (shutil.disk_usage(self.folder).free + sum(map(folder_bytes, there))) / 2

    def _make_room(self, protect: Iterable[int]) -> None:
        """Removes older checkpoints where a new one of the newest's size would not fit beside them on the disk."""
        there = self.complete()
        if not there:
            return
        need = folder_bytes(there[-1]) * 1.05
        safe = {self.path(s) for s in protect}
        for path in there[:-1]:
            if shutil.disk_usage(self.folder).free >= need:
                return
            if path not in safe:
                shutil.rmtree(path, ignore_errors=True)

    def mark_best(self, step: int, score: float) -> None:
        replace_file(self.folder / "best.json", json.dumps({"step": step, "score": score}))

    # -- reading --------------------------------------------------------------------------------------------------

    def complete(self) -> list[Path]:
        """Folders of finished checkpoints, oldest first."""
        return sorted(p.parent for p in self.folder.glob("step_*/manifest.json"))

    def newest_whole(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest checkpoint that is whole, and those after it that are not, each with what is wrong. Changes nothing.

        Raises:
            CheckpointError: there are checkpoints, but none is whole, or one is of a format that this version does not read.
        """
        damaged: dict[Path, str] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(
                f"{self.folder} is a file; it must be the folder of the run's checkpoints. Move it away."
            )
        for path in sorted(self.folder.glob("step_*"), reverse=True):
            try:
                self.read(path)
            except DamagedCheckpoint as error:
                damaged[path] = str(error)
                continue
            return path, damaged
        if damaged:
            found = " ".join(damaged.values())
            raise CheckpointError(
                f"--resume: no checkpoint in {self.folder} is whole, and nothing was changed. {found} Put back a copy, or start "
                "a new run without --resume."
            )
        return None, {}

    @staticmethod
    def read(folder: Path) -> tuple[int, dict[str, Any]]:
        """Step and driver state of a checkpoint, all of whose files are as they were written.

        Raises:
            DamagedCheckpoint: something is missing or has other bytes.
            CheckpointError: another format.
        """
        if not folder.is_dir():
            raise DamagedCheckpoint(f"{folder} is a file where a checkpoint's folder should be.")
        manifest = _read_json(folder, "manifest.json")
        found = manifest.get("check", _check(manifest))
        if found != _check(manifest) or not isinstance(manifest.get("files"), dict):
            raise DamagedCheckpoint(f"{folder}: manifest.json does not have the bytes that were written.")
        if manifest.get("format") not in READABLE:
            raise CheckpointError(
                f"{folder}: checkpoint format {manifest.get('format')}, this rlkit reads {READABLE[0]} to {FORMAT}. Continue with "
                "the rlkit that wrote it, or start from its exported model (model.path)."
            )
        for name, expected in manifest["files"].items():
            _verify(folder, name, expected)
        driver = _read_json(folder, "driver.json")
        step = manifest.get("step")
        if not isinstance(step, int) or folder.name != f"step_{step:08d}":
            raise DamagedCheckpoint(f"{folder}: its manifest says that it is of step {step}.")
        return step, driver

    def set_aside(self, damaged: Iterable[Path]) -> list[Path]:
        """Renames damaged checkpoints, so that no later run takes them for good ones."""
        moved = []
        for path in damaged:
            target = self.folder / path.name.replace("step_", "damaged_")
            k = 2
            while target.exists():
                target, k = self.folder / f"{path.name.replace('step_', 'damaged_')}_{k}", k + 1
            os.replace(path, target)
            moved.append(target)
        self._sweep()
        return moved

    def _sweep(self) -> None:
        """Removes what a dead or failed save left."""
        for left in (*self.folder.glob(".writing_*"), *self.folder.glob(".*.replaced")):
            shutil.rmtree(left, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _check(manifest: dict[str, Any]) -> str:
    """The checksum of a manifest, without the key that holds it."""
    text = json.dumps({k: v for k, v in manifest.items() if k != "check"}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_bytes())
    except OSError as error:
        raise DamagedCheckpoint(f"{folder}: {name}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpoint(f"{folder}: {name} is not the JSON that was written.") from None
    if not isinstance(found, dict):
        raise DamagedCheckpoint(f"{folder}: {name} is not the JSON that was written.")
    return found


def _verify(folder: Path, name: str, expected: Any) -> None:
    """Raises DamagedCheckpoint if a file is not as the manifest says; one of format 3 knows sizes only."""
    path = folder / name
    size = expected["bytes"] if isinstance(expected, dict) else expected
    try:
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "no such file" if found is None else f"{found} bytes"
            raise DamagedCheckpoint(f"{folder}: {name} should have {size} bytes, found {what}.")
        if isinstance(expected, dict) and checksum(path)[1] != expected["crc32"]:
            raise DamagedCheckpoint(f"{folder}: {name} does not have the bytes that were written (another checksum).")
    except OSError as error:
        raise DamagedCheckpoint(f"{folder}: {name} cannot be read ({error.strerror}).") from None


# -- files of tensors -------------------------------------------------------------------------------------------------


class _Target(io.FileIO):
    """A file that remembers why it could not be written: torch reports only that something went wrong."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            view, done = memoryview(data).cast("B"), 0
            while done < len(view):
                done += super().write(view[done:]) or 0
            return done
        except OSError as error:
            self.failure = error
            raise


def write_tensors(path: Path, state: Any) -> None:
    """Writes tensors, in plain containers, to a file.

    Raises:
        OSError: it cannot be written.
    """
    import torch

    with _Target(str(path), "w") as f:
        try:
            torch.save(state, f)
        except Exception:
            if f.failure is not None:
                raise OSError(f.failure.errno, f.failure.strerror, str(path)) from None
            raise


def read_tensors(path: Path, allowed: Iterable[type] = ()) -> Any:
    """What :func:`write_tensors` wrote. Nothing is executed: only tensors, plain containers and the ``allowed`` classes are read.

    Raises:
        CheckpointError: there is something else in the file, or it is not whole.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors and numbers: it was not written by rlkit, and nothing in it was executed. Do not "
            "trust this checkpoint; move its folder away to continue from the one before it."
        ) from None
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no such file. The checkpoint was made by another kind or number of learners, or it is incomplete."
        ) from None
    except OSError as error:
        raise CheckpointError(f"a checkpoint cannot be read ({reason(error, path)}).") from None
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise CheckpointError(
            f"{path} is not a whole file of tensors. Move the folder of this checkpoint away to continue from the one before it."
        ) from None


# -- when -------------------------------------------------------------------------------------------------------------


class Cadence:
    """When a checkpoint is due: every so many steps, or so many seconds after the last; after a failure not before ten times its seconds,
    and ten of them at least, because each failure prints a line.

    ``clock``: where the time is from.
    """

    def __init__(self, every: int | None, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.seconds, self.clock = every, seconds, clock
        self.last, self.saved, self.not_before = clock(), -1, -1.0
        self.owed = False  # one that was due could not be written

    def due(self, step: int) -> bool:
        now = self.clock()
        if step == self.saved or now < self.not_before:
            return False
        by_steps = bool(self.every) and step % (self.every or 1) == 0
        return self.owed or by_steps or (self.seconds is not None and now - self.last >= self.seconds)

    def wrote(self, step: int) -> None:
        self.last, self.saved, self.owed = self.clock(), step, False

    def failed(self, took: float) -> None:
        self.not_before, self.owed = self.clock() + 10 * max(took, 1.0), True
