"""From rows to prompts: tasks, files, named sets and hub data sets; every problem is reported with its place."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.data import Data
from rlkit.data.files import is_file_of_rows, read_file
from rlkit.data.render import Encoder, Renderer
from rlkit.data.rows import Rows
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
        ValueError: a missing file or set, a malformed or empty row (file:line), a missing column, an empty answer among others, no row
            left; prompts that are too long under ``too_long: raise``.
    """
    source = data.train if split == "train" else data.test
    limit = data.size if split == "train" else data.test_size
    if data.task is None and source is None:
        return []

    def rows() -> Iterator[tuple[str, Row, Mapping[str, str]]]:
        """Place, row, and which columns hold what: a named set comes with its own mapped."""
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

    render, encode = Renderer.of(data, tokenizer), Encoder(tokenizer)
    prompts: list[Prompt] = []
    seen: dict[str, tuple[str, Any]] = {}
    long: list[str] = []
    unanswered: list[str] = []
    contradicting: list[str] = []
    twice = cut = 0
    for where, row, mapped in rows():
        if limit is not None and len(prompts) >= limit:
            break
        rendered = render(pick(row, mapped.get("prompt", "prompt"), "prompt", where), where)
        answer = pick(row, mapped["answer"], "answer", where) if "answer" in mapped else row.get("answer")
        if is_no_number(answer):
            raise DataError(f"{where}: the answer is {answer}. Fill it in, or remove the row.")
        text, question = rendered.text, rendered.question
        said = "\n".join(f"{m['role']}: {m['content']}" for m in rendered.messages) or question
        key = text if data.task is not None else normalised(said)
        if key in seen:
            twice += 1
            if seen[key][1] != answer:
                contradicting.append(f"{where} ({answer!r}) and {seen[key][0]} ({seen[key][1]!r})")
            continue
        ids = encode(text, rendered.templated)
        identity = row.get("id")
        if identity is None:
            identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        if len(ids) > data.max_prompt_tokens:
            long.append(f"{where} ({len(ids)} tokens)")
            continue
        if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
            unanswered.append(where)
        seen[key] = (where, answer)
        cut += rendered.cut
        columns = {k: v for k, v in row.items() if k not in ("prompt", "answer")}
        # For rewards, for files that `rlkit filter` writes, and for what is printed.
        columns.setdefault("question", question)
        if rendered.messages:
            columns.setdefault("messages", list(rendered.messages))
        prompts.append(Prompt(str(identity), ids, text, answer, columns))
    if cut:
        say(
            f"data: {cut} chats of the {split} split end with an answer of the assistant; it is left out of the prompt."
        )
    if long:
        message = f"{len(long)} prompts are longer than data.max_prompt_tokens = {data.max_prompt_tokens}: {', '.join(long[:3])}"
        if data.too_long == "raise":
            raise DataError(f"data: {message}. Raise the limit, or set data.too_long: drop.")
        say(f"data: {message}; dropped.")
    if twice:
        say(f"data: {twice} duplicate prompts of the {split} split dropped.")
    if contradicting:
        say(
            f"data: {len(contradicting)} duplicate(s) have another answer than the first, which is kept: {contradicting[0]}."
        )
    if not prompts:
        raise DataError(f"data.{split}: no prompt is left of {source or data.task}.")
    if unanswered and ("answer" in data.columns or len(unanswered) < len(prompts)):
        raise DataError(
            f"{unanswered[0]}: the answer is empty ({len(unanswered)} of {len(prompts)} prompts of data.{split}). Fill it in, "
            "remove these rows, or name the column that holds answers: data.columns: {answer: ...}."
        )
    if unanswered and data.task is None:
        others = [k for k in prompts[0].columns if k not in ("id", "dataset", "question")]
        say(
            f"data: no prompt of the {split} split has an answer (other columns: {', '.join(others) or 'none'}); a reward that reads it "
            "will fail. Name the column with data.columns: {answer: ...}."
        )
    duplicates = len(prompts) - len({p.id for p in prompts})
    if duplicates:
        raise DataError(f"data.{split}: {duplicates} prompts share an `id` with another one; ids must be unique.")
    return prompts


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


def read_rows(source: str, split: Split, say: Callable[[str], None] = lambda text: None) -> Iterable[tuple[str, Row]]:
    """``(place, row)`` of a file, of a named set (:mod:`rlkit.data.sets`), or of a hub data set ``owner/name[:config]``."""
    if Rows.MARK in source:
        raise DataError(
            f"data.{split}: {source} are not in this file. Give them again, rk.load(...).replace(data={{{split!r}: rows}}), or name a file."
        )
    path = Path(source)
    if is_file_of_rows(source):
        if not path.exists():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
            raise DataError(
                f"data.{split}: there is no file {source!r}."
                + (f" Did you mean {path.parent / near[0]}?" if near else "")
            )
        return read_file(path)
    if path.exists():
        kind = "folder" if path.is_dir() else "file"
        raise DataError(
            f"data.{split}: {source!r} is a {kind}; rows are read from .jsonl, .json, .csv (also .gz) and .parquet files."
        )
    return read_set(source, split, say) if is_named(source) else _hub(source, split)


def _hub(source: str, split: str) -> Iterable[tuple[str, Row]]:
    name, _, config = source.partition(":")
    try:
        rows = load_table(name, config or None, split)
    except ValueError as error:
        raise DataError(f"data.{split}: {error}") from error
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
