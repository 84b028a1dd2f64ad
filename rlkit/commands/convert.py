"""``rlkit convert``: a configuration of TRL or verl as one of rlkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlkit.errors import ConfigError
from rlkit.moving import trl, verl
from rlkit.moving.settings import Converted, flat, from_file, from_words


def convert(
    source: str | Path | Mapping[str, Any] | Iterable[str],
    kind: Literal["trl", "verl"] | None = None,
    *,
    processes: int = 1,
) -> Converted:
    """What a configuration means here; ``str`` of it is the file.

    Args:
        source: a YAML file, a shell script with ``key=value`` words, these words, or a mapping (the keywords of ``GRPOConfig(...)``).
        kind: whose it is; None: verl's where keys have its sections, else TRL's.
        processes: how many processes TRL was launched with.

    Raises:
        ConfigError: it cannot be read, or asks for a method that has no counterpart.
    """
    if isinstance(source, str | Path):
        found: dict[str, Any] = from_file(Path(source))
    else:
        found = dict(source) if isinstance(source, Mapping) else from_words(source)
    if not found:
        raise ConfigError("convert: there are no settings in it.")
    theirs = flat(found)
    if kind is None:
        kind = (
            "verl" if any(key.startswith(("actor_rollout_ref.", "algorithm.", "trainer.")) for key in theirs) else "trl"
        )
    return verl.convert(theirs) if kind == "verl" else trl.convert(found, processes)
