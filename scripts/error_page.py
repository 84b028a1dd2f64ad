"""Writes docs/errors.md from the classes of rlkit/errors.py and their docstrings.   python scripts/error_page.py"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from rlkit import errors

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


def tree(cls: type[BaseException] = errors.RlkitError, depth: int = 0) -> Iterator[tuple[int, type[BaseException]]]:
    """Every class with its depth, parents first, in the order in which the file defines them."""
    yield depth, cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


def built_in(cls: type[BaseException]) -> str:
    """The exceptions of Python that a class is, too."""
    found = [base for base in cls.__mro__ if base.__module__ == "builtins"]
    return (
        ", ".join(
            f"`{b.__name__}`" for b in found if b not in (Exception, BaseException, object, OSError, ArithmeticError)
        )
        or "-"
    )


def exit_code(cls: type[BaseException]) -> str:
    return "-" if cls is errors.RlkitError else "2" if issubclass(cls, errors.InputError) else "1"


def told(cls: type[BaseException]) -> list[str]:
    """Meaning, cause and remedy, without line breaks."""
    parts = inspect.cleandoc(cls.__doc__ or "").replace("\nRemedy: ", "\n\nRemedy: ").split("\n\n")
    return [" ".join(part.split()).replace("``", "`") for part in parts]


def page() -> str:
    lines = [
        "# Errors",
        "",
        "Written by `scripts/error_page.py` from `rlkit/errors.py`; do not edit.",
        "",
        "What rlkit raises on purpose is a `rk.RlkitError`. Its message says where, what, and what to do, and is all that the command line",
        "prints (`RLKIT_TRACEBACK=1` shows the rest). Each class is also the exception of Python that it stands for, so `except ValueError`",
        "catches it, and it can be pickled. Every other exception, those of your own reward or loss among them, keeps its traceback.",
        "",
        "```python",
        "import rlkit as rk",
        "",
        "try:",
        '    rk.load({"steps": "many"})',
        "except rk.InputError as error:  # what was given is wrong, and nothing was started",
        "    print(error)",
        "except rk.RunError as error:  # it had started: rk.train(run, resume=True) goes on",
        "    print(error)",
        "```",
        "",
        "| class | also | exit code | |",
        "|---|---|---|---|",
    ]
    for depth, cls in tree():
        lines.append(
            f"| {'&nbsp;&nbsp;' * depth}`{cls.__name__}` | {built_in(cls)} | {exit_code(cls)} | {told(cls)[0]} |"
        )
    for _, cls in tree():
        meaning, *rest = told(cls)
        if rest:
            lines += ["", f"## {cls.__name__}", "", meaning, ""]
            lines += [f"* **{label}:** {text}" for label, _, text in (x.partition(": ") for x in rest)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
