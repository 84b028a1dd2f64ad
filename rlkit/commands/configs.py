"""``rlkit configs``: the configurations that come with the library, by name."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlkit.errors import ConfigError
from rlkit.reading import configuration
from rlkit.shipped import EXAMPLES, names


@dataclass(frozen=True)
class Configs:
    """The files of all configurations by name; ``str`` is a table with the first line of each."""

    files: Mapping[str, Path]

    def __str__(self) -> str:
        width = max(map(len, self.files))
        lines = [f"{name:<{width}}  {_about(path)}" for name, path in self.files.items()]
        return "\n".join(
            [*lines, "", "Each is trained, shown and changed by its name: rlkit train quickstart steps=20"]
        )


def configs() -> Configs:
    """What there is to train without a file of one's own."""
    return Configs(names())


def print_config(name: str) -> str:
    """The text of a configuration, or of a Python file that one of the examples names, as a start for a file of one's own.

    What it extends is named in a way that is right in any folder.

    Raises:
        ConfigError: there is none of this name.
    """
    path = EXAMPLES.parent / name if name.endswith(".py") else configuration(name)
    if not path.is_file():
        raise ConfigError(f"no configuration is named {name!r}. `rlkit configs` lists them.")
    text = path.read_text(encoding="utf-8")

    def by_name(m: re.Match[str]) -> str:
        extended = (path.parent / m[2]).resolve()
        found = [known for known, file in names().items() if file.resolve() == extended]
        return m[1] + (found[0] if found else m[2])

    return re.sub(r"(?m)^(extends: *)(\S+)", by_name, text)


def _about(path: Path) -> str:
    """How the comment begins that a configuration begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return textwrap.shorten(comment, 100, placeholder=" ...")
