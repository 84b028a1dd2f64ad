"""Runs as their folders tell them, also while they go on; runs that differ in their seed alone are one group."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.files import Row, parse_row, read_rows
from rlkit.reading import read, shown
from rlkit.record.alarms import Alarms
from rlkit.record.results import HeldOut, RunFolder

MOST = 32 << 20  # bytes of a file of responses that are read; of a larger one every so many steps are
BY_ITSELF = frozenset({"seed", "name", "out"})  # keys in which the runs of a group may differ
DEFAULT = "default"


@dataclass(frozen=True)
class Told:
    """What a run said when its numbers looked wrong."""

    step: int
    text: str


@dataclass(frozen=True)
class Seen:
    """A run as its folder tells it.

    Attributes:
        config: every value by its dotted path. origins: where those were read that were read; others are defaults, or nothing is known.
        rows: of ``metrics.jsonl``. rollouts, samples: responses of training and of evaluations. starts: of ``environment.jsonl``.
        summary: what the run said at its end; None: it has not come to it.
    """

    folder: Path
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    rows: Sequence[Row]
    held_out: Sequence[HeldOut]
    rollouts: Sequence[Row]
    samples: Sequence[Row]
    starts: Sequence[Row]
    summary: Mapping[str, Any] | None

    @functools.cached_property
    def told(self) -> Sequence[Told]:
        """Its alarms, as it said them."""
        return told(self.rows)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def steps(self) -> int:
        """Those that are done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def ended(self) -> bool:
        """Whether it has come to its end; a run that was continued after its end has not, until it says so again."""
        return self.summary is not None and int(self.summary["steps"]) >= self.steps

    def series(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) wherever the metric is a number."""
        return [(r["step"], r[metric]) for r in self.rows if isinstance(r.get(metric), int | float)]

    def last(self, metric: str) -> float | None:
        found = self.series(metric)
        return found[-1][1] if found else None

    def origin(self, key: str) -> str:
        """Where the value of a key was read: there, or where a mapping or list that holds it was."""
        if not self.origins:
            return "?"
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return DEFAULT


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, whose seeds may differ. ``label`` is what tells it from the other groups."""

    label: str
    runs: Sequence[Seen]


def see(folder: str | Path) -> Seen:
    """Reads a run folder.

    Raises:
        ConfigError: it is none.
    """
    folder = RunFolder(Path(folder).resolve())
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml.")
    rows = [row for _, row in sorted({row["step"]: row for row in folder.metrics()}.items())]
    starts = read_rows(folder / "environment.jsonl")
    summary = folder / "summary.json"
    return Seen(
        Path(folder),
        {path: leaf.value for path, leaf in read(folder / "config.yaml").leaves()},
        starts[-1].get("origins", {}) if starts else {},
        rows,
        folder.held_out(),
        responses(folder / "rollouts.jsonl"),
        responses(folder / "eval_samples.jsonl"),
        starts,
        json.loads(summary.read_text()) if summary.exists() else None,
    )


def responses(path: Path) -> list[Row]:
    """The rows of a file; of one that has more than :data:`MOST` bytes, those of the first of every so many steps."""
    every = -(-path.stat().st_size // MOST) if path.exists() else 1
    if every <= 1:
        return read_rows(path)
    with path.open("rb") as lines:
        found = [parse_row(line) for line in _of_some_steps(lines, every)]
        return [row for row in found if row is not None]


def _of_some_steps(lines: Iterable[bytes], every: int) -> Iterator[bytes]:
    """The lines of the first of every so many steps, by the beginning of each line."""
    last, count = b"", -1
    for line in lines:
        step = re.match(rb'\{"step": (\d+),', line)
        if step is None:
            continue
        if step[1] != last:
            last, count = step[1], count + 1
        if count % every == 0:
            yield line


def told(rows: Iterable[Row]) -> list[Told]:
    """The alarms of a run, said again: they depend on nothing but its metrics."""
    alarms, out = Alarms(), list[Told]()

    def hear(step: int) -> Callable[[str], object]:
        return lambda text: out.append(Told(step, text))

    for row in rows:
        values = {name: x for name, x in row.items() if isinstance(x, int | float)}
        alarms.observe(row["step"], values, hear(row["step"]))
    return out


def grouped(runs: Sequence[Seen]) -> list[Group]:
    """Runs whose configurations differ in :data:`BY_ITSELF` alone are one group; groups keep the order of their first runs."""
    found: dict[str, list[Seen]] = {}
    for run in runs:
        same = {key: value for key, value in run.config.items() if key not in BY_ITSELF}
        found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    names = [some[0].name for some in found.values()]
    if len(set(names)) < len(names):  # names do not tell them apart: their settings do
        names = by_settings([some[0] for some in found.values()])
    return [Group(label, some) for label, some in zip(names, found.values(), strict=True)]


def by_settings(runs: Sequence[Seen]) -> list[str]:
    """The fewest settings, as ``key=value``, that tell runs apart whose configurations differ; each next one splits most of the rest."""
    keys = [key for key in differing(runs) if key not in BY_ITSELF]
    names: list[tuple[str, ...]] = [()] * len(runs)
    while len(set(names)) < len(names):
        longer = [
            [(*name, f"{key}={shown(run.config.get(key))}") for name, run in zip(names, runs, strict=True)]
            for key in keys
        ]
        names = max(longer, key=lambda some: len(set(some)))
    return [", ".join(name) for name in names]


def differing(runs: Sequence[Seen]) -> list[str]:
    """Keys of the configuration in which these runs are not all alike."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    missing = object()
    return [
        key for key in keys if any(run.config.get(key, missing) != runs[0].config.get(key, missing) for run in runs)
    ]
