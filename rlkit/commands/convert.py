"""``rlkit convert``: a configuration of TRL, verl or OpenRLHF as one of rlkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlkit.errors import ConfigError
from rlkit.moving import openrlhf, trl, verl
from rlkit.moving.settings import Converted, flat, from_file, from_options, from_words

VERL = ("actor_rollout_ref.", "algorithm.", "trainer.")
OPENRLHF = ("actor.", "algo.", "rollout.", "ds.", "vllm.")


def convert(
    source: str | Path | Mapping[str, Any] | Iterable[str],
    kind: Literal["trl", "verl", "openrlhf"] | None = None,
    *,
    processes: int = 1,
    method: trl.Method | None = None,
) -> Converted:
    """What a configuration means here; ``str`` of it is the file.

    Args:
        source: a YAML file, a shell script with ``key=value`` words or OpenRLHF's options, these words, or a mapping (the keywords of
            ``GRPOConfig(...)``).
        kind: whose it is; None: verl's or OpenRLHF's where keys have their sections, else TRL's.
        processes: how many processes TRL was launched with. method: which of TRL's trainers it is for; None: what its keys tell.

    Raises:
        ConfigError: it cannot be read, or asks for a method that has no counterpart.
    """
    if isinstance(source, str | Path):
        found = from_file(Path(source))
    elif isinstance(source, Mapping):
        found = dict(source)
    else:
        words = list(source)
        found = from_options(words) if any(word.startswith("--") for word in words) else from_words(words)
    if not found:
        raise ConfigError("convert: there are no settings in it.")
    theirs = flat(found)
    if kind is None:
        kind = _whose(theirs)
    if kind == "verl":
        return verl.convert(theirs)
    return openrlhf.convert(theirs) if kind == "openrlhf" else trl.convert(found, processes, method)


def _whose(keys: Iterable[str]) -> Literal["trl", "verl", "openrlhf"]:
    keys = list(keys)
    if any(key.startswith(VERL) for key in keys):
        return "verl"
    earlier = sum(key in openrlhf.EARLIER for key in keys)
    if any(key.startswith(OPENRLHF) for key in keys) or (earlier > len(keys) / 2 and "pretrain" in keys):
        return "openrlhf"
    return "trl"
