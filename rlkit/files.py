"""Files that survive: what rlkit writes is whole or recognisably not, and what cannot be written now is written later.

Three kinds of files, three rules. A small file is replaced: written beside the old one, forced to disk, renamed. A file of rows (JSONL)
only grows, by whole lines; whoever reads one leaves out lines that a crash cut off. A folder that belongs to one run is locked while it
runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rlkit.errors import CheckpointError, RunError

CHUNK = 8 << 20
Row = dict[str, Any]


def reason(error: OSError, path: Path | None = None) -> str:
    """``file: why``, for a sentence."""
    where = path if path is not None else error.filename
    return f"{where}: {error.strerror or error}" if where else str(error.strerror or error)


@contextlib.contextmanager
def told(what: str, remedy: str = "Make room, or make it writable, and continue with --resume.") -> Iterator[None]:
    """A file that cannot be written becomes one sentence: ``what`` could not be written, which file, why, what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what} could not be written ({reason(error)}). {remedy}") from error


# -- whole files ------------------------------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Forces the entries of a folder to disk: a new name is lost with the power otherwise."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def checksum(path: Path, sync: bool = False) -> tuple[int, str]:
    """(bytes, CRC-32 as hex digits) of a file; with ``sync`` it is on disk afterwards."""
    size = crc = 0
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        if sync:
            os.fsync(f.fileno())
    return size, f"{crc:08x}"


def sync_tree(folder: Path) -> None:
    """Forces everything in a folder to disk."""
    for path in (*folder.rglob("*"), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file whole: the old one stays until the new one is on disk."""
    tmp = path.with_name(f".{path.name}.writing")
    try:
        with tmp.open("wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def replace_folder(new: Path, final: Path) -> None:
    """Puts the finished folder ``new`` in the place of ``final``."""
    sync_tree(new)
    old = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


# -- rows -------------------------------------------------------------------------------------------------------------


def parse_row(line: bytes) -> Row | None:
    """The row of a line; None for what is no row: a line that was cut off, zeros that a crash left behind, an empty line."""
    try:
        row = json.loads(line.strip(b"\0 \t\r\n"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path, say: Callable[[str], None] = lambda text: None) -> list[Row]:
    """The rows of a JSONL file that rlkit wrote; empty if there is no such file.

    Lines that a crash or a full disk cut off are left out, wherever they are: a run that continues writes its rows after them. ``say`` is
    told of them. The file stays as it is.
    """
    rows, bad = list[Row](), list[int]()
    if not path.exists():
        return rows
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            row = parse_row(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                bad.append(number)
    if bad:
        places = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        say(f"note: {path}: {len(bad)} line(s) were cut off or damaged and are left out (line {places}).")
    return rows


def move_rows(path: Path, aside: Path, stays: Callable[[Row], bool]) -> int:
    """Moves the rows that do not stay, and damaged lines, to the end of ``aside``; returns how many.

    They are on disk there before the file is replaced, so a crash in between at most leaves them in both.
    """

    def keeps(line: bytes) -> bool:
        row = parse_row(line)
        return row is not None and stays(row)

    if not path.exists():
        return 0
    with path.open("rb") as f:
        moved = [line.rstrip(b"\n") + b"\n" for line in f if line.strip() and not keeps(line)]
    if not moved:
        return 0
    aside.parent.mkdir(exist_ok=True)
    log = Appender(aside)
    log.add(b"".join(moved))
    if log.error is not None:
        raise log.error
    log.sync()
    tmp = path.with_name(f".{path.name}.writing")
    with path.open("rb") as f, tmp.open("wb") as out:
        out.writelines(line.rstrip(b"\n") + b"\n" for line in f if keeps(line))
        out.flush()
        os.fsync(out.fileno())
    os.replace(tmp, path)
    sync_folder(path.parent)
    return len(moved)


class Appender:
    """The end of a file that one process writes. Thread-safe.

    What cannot be written stays in memory, ``error`` says why, and every later call tries again and goes on at the very byte: no line is
    lost, doubled or torn as long as the process lives. A line that an earlier process left unfinished is ended first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.waiting, self.error = path, bytearray(), None
        self._begun, self._lock = False, threading.Lock()

    error: OSError | None

    def add(self, text: str | bytes) -> None:
        """Appends ``text``, which ends with a line feed."""
        with self._lock:
            self.waiting += text.encode() if isinstance(text, str) else text
            self._write()

    def flush(self) -> bool:
        """Tries to write what waits; whether nothing does."""
        with self._lock:
            if self.waiting:
                self._write()
            return not self.waiting

    def sync(self) -> None:
        """Forces what is written to disk."""
        if self.path.exists():
            with self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _write(self) -> None:
        try:
            with open(self.path, "a+b", buffering=0) as f:
                if not self._begun:
                    if f.seek(0, os.SEEK_END) and not self._ends_a_line(f):
                        f.write(b"\n")
                    self._begun = True
                while self.waiting:
                    del self.waiting[: f.write(self.waiting) or 0]
            self.error = None
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, str(self.path))

    @staticmethod
    def _ends_a_line(f: IO[bytes]) -> bool:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"


# -- one run in a folder ----------------------------------------------------------------------------------------------


class FolderLock:
    """A folder that belongs to one process. The kernel frees it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path, self._fd = folder / ".lock", -1

    def acquire(self) -> bool:
        """Whether the folder is now ours.

        Raises:
            CheckpointError: the file cannot be made.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"the run folder cannot be locked ({reason(error)}). Make it writable.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:  # a file system without locks: there is nothing to hold, and no reason not to run
            pass
        self._fd = fd
        with contextlib.suppress(OSError):  # who it is, for the message of another; the lock does not depend on it
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        try:
            return self.path.read_text().strip() or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
