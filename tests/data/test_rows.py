"""Rows that Python gives, in every form in which people hold them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import rlkit as rk
from rlkit.data.prompts import load_prompts
from rlkit.data.rows import Rows

TWO = [{"prompt": "1+1=", "answer": "2", "level": 1}, {"prompt": "2+2=", "answer": "4", "level": 3}]


def columns() -> dict[str, list[Any]]:
    return {name: [row[name] for row in TWO] for name in TWO[0]}


def forms() -> list[Any]:
    pandas, datasets, arrow = map(pytest.importorskip, ("pandas", "datasets", "pyarrow"))
    return [
        TWO,
        tuple(TWO),
        iter(TWO),
        (dict(row) for row in TWO),
        columns(),
        {name: np.array(column) for name, column in columns().items()},
        pandas.DataFrame(TWO),
        datasets.Dataset.from_list(TWO),
        datasets.Dataset.from_list(TWO).to_iterable_dataset(),
        arrow.Table.from_pylist(TWO),
    ]


def test_every_form_is_the_same_rows() -> None:
    for form in forms():
        rows = rk.Data(train=form).train
        assert isinstance(rows, Rows) and list(rows) == TWO, form
        assert all(type(row["level"]) is int for row in rows)
        assert rows == Rows(TWO) and str(rows) == str(Rows(TWO)) and pickle.loads(pickle.dumps(rows)) == rows
    assert Rows(TWO) != Rows(TWO[:1])


def test_they_are_prompts_as_rows_of_a_file_are() -> None:
    data = rk.Data(train=[{"q": r["prompt"], **r} for r in TWO], columns={"prompt": "q"}, size=1)
    found = load_prompts(data, "train", lambda text, **_: {"input_ids": list(range(len(text)))})
    assert [(p.text, p.answer, p.columns["level"]) for p in found] == [("1+1=", "2", 1)]


def test_nan_of_a_frame_is_a_value_that_is_not_there() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"prompt": "a", "answer": 1.0}, {"prompt": "b"}])
    assert list(Rows.of(frame)) == [{"prompt": "a", "answer": 1.0}, {"prompt": "b", "answer": None}]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            [{"prompt": "a"}, 5],
            "data.train[1]: found a int; each row must be a mapping of columns, e.g. {'prompt': ...}.",
        ),
        (
            {"prompt": "a"},
            "data.train: the column 'prompt' is a str; a mapping holds a list for each column. One row alone is ...",
        ),
        ({"prompt": ["a"], "answer": [1, 2]}, "data.train: the columns have different lengths: prompt 1, answer 2."),
        (5, "data.train: found a int; give a list of mappings, a mapping of columns, a data frame or a data set."),
        (iter([]), "data.train: there are no rows in it."),
        (
            [{"prompt": "\U0001f600"}, {"prompt": "\ud83d"}],
            "data.train[1]: \\ud83d is half a surrogate pair, which is ...",
        ),
        (
            {"train": pytest.importorskip("datasets").Dataset.from_list(TWO), "test": None},
            "data.train: found several data sets (train, test); give one of them, ['train'].",
        ),
        ([{1: "a"}], "data.train[0]: a column is called 1; names of columns are texts."),
    ],
)
def test_what_is_wrong_is_said_where_the_run_is_made(given: Any, says: str) -> None:
    with pytest.raises(rk.DataError) as error:
        rk.Data(train=given)
    start, _, _ = says.partition("...") if says.endswith("...") else (says, "", "")
    assert str(error.value).startswith(start)
