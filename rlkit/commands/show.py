"""``rlkit show``: the resolved configuration, where each value came from, and what each term needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.checks import check
from rlkit.config import describe
from rlkit.errors import ConfigError
from rlkit.run import Run, load_with_origins


@dataclass(frozen=True)
class Shown:
    """A run as a text for the screen (``str``), and why it cannot be trained, one sentence each."""

    run: Run
    text: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return self.text


def show(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Shown:
    """What :func:`rlkit.load` makes of the same arguments, with the origin of each value.

    Raises:
        ConfigError: every value that is wrong by itself, with its place. Sections that do not fit together are ``problems``.
    """
    run, origins = load_with_origins(source, overrides)
    lines = [
        describe(run, origins),
        "\nterm                          needs                         reduce  coefficient",
    ]
    for t in run.objective:
        lines.append(f"{t.name:<29} {', '.join(sorted(t.needs)) or '-':<29} {t.reduce:<7} {t.coef}")
    for penalty in run.reward_penalties:
        lines.append(f"{penalty.name:<29} {', '.join(sorted(penalty.needs)):<29} {'reward':<7} {penalty.coef}")
    lines.append(f"\nforward passes before each update: {', '.join(run.passes) or 'none'}")
    try:
        check(run)
    except ConfigError as error:
        return Shown(run, "\n".join(lines), tuple(str(error).splitlines()))
    return Shown(run, "\n".join(lines), ())
