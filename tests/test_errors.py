"""Exceptions: one tree, each also the built-in it stands for, and nothing else is raised on purpose."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import rlkit
from rlkit import errors
from rlkit.cli import main
from rlkit.errors import first_line

TREE = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.RlkitError)]


@pytest.mark.parametrize("cls", TREE)
def test_each_can_travel_between_processes(cls: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(cls("what is wrong")))
    assert type(again) is cls and str(again) == "what is wrong"


def test_the_library_raises_only_its_own_where_a_user_reads_it() -> None:
    plain = {"ValueError", "RuntimeError", "TimeoutError", "FloatingPointError", "Exception", "KeyError"}
    found = []
    for path in Path(rlkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name) and raised.func.id in plain:
                found.append(f"{path.name}:{node.lineno}")
    assert not found, f"use a class of rlkit.errors: {found}"


def test_docstrings_name_what_is_raised() -> None:
    """Each of our classes is a built-in exception, too; who reads `Raises:` wants the class."""
    plain = re.compile(
        r"(?:Raises |^\s+)(?:ValueError|RuntimeError|FloatingPointError|TimeoutError|KeyError)(?::| if| for)", re.M
    )
    found = []
    for path in Path(rlkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{path.name}: {m[0].strip()}" for m in plain.finditer(ast.get_docstring(node) or "")]
    assert not found, f"name a class of rlkit.errors: {found}"


def test_exit_codes_and_a_foreign_error_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> int:
        def load(*args: object) -> None:
            raise error

        monkeypatch.setattr("rlkit.commands.show.load_with_origins", load)
        return main(["show", "x.yaml"])

    assert fails(errors.DataError("rows.jsonl:3: no answer.")) == 2
    assert fails(errors.NumericsError("the loss is not finite.")) == 1
    assert capsys.readouterr().err == "error: rows.jsonl:3: no answer.\nerror: the loss is not finite.\n"
    with pytest.raises(ValueError, match="of the user's own"):
        fails(ValueError("of the user's own"))


def test_the_first_line_of_what_others_say_is_never_missing() -> None:
    assert first_line(ValueError("\n  no such model\nTraceback")) == "no such model"
    assert first_line(KeyError()) == "KeyError" and first_line(RuntimeError("\n")) == "RuntimeError"
    assert first_line(FileNotFoundError(2, "No such file or directory", "a")) == "No such file or directory"


def test_the_page_on_errors_is_what_the_classes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("scripts")
    import error_page

    assert error_page.PAGE.read_text() == error_page.page(), "run: python scripts/error_page.py"
    assert all(f"`{cls.__name__}`" in error_page.page() for cls in TREE)
