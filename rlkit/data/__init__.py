"""Prompts: where they come from, how they are rendered, and in which order they are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from rlkit.bounds import Bounded, Count, Natural
from rlkit.data.curriculum import AdmitRule, DropRule, Sampler, Shuffle
from rlkit.data.offline import Demonstrations, Labelled, Offline, Pairs
from rlkit.data.render import TEMPLATE
from rlkit.data.rows import Rows as Rows
from rlkit.data.rows import RowsGiven, Source, source_of
from rlkit.data.stored import Stored
from rlkit.data.tasks import Task
from rlkit.errors import ConfigError
from rlkit.values import Given, otherwise

SETS: tuple[type[Offline], ...] = (Pairs, Labelled, Demonstrations)


@dataclass(frozen=True, kw_only=True)
class Data(Bounded):
    """The ``data:`` section.

    Attributes:
        task: a built-in procedural task; or
        train, test: a ``.jsonl``, ``.json``, ``.csv`` (also ``.gz``) or ``.parquet`` file, a named set (``gsm8k``, ``math:levels=1-4``; see
            :mod:`rlkit.data.sets`), a data set on the hub (``owner/name[:config]``), all files of a pattern (``rows/*.jsonl``), or a list
            of those; the column ``dataset`` then says where a row is from. In Python also the rows themselves: a list of mappings or an
            iterator of them, a mapping of columns, a data frame, a data set (:mod:`rlkit.data.rows`).
        size, test_size: rows of the task, or at most so many rows of the files (null: all).
        columns: which columns of a file hold the prompt and the answer, e.g. ``{prompt: question, answer: reward_model.ground_truth}``;
            a path may lead into a list (``prompt.0.content``). A prompt is a text, or a chat: a list of ``{role, content}``.
        template: how a question becomes a prompt: a name under ``rlkit/data/templates``, a file with ``{question}``, ``chat`` (the
            tokenizer's own), or ``chat:NAME``, a template inside the tokenizer's own. Chats always get the tokenizer's own.
        system: a system message for chats that have none; needs the tokenizer's chat template.
        chat_template_kwargs: variables of the tokenizer's chat template, e.g. ``{enable_thinking: false}``.
        max_prompt_tokens: longer prompts are dropped and counted (``too_long: drop``) or refused (``too_long: raise``).
        pairs, labelled, demonstrations: rows that somebody else wrote (:mod:`rlkit.data.offline`), of which some join every batch: a
            file, or a section with ``path``, ``test``, ``per_step``. With no prompts beside them nothing is sampled and no engine starts.
        stored: responses of the reference that join every batch, for terms with ``on: reference``.
        sampler: the order of prompts. admit: which prompts are worth a group. drop: which finished groups are not trained on.
        refill: a dropped group is replaced by another one (dynamic sampling); false: the batch of that step is smaller; ``ahead``: as many
            prompts are asked at once as the share of dropped groups so far lets expect, and what is too much is thrown away. Where few
            groups are kept, that is faster than replacements of replacements; it costs samples (``rollout/dropped_surplus``).
    """

    task: Task | None = None
    train: Given[Source | None, Source | Sequence[str] | RowsGiven | None] = otherwise(None)
    test: Given[Source | None, Source | Sequence[str] | RowsGiven | None] = otherwise(None)
    size: Count | None = None
    test_size: Natural | None = None
    columns: dict[str, str] = field(default_factory=dict)
    template: Annotated[str, TEMPLATE] = "plain"
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_prompt_tokens: Count = 1024
    too_long: Literal["drop", "raise"] = "drop"
    pairs: Given[Pairs | None, Pairs | str | Mapping[str, Any] | RowsGiven | None] = otherwise(None)
    labelled: Given[Labelled | None, Labelled | str | Mapping[str, Any] | RowsGiven | None] = otherwise(None)
    demonstrations: Given[Demonstrations | None, Demonstrations | str | Mapping[str, Any] | RowsGiven | None] = (
        otherwise(None)
    )
    stored: Stored | None = None
    sampler: Sampler = field(default_factory=Shuffle)
    admit: AdmitRule | None = None
    drop: tuple[DropRule, ...] = ()
    refill: bool | Literal["ahead"] = True

    def __post_init__(self) -> None:
        for split, source in (("train", self.train), ("test", self.test)):
            object.__setattr__(self, split, source_of(source, f"data.{split}"))
        for kind in SETS:
            given: Any = vars(self)[kind.key]
            if (
                given is not None
                and not isinstance(given, kind)
                and not (isinstance(given, Mapping) and "path" in given)
            ):
                object.__setattr__(self, kind.key, kind(path=given))
        super().__post_init__()
        prompts = (self.task is not None) + (self.train is not None)
        if prompts > 1 or not (prompts or self.per_step):
            raise ConfigError(
                "data needs exactly one of `task` (a built-in task) and `train` (a file or hub name), or rows that are there already: "
                "`pairs`, `labelled`, `demonstrations`."
            )
        if self.task is not None and self.size is None:
            object.__setattr__(self, "size", 2000)
        if self.task is not None and self.test_size is None:
            object.__setattr__(self, "test_size", 200)

    @property
    def offline(self) -> tuple[Offline, ...]:
        """The sets of rows that somebody else wrote."""
        return tuple(s for s in (self.pairs, self.labelled, self.demonstrations) if s is not None)

    @property
    def per_step(self) -> int:
        """Groups that are not sampled and join every batch: pairs, single rows, stored responses."""
        return sum(s.per_step for s in self.offline) + (0 if self.stored is None else self.stored.per_step)
