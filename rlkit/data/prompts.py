"""From rows to prompts: tasks, files, named sets and hub data sets; every problem is reported with its place."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.config import locate
from rlkit.data import Data
from rlkit.data.sets import is_named, load_table, normalised, read_set
from rlkit.data.tasks import Row, Split
from rlkit.errors import DataError
from rlkit.types import Prompt

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Template:
    """``text`` holds ``{question}``; ``chat``: the text is the user's message in the tokenizer's own chat template."""

    text: str
    chat: bool = False


def load_prompts(
    data: Data,
    split: Split,
    tokenizer: Any,
    say: Callable[[str], None] = lambda text: None,
    base: str | Path | None = None,
) -> list[Prompt]:
    """The prompts of one split, in a fixed order; files are looked up beside ``base``, the configuration's folder.

    A question that differs from an earlier one in white space only is left out and counted. Columns of a row travel with its prompt, and so
    does ``question``, the text without the template.

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
        for name in (source,) if isinstance(source, str) else source or ():
            for where, row in read_rows(name, split, base, say):
                if is_named(name):
                    yield where, row, {}
                else:
                    yield where, row if isinstance(source, str) else {**row, "dataset": Path(name).stem}, data.columns

    template = load_template(data.template, base)
    prompts: list[Prompt] = []
    seen: dict[str, tuple[str, Any]] = {}
    long: list[str] = []
    unanswered: list[str] = []
    contradicting: list[str] = []
    twice = 0
    for where, row, mapped in rows():
        if limit is not None and len(prompts) >= limit:
            break
        question = pick(row, mapped.get("prompt", "prompt"), "prompt", where)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: the prompt is {question!r}; it must be a text that is not empty.")
        answer = pick(row, mapped["answer"], "answer", where) if "answer" in mapped else row.get("answer")
        text = render(template, question, tokenizer)
        key = text if data.task is not None else normalised(question)
        if key in seen:
            twice += 1
            if seen[key][1] != answer:
                contradicting.append(f"{where} ({answer!r}) and {seen[key][0]} ({seen[key][1]!r})")
            continue
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        identity = str(row.get("id", hashlib.sha256(text.encode()).hexdigest()[:16]))
        if len(ids) > data.max_prompt_tokens:
            long.append(f"{where} ({len(ids)} tokens)")
            continue
        if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
            unanswered.append(where)
        seen[key] = (where, answer)
        columns = {k: v for k, v in row.items() if k not in ("prompt", "answer")}
        if data.task is None:
            columns.setdefault(
                "question", question
            )  # without the template: for rewards, and for files that `rlkit filter` writes
        prompts.append(Prompt(identity, ids, text, answer, columns))
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


def pick(row: Mapping[str, Any], column: str, what: str, where: str) -> Any:
    """``row[column]``; ``a.b`` reaches into a column that holds a mapping (``reward_model.ground_truth``)."""
    if column in row:
        return row[column]
    first, _, rest = column.partition(".")
    if rest and isinstance(row.get(first), Mapping):
        return pick(row[first], rest, what, f"{where}: {first}")
    close = difflib.get_close_matches(column, list(row), 1)
    raise DataError(
        f"{where}: there is no column {column!r} for the {what}; columns are {', '.join(map(str, row))}."
        + (f" Did you mean {close[0]!r}?" if close else f" Name it: data.columns: {{{what}: ...}}.")
    )


def read_rows(
    source: str, split: Split, base: str | Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Iterable[tuple[str, Row]]:
    """``(place, row)`` of a file, of a named set (:mod:`rlkit.data.sets`), or of a hub data set ``owner/name[:config]``."""
    path = locate(source, base)
    suffix = path.suffix.lower()
    if suffix in READERS:
        if not path.is_file():
            folder = (Path(base or ".") / source).parent
            near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*")], 1)
            raise DataError(
                f"data.{split}: there is no file {source!r}." + (f" Did you mean {folder / near[0]}?" if near else "")
            )
        return READERS[suffix](path)
    return read_set(source, split, say) if is_named(source) else _hub(source, split)


def _jsonl(path: Path) -> Iterable[tuple[str, Row]]:
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                raise DataError(f"{path}:{number}: the line is empty; each line must be one JSON object.")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}).") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: found a {type(row).__name__}; each line must be one JSON object.")
            yield f"{path}:{number}", row


def _json(path: Path) -> Iterable[tuple[str, Row]]:
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise DataError(f"{path}: found a {type(rows).__name__}; a .json file must hold a list of objects.")
    return [(f"{path}[{i}]", row) for i, row in enumerate(rows)]


def _csv(path: Path) -> Iterable[tuple[str, Row]]:
    with path.open(newline="", encoding="utf-8") as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            yield f"{path}:{number}", dict(row)


def _parquet(path: Path) -> Iterable[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow. Install it with: pip install pyarrow") from None
    return [(f"{path}[{i}]", row) for i, row in enumerate(parquet.read_table(path).to_pylist())]


READERS: dict[str, Callable[[Path], Iterable[tuple[str, Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _hub(source: str, split: str) -> Iterable[tuple[str, Row]]:
    name, _, config = source.partition(":")
    try:
        rows = load_table(name, config or None, split)
    except ValueError as error:
        raise DataError(f"data.{split}: {error}") from error
    return ((f"{source}[{i}]", dict(row)) for i, row in enumerate(rows))


def load_template(name: str, base: str | Path | None = None) -> Template:
    """A template by name (a file of ``rlkit/data/templates``) or path; ``chat:NAME`` puts its text into the tokenizer's chat template.

    Raises:
        ValueError: no such template, or one without ``{question}``.
    """
    if name == "chat":
        return Template("{question}", chat=True)
    chat, name = name.startswith("chat:"), name.removeprefix("chat:")
    path = locate(name, base) if "/" in name or name.endswith(".txt") else TEMPLATES / f"{name}.txt"
    if not path.is_file():
        known = sorted(p.stem for p in TEMPLATES.glob("*.txt"))
        near = difflib.get_close_matches(name, known, 1)
        raise DataError(
            f"data.template: there is no template {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" There are {', '.join(known)}, chat (the tokenizer's own), chat:NAME (one inside it), or the path of a text "
            "file with {question}."
        )
    text = path.read_text()
    if "{question}" not in text:
        raise DataError(f"data.template: {path} has no {{question}}.")
    return Template(text, chat)


def render(template: Template, question: str, tokenizer: Any) -> str:
    """The prompt of a question.

    Raises:
        ValueError: the template is ``chat``, and the tokenizer has none (base models often do not).
    """
    text = template.text.replace("{question}", question)
    if not template.chat:
        return text
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "data.template: the tokenizer has no chat template. Use a template that needs none, e.g. qwen-boxed, r1 or abel."
        )
    return str(
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    )


def preview(prompts: Sequence[Prompt], tokenizer: Any) -> str:
    """The first prompt as the model sees it."""
    p = prompts[0]
    pieces = tokenizer.convert_ids_to_tokens(list(p.token_ids[:48]))
    more = "" if len(p.token_ids) <= 48 else f" ... ({len(p.token_ids)} tokens)"
    return f"first prompt ({p.id}): {p.text!r}\n  tokens: {' '.join(map(repr, pieces))}{more}\n  answer: {p.answer!r}"
