"""Rows that somebody else wrote, and of which some join every batch: the sections `data.pairs`, `data.labelled` and `data.demonstrations`.

:mod:`rlkit.data.examples` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlkit.bounds import Bounded, Count, Finite
from rlkit.data.rows import RowsGiven, Source, source_of
from rlkit.samples import Source as Kind
from rlkit.values import Given, otherwise


@dataclass(frozen=True, kw_only=True)
class Offline(Bounded):
    """Base of these sections. A bare file name stands for one with this ``path``.

    Attributes:
        path, test: files, hub data sets or, in Python, rows, as ``data.train`` takes them; rows of ``test`` are only measured.
        per_step: how many join a step's batch, in shuffled order, epoch after epoch.
        size, test_size: at most so many rows.
        columns: which columns hold what, where they have none of the usual names.
        max_tokens: of a prompt with its response; null: the model's context.
        unusable: rows that cannot be learned from (an empty response, equal halves, more than ``max_tokens``) are refused, or dropped and
            counted.
    """

    shorthand: ClassVar[str | None] = "path"
    key: ClassVar[str] = ""  # its name in the section `data`
    sources: ClassVar[tuple[Kind, ...]] = ()  # what its rows are in a batch

    path: Given[Source, Source | Sequence[str] | RowsGiven]
    test: Given[Source | None, Source | Sequence[str] | RowsGiven | None] = otherwise(None)
    per_step: Count = 32
    size: Count | None = None
    test_size: Count | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_tokens: Count | None = None
    unusable: Literal["raise", "drop"] = "raise"

    def __post_init__(self) -> None:
        for name in ("path", "test"):
            given: Any = vars(self)[name]
            object.__setattr__(self, name, source_of(given, f"data.{self.key}.{name}"))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Pairs(Offline):
    """A better and a worse response to each prompt, for terms with ``on: pairs``, ``chosen`` or ``rejected``.

    Columns: ``prompt``, ``chosen``, ``rejected``, and the scores of both where they have some.
    """

    key: ClassVar[str] = "pairs"
    sources: ClassVar[tuple[Kind, ...]] = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Labelled(Offline):
    """Single responses with a label or a score, for terms with ``on: labelled``. Columns: ``prompt``, ``response``, ``label``.

    Attributes:
        threshold: scores above it are the label 1, others 0; null: labels and scores are taken as they are.
    """

    key: ClassVar[str] = "labelled"
    sources: ClassVar[tuple[Kind, ...]] = ("labelled",)

    threshold: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Offline):
    """Responses to imitate, for terms with ``on: dataset``. Columns: ``prompt`` and ``response``, or a chat in ``messages``."""

    key: ClassVar[str] = "demonstrations"
    sources: ClassVar[tuple[Kind, ...]] = ("dataset",)
