"""Whether a file or a folder can be made where somebody wants it, asked before the work whose result goes there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from rlkit.errors import ConfigError


def require_file(path: str | Path, where: str) -> None:
    """Refuses a path at which no file can be written. ``where`` is the setting or the option that holds it.

    Raises:
        ConfigError: the path, and what is in the way.
    """
    _require(path, where, "a file")


def require_folder(path: str | Path, where: str) -> None:
    """Refuses a path at which no folder can be made or written to.

    Raises:
        ConfigError: the path, and what is in the way.
    """
    _require(path, where, "a folder")


def _require(path: str | Path, where: str, kind: str) -> None:
    told = _in_the_way(os.path.abspath(path), kind) if "\0" not in str(path) else "the path holds a NUL character"
    if told is not None:
        raise ConfigError(f"{where}: {kind} cannot be written at {str(path)[:200]!r}: {told}.")


def _in_the_way(path: str, kind: str) -> str | None:
    """What keeps one from making it, from the nearest folder above that is there."""
    here, wanted = path, kind
    while True:
        try:
            os.stat(here)
        except OSError as error:
            if error.errno != errno.ENOENT:
                return f"{here[:200]}: {error.strerror}"
            here, wanted = os.path.dirname(here), "a folder"
            continue
        if os.path.isdir(here) != (wanted == "a folder"):
            return f"{here} is {'a folder' if os.path.isdir(here) else 'a file'}"
        try:  # permissions do not say what a read-only or full file system does
            with open(here, "ab") if wanted == "a file" else tempfile.TemporaryFile(dir=here):
                return None
        except OSError as error:
            return f"{here}: {error.strerror}"
