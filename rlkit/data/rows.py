"""Rows that Python gives where a file would stand: ``rk.Data(train=[{"prompt": "2+2", "answer": "4"}])``.

A list of mappings, a generator of them, a mapping of columns, a data set of ``datasets``, a frame of pandas or polars, a table of Arrow:
all become a tuple of dictionaries at once, so that two runs can be made of an iterator that runs once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlkit.data.files import require_characters
from rlkit.errors import DataError
from rlkit.place import Place
from rlkit.values import OnlyPython


class Frame(Protocol):
    """A table of pandas; those of polars and Arrow have other names for the same and are taken, too."""

    @property
    def columns(self) -> Any: ...
    def to_dict(self, orient: Any) -> Any: ...


RowsGiven = Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Frame


class Rows(OnlyPython):
    """Rows in memory. Two are equal if they hold the same; ``str`` is what stands in the ``config.yaml`` of a run, which holds no rows."""

    MARK = "rows given in Python"

    def __init__(self, rows: Iterable[Mapping[str, Any]], where: str = "rows") -> None:
        self.rows = tuple(_row(row, f"{where}[{i}]") for i, row in enumerate(rows))
        if not self.rows:
            raise DataError(f"{where}: there are no rows in it.")
        text = json.dumps(self.rows, sort_keys=True, default=str)
        if "\\ud" in text:  # a surrogate pair, or half of one
            for i, row in enumerate(self.rows):
                require_characters(row, f"{where}[{i}]")
        self.digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]

    @classmethod
    def of(cls, given: Any, where: str = "rows") -> Rows:
        """The rows of whatever holds some.

        Raises:
            DataError: no rows, columns of different lengths, or something that is no mapping, with its number.
        """
        return given if isinstance(given, Rows) else cls(_mappings(given, where), where)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return f"{self.MARK} ({len(self):,}, sha256 {self.digest})"

    __repr__ = __str__


Source = Place | tuple[Place, ...] | Rows


def source_of(given: Any, where: str) -> Source | None:
    """A name, several names, or the rows that something holds."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, list | tuple) and given and all(isinstance(name, str | Path) for name in given):
        return tuple(map(str, given))
    return Rows.of(given, where)


def _mappings(given: Any, where: str) -> Iterable[Mapping[str, Any]]:
    """What other libraries call their rows. Their types are asked for a method, because none of them is a dependency."""
    if isinstance(given, Mapping):
        return _of_columns(given, where)
    for method, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(type(given), "columns" if method != "to_pylist" else "column_names") and hasattr(
            type(given), method
        ):
            rows: Iterable[Mapping[str, Any]] = getattr(given, method)(*arguments)
            return rows
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(
            f"{where}: found a {type(given).__name__}; give a list of mappings, a mapping of columns, a data frame or a data set."
        )
    return given


def _of_columns(columns: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    lists = {}
    for name, column in columns.items():
        if hasattr(type(column), "column_names"):
            raise DataError(
                f"{where}: found several data sets ({', '.join(map(str, columns))}); give one of them, [{name!r}]."
            )
        if isinstance(column, str | bytes) or not isinstance(column, Iterable):
            raise DataError(
                f"{where}: the column {name!r} is a {type(column).__name__}; a mapping holds a list for each column. One row "
                "alone is a list of one mapping."
            )
        lists[name] = list(column)
    lengths = {name: len(column) for name, column in lists.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{where}: the columns have different lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}."
        )
    return (dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True))


def _row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: found a {type(row).__name__}; each row must be a mapping of columns, e.g. {{'prompt': ...}}."
        )
    strange = next((k for k in row if not isinstance(k, str)), None)
    if strange is not None:
        raise DataError(f"{where}: a column is called {strange!r}; names of columns are texts.")
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Numbers and lists of NumPy as Python's own; NaN, with which a frame says that nothing is there, as None."""
    if hasattr(type(value), "tolist") and hasattr(type(value), "dtype"):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value
