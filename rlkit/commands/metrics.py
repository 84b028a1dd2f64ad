"""``rlkit metrics``: every metric again from stored samples, or a paired comparison of two models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.evaluation.compare import Comparison
from rlkit.evaluation.compare import compare as compare_rows
from rlkit.evaluation.report import Report, voting, write_json
from rlkit.evaluation.samples import Record, read_samples

MATTERS = ("template", "max_tokens", "top_p", "top_k", "rewards")  # settings that make scores of two models differ


@dataclass(frozen=True)
class Compared:
    """Model b against model a; ``str`` makes the report.

    Attributes:
        a, b: the models. found: the comparison. differ: settings that were not the same for both.
    """

    a: str
    b: str
    found: Comparison
    differ: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """The comparison as JSON."""
        write_json(path, dataclasses.asdict(self.found))

    def __str__(self) -> str:
        lines = [f"note: the two were evaluated with different {', '.join(self.differ)}"] if self.differ else []
        lines += [f"a: {self.a}\nb: {self.b}\n", self.found.table()]
        for what, ids in (("solved by b only", self.found.gained), ("solved by a only", self.found.lost)):
            if ids:
                lines.append(f"{what}: {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}")
        return "\n".join(lines)


def metrics(
    samples: str | Path | Report, *, ks: Sequence[int] | None = None, say: Callable[[str], None] = print
) -> Report:
    """Every metric of what ``rlkit eval --out`` wrote, without a model; ``ks`` are the k of pass@k and maj@k.

    Raises:
        ConfigError: no samples there, or a ``k`` above their number.
    """
    model, rows, settings = _given(samples, say)
    say(f"{model}: {len(rows)} samples")
    return Report.of(model, rows, settings, ks=ks)


def compare(a: str | Path | Report, b: str | Path | Report, *, say: Callable[[str], None] = print) -> Compared:
    """Two models on the same prompts, paired by prompt: reports, or folders that ``rlkit eval --out`` wrote.

    Raises:
        ConfigError: no samples there, or samples of different prompts.
    """
    one, rows, settings = _given(a, say)
    if not isinstance(a, Report):
        say(f"{one}: {len(rows)} samples")
    two, others, other_settings = _given(b, say)
    differ = tuple(k for k in MATTERS if settings.get(k) != other_settings.get(k))
    return Compared(one, two, compare_rows(voting(rows), voting(others)), differ)


def _given(x: str | Path | Report, say: Callable[[str], None]) -> tuple[str, Sequence[Record], Mapping[str, Any]]:
    """The model, its samples, and how they were drawn."""
    if isinstance(x, Report):
        return x.model, x.samples, x.settings
    settings, rows = read_samples(x, say)
    if not rows:
        raise ConfigError(f"{x}: there is no sample in it yet.")
    return str(settings.get("model", x)), rows, settings
