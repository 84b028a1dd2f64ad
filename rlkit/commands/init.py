"""``rlkit init``: a small project of the user's own, which trains as it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlkit.errors import ConfigError
from rlkit.record.output import require_folder
from rlkit.shipped import EXAMPLES

PROJECT = EXAMPLES / "project"


def init(folder: str | Path) -> tuple[Path, ...]:
    """Writes a configuration, a reward and the reward's test into a folder; returns their paths.

    Raises:
        ConfigError: one of the files is there, or the folder cannot be written to.
    """
    folder = Path(folder)
    require_folder(folder, "init")
    files = {folder / path.name: path for path in sorted(PROJECT.glob("*.*"))}
    there = [str(path) for path in files if path.exists()]
    if there:
        raise ConfigError(f"init: {', '.join(there)} exists already. Name another folder; nothing was written.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, source in files.items():
        shutil.copyfile(source, path)
    return tuple(files)
