"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_promise_names_tests_that_are_there() -> None:
    page = Path("docs/reliability.md").read_text()
    files = list(Path("tests").rglob("*.py"))
    there = {name for f in files for name in re.findall(r"^def (test_\w+)", f.read_text(), re.M)} | {
        f.stem for f in files
    }
    assert set(re.findall(r"\btest_\w+", page)) <= there
    assert all(Path(f).exists() for f in re.findall(r"\w+(?:/\w+)+\.(?:py|yaml)", page))
    rows = [
        r
        for r in page.splitlines()
        if r.startswith("| ") and not r.startswith(("| promise", "| what happens", "| mode"))
    ]
    assert rows and all(re.search(r"`(tests|scripts)/|`test_|benchmarks/|\| the same(?: two)? \|$", r) for r in rows)
