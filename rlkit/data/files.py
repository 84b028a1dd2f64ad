"""Rows of files: ``.jsonl``, ``.json``, ``.csv`` (each also ``.gz``) and ``.parquet``; what is wrong is said with file and line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlkit.data.tasks import Row
from rlkit.errors import DataError, first_line

MARK = b"\xef\xbb\xbf"  # what some programs write in front of UTF-8
FOREIGN = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a ZIP archive: take the file of rows out of it",
}


def suffix_of(name: str) -> str:
    """How the name of a file of rows ends, without ``.gz``: ``.jsonl`` of ``x.JSONL.gz``."""
    return Path(name.lower().removesuffix(".gz")).suffix


def is_file_of_rows(name: str) -> bool:
    return suffix_of(name) in READERS


def read_file(path: Path) -> Iterator[tuple[str, Row]]:
    """``(place, row)`` of every row; the place is ``file:line``, or ``file[index]`` where there are no lines.

    Raises:
        DataError: with the place of what cannot be read.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file of rows in it.")
    yield from READERS[suffix_of(path.name)](path)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """``(number, line)`` of a UTF-8 file, without a byte-order mark in front and without the empty lines at its end.

    Raises:
        DataError: a line that is not UTF-8, and an empty line before others.
    """
    empty = 0
    for number, line in _decoded(path):
        if not line.strip():
            empty = empty or number
            continue
        if empty:
            raise DataError(f"{path}:{empty}: the line is empty; each line must be one JSON object.")
        yield number, line.rstrip("\r\n")


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """All lines; bytes are cut into lines before they are decoded, so that a byte that is not UTF-8 has a line."""
    try:
        with _open(path) as f:
            for number, raw in enumerate(f, 1):
                if number == 1:
                    for magic, what in FOREIGN.items():
                        if raw.startswith(magic):
                            raise DataError(f"{path} is {what}.")
                    raw = raw.removeprefix(MARK)
                try:
                    yield number, raw.decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: the file is not UTF-8 text (byte 0x{raw[error.start]:02x} at place {error.start + 1} "
                        "of the line). Save it as UTF-8."
                    ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file cannot be read ({first_line(error)}).") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def parse(text: str, path: Path, first_line: int = 1) -> Any:
    """A JSON value; ``first_line`` is the line of the file on which ``text`` begins.

    Raises:
        DataError: no JSON, a key that stands twice in one object, NaN or Infinity, half a surrogate pair, too deep.
    """
    where = f"{path}:{first_line}"

    def constant(name: str) -> Any:
        raise DataError(f"{where}: {name} is not JSON; write null, or leave the key out.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise DataError(f"{where}: the key {twice!r} stands twice in one object; keep one of them.")
        return found

    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        more = " A line must hold one whole object." if text.strip() in ("{", "[") else ""
        place = f"{path}:{first_line + error.lineno - 1}"
        raise DataError(f"{place}: not valid JSON ({error.msg} at column {error.colno}).{more}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise DataError(f"{where}: not readable JSON ({str(error).split(';')[0]}).") from None
    if "\\ud" in text or "\\uD" in text:  # the only way to write half a character
        require_characters(value, where)
    return value


def require_characters(value: Any, where: str) -> None:
    """Raises DataError for half a surrogate pair in a value, which no tokenizer reads."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: \\u{ord(error.object[error.start]):04x} is half a surrogate pair, which is no character; mend or remove it."
        ) from None


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in read_lines(path):
        row = parse(line, path, number)
        if not isinstance(row, dict):
            whole = " The file is one JSON list: let its name end in .json." if number == 1 and line[0] == "[" else ""
            raise DataError(f"{path}:{number}: found a {type(row).__name__}; each line must be one JSON object.{whole}")
        yield f"{path}:{number}", row


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    lines = [line for _, line in _decoded(path)]
    if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines[:2]):
        raise DataError(f"{path} has one object a line: let its name end in .jsonl.")
    rows = parse("".join(lines), path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: found a {type(rows).__name__}; a .json file must hold a list of objects.")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}[{i}]: found a {type(row).__name__}; each entry must be one JSON object.")
        yield f"{path}[{i}]", row


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.reader((line for _, line in _decoded(path)), strict=True)
    header: list[str] | None = None
    line = 1  # on which the row begins: a field in quotes may have several
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                twice = [name for name, n in Counter(header).items() if n > 1]
                if twice:
                    raise DataError(f"{where}: the column {twice[0]!r} stands twice in the first line; rename one.")
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: {len(fields)} fields, but the first line names {len(header)} columns. Put texts with commas or "
                    "line breaks into double quotes."
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: not valid CSV ({error}). Is a double quote open that is never closed?"
        ) from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow. Install it with: pip install pyarrow") from None
    i = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(8192):
                for row in batch.to_pylist():
                    yield f"{path}[{i}]", row
                    i += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}[{i}]: not a readable Parquet file ({first_line(error)}).") from error


READERS: dict[str, Callable[[Path], Iterable[tuple[str, Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
