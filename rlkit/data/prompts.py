"""From rows to prompts: tasks, files, named sets and hub data sets; every problem is reported with its place."""

from __future__ import annotations

import difflib
import glob
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.data import Data
from rlkit.data.files import is_file_of_rows, read_file
from rlkit.data.render import Encoder, Rendered, Renderer
from rlkit.data.rows import Rows, Source
from rlkit.data.sets import is_named, load_table, normalised, read_set
from rlkit.data.tasks import Row, Split
from rlkit.errors import DataError
from rlkit.samples import Prompt


def load_prompts(
    data: Data,
    split: Split,
    tokenizer: Any,
    say: Callable[[str], None] = lambda text: None,
) -> list[Prompt]:
    """The prompts of one split, in a fixed order.

    A question (or chat) that differs from an earlier one in white space only is left out and counted. Columns of a row travel with its
    prompt, and so do ``question``, the text without the template, and ``messages``, the chat where the prompt is one.

    Raises:
        DataError: a missing file or set, a malformed or empty row (file:line), a missing column, an empty answer among others, no row
            left; prompts that are too long under ``too_long: raise``.
    """
    source, limit = _asked(data, split)
    if data.task is None and source is None:
        return []
    read = _Reading(data, split, Renderer.of(data, tokenizer), Encoder(tokenizer))
    for where, row, columns in _given(data, split, say):
        if limit is not None and len(read.prompts) >= limit:
            break
        read.add(where, row, columns)
    read.tell(say)
    if not read.prompts:
        raise DataError(f"data.{split}: no prompt is left of {source or data.task}.")
    read.check(say)
    return read.prompts


def _asked(data: Data, split: Split) -> tuple[Source | None, int | None]:
    """Where the rows of a split are, and how many prompts are wanted of them at most."""
    return (data.train, data.size) if split == "train" else (data.test, data.test_size)


def _given(data: Data, split: Split, say: Callable[[str], None]) -> Iterator[tuple[str, Row, Mapping[str, str]]]:
    """Place, row, and which columns hold what: a named set comes with its own mapped."""
    source, limit = _asked(data, split)
    if data.task is not None:
        yield from ((r["id"], r, {}) for r in data.task.rows(split, limit or 0))
        return
    if isinstance(source, Rows):
        yield from ((f"data.{split}[{i}]", row, data.columns) for i, row in enumerate(source))
        return
    for name in (source,) if isinstance(source, str) else source or ():
        for where, row in read_rows(name, split, say):
            if is_named(name):
                yield where, row, {}
            else:
                yield where, row if isinstance(source, str) else {**row, "dataset": Path(name).stem}, data.columns


@dataclass
class _Reading:
    """The prompts of a split as its rows come, and what there is to say of the rows.

    Attributes:
        first: (place, answer) of the first row of every question. twice: rows that repeat one. contradicting: of these, those with
            another answer.
        long, unanswered: places of prompts with too many tokens, and of those without an answer.
        cut: chats that ended with an answer of the assistant.
    """

    data: Data
    split: Split
    render: Renderer
    encode: Encoder
    prompts: list[Prompt] = field(default_factory=list)
    first: dict[str, tuple[str, Any]] = field(default_factory=dict)
    twice: int = 0
    contradicting: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    cut: int = 0

    def add(self, where: str, row: Row, columns: Mapping[str, str]) -> None:
        """Takes a row in, unless its question was there before or is too long."""
        rendered = self.render(pick(row, columns.get("prompt", "prompt"), "prompt", where), where)
        answer = pick(row, columns["answer"], "answer", where) if "answer" in columns else row.get("answer")
        if is_no_number(answer):
            raise DataError(f"{where}: the answer is {answer}. Fill it in, or remove the row.")
        question = rendered.text if self.data.task is not None else _without_spaces(rendered)
        if question in self.first:
            self.twice += 1
            before, other = self.first[question]
            if other != answer:
                self.contradicting.append(f"{where} ({answer!r}) and {before} ({other!r})")
            return
        ids = self.encode(rendered.text, rendered.templated)
        if len(ids) > self.data.max_prompt_tokens:
            self.long.append(f"{where} ({len(ids)} tokens)")
            return
        if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
            self.unanswered.append(where)
        self.first[question] = (where, answer)
        self.cut += rendered.cut
        identity = row.get("id")
        if identity is None:
            identity = hashlib.sha256(rendered.text.encode()).hexdigest()[:16]
        self.prompts.append(
            Prompt(str(identity), ids, rendered.text, answer, _columns(row, rendered), rendered.shown, where)
        )

    def tell(self, say: Callable[[str], None]) -> None:
        """Says what was left out, and refuses prompts that are too long where none may be left out."""
        if self.cut:
            say(
                f"data: {self.cut} chats of the {self.split} split end with an answer of the assistant; it is left out of the prompt."
            )
        if self.long:
            most = self.data.max_prompt_tokens
            message = (
                f"{len(self.long)} prompts are longer than data.max_prompt_tokens = {most}: {', '.join(self.long[:3])}"
            )
            if self.data.too_long == "raise":
                raise DataError(f"data: {message}. Raise the limit, or set data.too_long: drop.")
            say(f"data: {message}; dropped.")
        if self.twice:
            say(f"data: {self.twice} duplicate prompts of the {self.split} split dropped.")
        if self.contradicting:
            say(
                f"data: {len(self.contradicting)} duplicate(s) have another answer than the first, which is kept: {self.contradicting[0]}."
            )

    def check(self, say: Callable[[str], None]) -> None:
        """Refuses answers that are missing among others, and ids that are not unique; says where there is no answer at all."""
        empty, all_of = len(self.unanswered), len(self.prompts)
        if empty and ("answer" in self.data.columns or empty < all_of):
            raise DataError(
                f"{self.unanswered[0]}: the answer is empty ({empty} of {all_of} prompts of data.{self.split}). Fill it in, "
                "remove these rows, or name the column that holds answers: data.columns: {answer: ...}."
            )
        if empty and self.data.task is None:
            others = [k for k in self.prompts[0].columns if k not in ("id", "dataset", "question")]
            say(
                f"data: no prompt of the {self.split} split has an answer (other columns: {', '.join(others) or 'none'}); a reward that "
                "reads it will fail. Name the column with data.columns: {answer: ...}."
            )
        duplicates = all_of - len({p.id for p in self.prompts})
        if duplicates:
            raise DataError(
                f"data.{self.split}: {duplicates} prompts share an `id` with another one; ids must be unique."
            )


def _without_spaces(rendered: Rendered) -> str:
    """What a prompt asks, up to white space: two rows that agree in it ask the same."""
    return normalised("\n".join(f"{m['role']}: {m['content']}" for m in rendered.messages) or rendered.question)


def _columns(row: Row, rendered: Rendered) -> dict[str, Any]:
    """What of a row travels with its prompt, for rewards, for files that `rlkit filter` writes, and for what is printed."""
    columns = {k: v for k, v in row.items() if k not in ("prompt", "answer")}
    columns.setdefault("question", rendered.question)
    if rendered.messages:
        columns.setdefault("messages", list(rendered.messages))
    return columns


def overlap(train: Sequence[Prompt], test: Sequence[Prompt]) -> str | None:
    """A warning if prompts of ``test`` are in ``train``, too, up to white space; None if there is none."""
    known = {normalised(p.text) for p in train}
    both = [p.id for p in test if normalised(p.text) in known]
    return (
        f"data: {len(both)} of {len(test)} test prompts are also training prompts (the first: {both[0]}): their scores show what was "
        "memorized. Take them out of data.train or data.test."
        if both
        else None
    )


def is_no_number(answer: Any) -> bool:
    """Whether an answer, or one of several, is NaN, infinite, or missing among others."""
    if isinstance(answer, list | tuple):
        return any(x is None or is_no_number(x) for x in answer)
    return isinstance(answer, float) and not math.isfinite(answer)


def pick(row: Mapping[str, Any], column: str, what: str, where: str) -> Any:
    """``row[column]``; ``a.b`` reaches into a column that holds a mapping (``extra_info.question``) or a list (``chat.-1.content``)."""
    if column in row:
        return row[column]
    first, _, rest = column.partition(".")
    inside = row.get(first)
    if isinstance(inside, list | tuple):
        inside = {str(i): inside[i] for i in range(-len(inside), len(inside))}
    if rest and isinstance(inside, Mapping):
        return pick(inside, rest, what, f"{where}: {first}")
    missing = column if first in row else first
    close = difflib.get_close_matches(missing, list(map(str, row)), 1)
    if what == "prompt" and "messages" in row:
        close = ["messages"]
    raise DataError(
        f"{where}: there is no column {missing!r} for the {what}; columns are {', '.join(map(str, row))}."
        + (f" Did you mean {close[0]!r}?" if close else f" Name it: data.columns: {{{what}: ...}}.")
    )


def read_rows(
    source: str, split: Split, say: Callable[[str], None] = lambda text: None, key: str | None = None
) -> Iterable[tuple[str, Row]]:
    """``(place, row)`` of a file, of all files that a pattern finds (``rows/*.jsonl``), of a named set (:mod:`rlkit.data.sets`), or of a
    hub data set ``owner/name[:config]``.

    ``key`` is what names it in the section ``data``, for messages; None: the split.
    """
    key = key or split
    if Rows.MARK in source:
        raise DataError(
            f"data.{key}: {source} are not in this file. Give them again, rk.load(...).replace(data={{{key!r}: rows}}), or name a file."
        )
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        names = sorted(filter(is_file_of_rows, glob.glob(source, recursive=True)))
        if not names:
            raise DataError(
                f"data.{key}: no file of rows (.jsonl, .json, .csv, also .gz, .parquet) has a name like {source!r}."
            )
        return itertools.chain.from_iterable(read_file(Path(name)) for name in names)
    if is_file_of_rows(source):
        if not path.exists():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
            raise DataError(
                f"data.{key}: there is no file {source!r}."
                + (f" Did you mean {path.parent / near[0]}?" if near else "")
            )
        return read_file(path)
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        inside, more = Counter(p.suffix for p in path.glob("*") if is_file_of_rows(p.name)), ""
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            more = " Of `save_to_disk`: write its rows with to_parquet, or give the data set in Python."
        elif inside:
            more = f" Name one of those in it, or all: {path / f'*{inside.most_common(1)[0][0]}'}."
        raise DataError(
            f"data.{key}: {source!r} is a {kind}; rows are read from .jsonl, .json, .csv (also .gz) and .parquet files.{more}"
        )
    return read_set(source, split, say) if is_named(source) else _hub(source, split, key)


def _hub(source: str, split: str, key: str) -> Iterable[tuple[str, Row]]:
    name, _, config = source.partition(":")
    try:
        rows = load_table(name, config or None, split)
    except ValueError as error:
        raise DataError(f"data.{key}: {error}") from error
    return ((f"{source}[{i}]", dict(row)) for i, row in enumerate(rows))


def preview(prompts: Sequence[Prompt], tokenizer: Any) -> str:
    """The first prompt as the model sees it."""
    p = prompts[0]
    pieces = tokenizer.convert_ids_to_tokens(list(p.token_ids[:48]))
    more = "" if len(p.token_ids) <= 48 else f" ... ({len(p.token_ids)} tokens)"
    return f"first prompt ({p.id}): {p.text!r}\n  tokens: {' '.join(map(repr, pieces))}{more}\n  answer: {p.answer!r}"


def first_of_each(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """The first ``n`` prompts of each data set."""
    seen: Counter[Any] = Counter()
    kept = []
    for p in prompts:
        seen[p.columns.get("dataset")] += 1
        if seen[p.columns.get("dataset")] <= n:
            kept.append(p)
    return kept
