"""From rows to prompts: tasks, files, and hub data sets; every problem is reported with its place."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.config import locate
from rlkit.data import Data
from rlkit.data.tasks import Row, Split
from rlkit.types import Prompt

TEMPLATES = Path(__file__).parent / "templates"


def load_prompts(data: Data, split: Split, tokenizer: Any, say: Callable[[str], None] = lambda text: None,
                 base: str | Path | None = None) -> list[Prompt]:
    """The prompts of one split, in a fixed order; files are looked up beside ``base``, the configuration's folder.

    Raises:
        ValueError: a missing file, a malformed or empty row (file:line), a missing column, no row left; prompts that are too
            long under ``too_long: raise``.
    """
    source = data.train if split == "train" else data.test
    limit = data.size if split == "train" else data.test_size
    if data.task is not None:
        rows: Iterable[tuple[str, Row]] = [(r["id"], r) for r in data.task.rows(split, limit or 0)]
    elif source is None:
        return []
    else:
        rows = read_rows(source, split, base) if isinstance(source, str) else (
            (where, {**row, "dataset": Path(name).stem}) for name in source for where, row in read_rows(name, split, base))
    template = load_template(data.template, base)
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    long: list[str] = []
    twice = 0
    for where, row in rows:
        if limit is not None and len(prompts) >= limit:
            break
        question = pick(row, data.columns.get("prompt", "prompt"), "prompt", where)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{where}: the prompt is {question!r}; it must be a text that is not empty.")
        text = render(template, question, tokenizer)
        if text in seen:
            twice += 1
            continue
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        identity = str(row.get("id", hashlib.sha256(text.encode()).hexdigest()[:16]))
        if len(ids) > data.max_prompt_tokens:
            long.append(f"{where} ({len(ids)} tokens)")
            continue
        answer = row.get(data.columns.get("answer", "answer"))
        if answer is None and "answer" in data.columns:
            pick(row, data.columns["answer"], "answer", where)
        seen[text] = where
        columns = {k: v for k, v in row.items() if k not in ("prompt", "answer")}
        prompts.append(Prompt(identity, ids, text, answer, columns))
    if long:
        message = f"{len(long)} prompts are longer than data.max_prompt_tokens = {data.max_prompt_tokens}: {', '.join(long[:3])}"
        if data.too_long == "raise":
            raise ValueError(f"data: {message}. Raise the limit, or set data.too_long: drop.")
        say(f"data: {message}; dropped.")
    if twice:
        say(f"data: {twice} duplicate prompts of the {split} split dropped.")
    if not prompts:
        raise ValueError(f"data.{split}: no prompt is left of {source or data.task}.")
    duplicates = len(prompts) - len({p.id for p in prompts})
    if duplicates:
        raise ValueError(f"data.{split}: {duplicates} prompts share an `id` with another one; ids must be unique.")
    return prompts


def pick(row: Mapping[str, Any], column: str, what: str, where: str) -> Any:
    if column not in row:
        close = difflib.get_close_matches(column, list(row), 1)
        raise ValueError(f"{where}: there is no column {column!r} for the {what}; columns are {', '.join(map(str, row))}."
                         + (f" Did you mean {close[0]!r}?" if close else f" Name it: data.columns: {{{what}: ...}}."))
    return row[column]


def read_rows(source: str, split: str, base: str | Path | None = None) -> Iterable[tuple[str, Row]]:
    """``(place, row)`` of a file, or of a hub data set ``name[:config]``."""
    path = locate(source, base)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json", ".csv", ".parquet"):
        if not path.is_file():
            folder = (Path(base or ".") / source).parent
            near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*")], 1)
            raise ValueError(f"data.{split}: there is no file {source!r}." + (f" Did you mean {folder / near[0]}?" if near else ""))
        return {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[suffix](path)
    return _hub(source, split)


def _jsonl(path: Path) -> Iterable[tuple[str, Row]]:
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                raise ValueError(f"{path}:{number}: the line is empty; each line must be one JSON object.")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}).") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: found a {type(row).__name__}; each line must be one JSON object.")
            yield f"{path}:{number}", row


def _json(path: Path) -> Iterable[tuple[str, Row]]:
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise ValueError(f"{path}: found a {type(rows).__name__}; a .json file must hold a list of objects.")
    return [(f"{path}[{i}]", row) for i, row in enumerate(rows)]


def _csv(path: Path) -> Iterable[tuple[str, Row]]:
    with path.open(newline="", encoding="utf-8") as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            yield f"{path}:{number}", dict(row)


def _parquet(path: Path) -> Iterable[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow. Install it with: pip install pyarrow") from None
    return [(f"{path}[{i}]", row) for i, row in enumerate(parquet.read_table(path).to_pylist())]


def _hub(source: str, split: str) -> Iterable[tuple[str, Row]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"data.{split}: {source!r} is a hub data set; reading it needs `datasets`. Install it with: pip "
                         "install datasets") from None
    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split)
    except Exception as error:                      # the hub client raises many kinds; all mean that the set is not there
        raise ValueError(f"data.{split}: {source!r} is neither a .jsonl/.json/.csv/.parquet file nor a data set that could be "
                         f"loaded ({str(error).splitlines()[0]}).") from error
    return ((f"{source}[{i}]", dict(row)) for i, row in enumerate(rows))


def load_template(name: str, base: str | Path | None = None) -> str:
    """A template by name (``plain``, ``qwen-boxed``, ``dapo``, ``r1``, ``chat``) or file."""
    if name == "chat":
        return ""
    path = locate(name, base) if "/" in name or name.endswith(".txt") else TEMPLATES / f"{name}.txt"
    if not path.is_file():
        known = [*sorted(p.stem for p in TEMPLATES.glob("*.txt")), "chat"]
        raise ValueError(f"data.template: there is no template {name!r}; there are {', '.join(known)}, or the path of a text file "
                         "with {question}.")
    text = path.read_text()
    if "{question}" not in text:
        raise ValueError(f"data.template: {path} has no {{question}}.")
    return text


def render(template: str, question: str, tokenizer: Any) -> str:
    """The template, or the tokenizer's own chat template for ``chat`` (empty)."""
    if template:
        return template.replace("{question}", question)
    return str(tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True))


def preview(prompts: Sequence[Prompt], tokenizer: Any) -> str:
    """The first prompt as the model sees it."""
    p = prompts[0]
    pieces = tokenizer.convert_ids_to_tokens(list(p.token_ids[:48]))
    more = "" if len(p.token_ids) <= 48 else f" ... ({len(p.token_ids)} tokens)"
    return f"first prompt ({p.id}): {p.text!r}\n  tokens: {' '.join(map(repr, pieces))}{more}\n  answer: {p.answer!r}"
