"""Rows that somebody else wrote, and of which some join every batch: the sections `data.pairs`, `data.labelled` and `data.demonstrations`.

:mod:`rlkit.data.examples` reads them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlkit.bounds import Bounded, Count, Finite
from rlkit.data.rows import RowsGiven, Source, source_of
from rlkit.errors import ConfigError
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
    reads: ClassVar[tuple[str, ...]] = ()  # what its columns hold
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
        for name in self.columns:
            if name not in self.reads:
                near = difflib.get_close_matches(name, self.reads, 1)
                raise ConfigError(
                    f"data.{self.key}.columns: nothing is called {name!r} here. "
                    + (f"Did you mean {near[0]!r}? " if near else "")
                    + f"A column is given as {{WHAT: ITS NAME}}; what there can be: {', '.join(self.reads)}."
                )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Pairs(Offline):
    """A better and a worse response to each prompt, for terms with ``on: pairs``, ``chosen`` or ``rejected``.

    Columns: ``prompt``, ``chosen``, ``rejected``, and the scores of both where they have some.
    """

    key: ClassVar[str] = "pairs"
    reads: ClassVar[tuple[str, ...]] = (
        "prompt",
        "chosen",
        "rejected",
        "chosen_score",
        "rejected_score",
        "system",
        "messages",
    )
    sources: ClassVar[tuple[Kind, ...]] = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Labelled(Offline):
    """Single responses with a label or a score, for terms with ``on: labelled``. Columns: ``prompt``, ``response``, ``label``; of a chat
    in ``messages`` the label is that of its last answer.

    Attributes:
        threshold: scores above it are the label 1, others 0; null: labels and scores are taken as they are.
    """

    key: ClassVar[str] = "labelled"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "label", "messages", "system")
    sources: ClassVar[tuple[Kind, ...]] = ("labelled",)

    threshold: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Offline):
    """Responses to imitate, for terms with ``on: dataset``. Columns: ``prompt`` and ``response``, or a chat in ``messages``, of which every
    answer is trained that has a message of the user or of a tool before it (not those with ``weight: 0``), and nothing else; or ``text``
    alone, of which every token is trained.
    """

    key: ClassVar[str] = "demonstrations"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "messages", "system", "text")
    sources: ClassVar[tuple[Kind, ...]] = ("dataset",)
