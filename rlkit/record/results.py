"""What a run has found out, read back from its folder: also while it goes on, and whoever trained it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PosixPath
from typing import Any

from rlkit.errors import CheckpointError
from rlkit.files import read_rows


@dataclass(frozen=True)
class HeldOut:
    """What a run's model makes of held-out prompts and rows after ``step`` steps: a row of ``eval.jsonl``.

    Attributes:
        score: mean reward of the responses that have one; None if none has. Without prompts the accuracy of the first term on pairs, and
            without pairs the NLL of the rows' tokens, negated: the larger the better. datasets: pass@k by data set.
        error: standard error of the score, over prompts.
        solved: for each prompt, whether one of its ``n`` responses is right. truncated: share of responses at the length limit.
        rows: how many held-out rows were measured. measured: losses, scores and NLL on them, by the names of ``metrics.jsonl``.
    """

    step: int
    score: float | None
    prompts: int = 0
    n: int = 1
    temperature: float = math.nan
    datasets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    truncated: float = math.nan
    solved: tuple[bool, ...] = ()
    seconds: float = math.nan
    error: float = math.nan
    rows: int = 0
    measured: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> HeldOut:
        """What :meth:`row` gave; earlier versions wrote fewer of the fields."""
        known = {f.name: row[f.name] for f in dataclasses.fields(cls) if f.name in row}
        return cls(**known | {"solved": tuple(row.get("solved", ()))})

    def row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def asked(self) -> tuple[int, int, float, int]:
        """What was asked for: equal evaluations of one step need not be made twice."""
        return self.prompts, self.n, self.temperature, self.rows


def digits(score: float | None) -> str:
    """A score as people read it."""
    return "none" if score is None else f"{score:.3f}"


class RunFolder(PosixPath):
    """A run's folder: a path, and what the run left there.

    ::

        folder = rk.train(run)                  # or rk.RunFolder("runs/grpo"), of any run
        folder.held_out()[-1].score             # what it learned
        folder.metrics()[-1]["reward/mean"]
        model, tokenizer = folder.model(), folder.tokenizer()
    """

    def __truediv__(self, key: str | os.PathLike[str]) -> Path:  # type: ignore[override]
        return Path(self) / key  # a file in it is no run

    @property
    def final(self) -> Path:
        """The trained model and its tokenizer, in Hugging Face format."""
        return self / "final"

    def metrics(self) -> list[dict[str, Any]]:
        """A row of ``metrics.jsonl`` for every step; a number that was not finite is None."""
        return read_rows(self / "metrics.jsonl")

    def held_out(self) -> list[HeldOut]:
        """Every held-out evaluation, by step; the last one of a step counts."""
        rows = [row for row in read_rows(self / "eval.jsonl") if isinstance(row.get("step"), int)]
        return [HeldOut.of(row) for _, row in sorted({row["step"]: row for row in rows}.items())]

    def summary(self) -> dict[str, Any]:
        """What the run said at its end: steps, seconds, scores before and after, the step whose model is in ``final``.

        Raises:
            CheckpointError: the run has not come to its end.
        """
        path = self / "summary.json"
        if not path.exists():
            raise CheckpointError(
                f"{self} has no summary.json: the run has not come to its end. Continue it with resume=True."
            )
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def model(self, **options: Any) -> Any:
        """The trained model, loaded with transformers; ``options`` go to ``from_pretrained``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self._trained(), **options)

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._trained())

    def _trained(self) -> str:
        if not self.final.is_dir():
            raise CheckpointError(
                f"{self} has no final/: the run has not come to its end. Continue it with resume=True."
            )
        return str(self.final)
