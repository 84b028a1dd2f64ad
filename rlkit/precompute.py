"""The reference's log-probs of rows of data: computed once, kept in a file, and read again where model and rows are the same.

Such a run needs no second model beside the one that it trains, neither its memory nor its passes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkit.cluster.groups import LearnerGroup
from rlkit.data.examples import ExampleRows
from rlkit.errors import CheckpointError, DataError
from rlkit.files import told
from rlkit.model.hub import fingerprint
from rlkit.record.checkpoint import read_tensors, write_tensors

TOGETHER = 256  # rows whose log-probs are asked for at once
Found = list["array[float]"]  # the log-probs of each example, in the order of the sets


@dataclass(frozen=True)
class Kept:
    """A file of log-probs, and what they have to be of: the model, the rows (digests), and the temperature."""

    path: Path
    model: str
    rows: str
    temperature: float

    @classmethod
    def of(cls, path: str, model: str, sets: Sequence[ExampleRows], temperature: float) -> Kept:
        digest = hashlib.sha256()
        for e in (e for rows in sets for row in rows.rows for e in row):
            digest.update(
                array("i", [len(e.prompt.token_ids), *e.prompt.token_ids, len(e.tokens)]).tobytes() + e.tokens.tobytes()
            )
        return cls(Path(path), fingerprint(model), digest.hexdigest()[:16], temperature)

    def read(self) -> Found | None:
        """What the file holds; None if there is none yet.

        Raises:
            DataError: it is of another model, of other rows, of another temperature, or no such file at all.
        """
        if not self.path.exists():
            return None
        try:
            state = read_tensors(self.path)
            whose = {"model": self.model, "rows": self.rows, "temperature": self.temperature}
            other = next(
                (f"another {k} ({state[k]}; this run's is {v})" for k, v in whose.items() if state[k] != v), None
            )
        except (CheckpointError, KeyError, TypeError):
            other = "something else"
        if other is not None:
            raise DataError(
                f"reference.precompute: {self.path} holds log-probs of {other}. Remove it, or name another file."
            )
        return [array("f", part.tolist()) for part in state["logp"].split(state["length"].tolist())]

    def write(self, found: Found) -> None:
        state = {
            "model": self.model,
            "rows": self.rows,
            "temperature": self.temperature,
            "logp": torch.tensor([x for part in found for x in part], dtype=torch.float32),
            "length": torch.tensor([len(part) for part in found]),
        }
        with told("log-probs of the reference", "Make room, or give another file."):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tmp = self.path.with_name(f".{self.path.name}.writing")
            write_tensors(tmp, state)
            tmp.replace(self.path)


def compute(learners: LearnerGroup, sets: Sequence[ExampleRows], which: str) -> Found:
    """Log-probs of every example; ``which``: ``ref``, or ``old`` where the model that is trained is the reference still."""
    found: Found = []
    rows = [row for part in sets for row in part.rows]
    for i in range(0, len(rows), TOGETHER):
        some = [e.rollout(g) for g, row in enumerate(rows[i : i + TOGETHER]) for e in row]
        found += [array("f", x) for x in learners.logprobs(some, which)]
    return found


def with_reference(sets: Sequence[ExampleRows], found: Iterator[array[float]]) -> tuple[ExampleRows, ...]:
    """The sets with the log-probs of their examples."""
    return tuple(
        dataclasses.replace(rows, ref=tuple(tuple(next(found) for _ in row) for row in rows.rows)) for rows in sets
    )
