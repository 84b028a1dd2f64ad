"""Every number that the library writes has a meaning, and every meaning a number."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import rlkit
from rlkit.record.meanings import METRICS, meaning

ROOT = Path(rlkit.__file__).parent
WRITERS = ("cluster", "data", "learner", "objective", "record", "rewards", "rollout", "report.py", "trainer.py")
INNER = {"kl_by/X", "gram/X/X"}  # names in the making: kl_by has two parts, and gram becomes gradient/*


def written() -> Iterator[str]:
    """Names of metrics in the code of who writes them; what is filled in is an X."""
    families = {m.name.split("/")[0] for m in METRICS} - {"eval"}
    for path in (p for w in WRITERS for p in ([ROOT / w] if w.endswith(".py") else (ROOT / w).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
            else:
                text = str(node.value) if isinstance(node, ast.Constant) else ""
            if (
                re.fullmatch(r"[a-z_]+/[\w/]+", text)
                and text.split("/")[0] in families
                and not text.endswith(("/", "_"))
            ):
                yield text


def test_every_name_has_a_meaning() -> None:
    def known(name: str) -> bool:
        filled = re.escape(name).replace("X", ".+")
        return meaning(name) is not None or any(re.fullmatch(filled, m.name) for m in METRICS)

    assert {name for name in written() if not known(name)} - INNER == set()


def test_every_meaning_has_a_name() -> None:
    names = set(written()) | INNER

    def fits(name: str) -> bool:
        filled = re.sub(r"[A-Z]{2,}", "a", name)
        return any(re.fullmatch(re.escape(n).replace("X", ".+"), filled) for n in names)

    # held-out scores have their own step; a controller's state is put behind a coefficient
    assert [m.name for m in METRICS if not fits(m.name) and m.name not in ("eval/score", "coef/TERM/STATE")] == []


def test_every_metric_of_a_run_has_a_meaning() -> None:
    rows = map(json.loads, Path("tests/kept/format5/metrics.jsonl").read_text().splitlines())
    names = {name for row in rows for name in row} - {"step"}
    assert len(names) > 50 and [name for name in names if meaning(name) is None] == []


def test_the_most_special_entry_counts() -> None:
    assert meaning("reward/errors").name == "reward/errors"  # type: ignore[union-attr]
    assert meaning("reward/places/places").name == "reward/PART"  # type: ignore[union-attr]
    assert meaning("coef/KL_k2(ref)").name == "coef/TERM"  # type: ignore[union-attr]
    assert meaning("coef/KL_k2(ref)/target").name == "coef/TERM/STATE"  # type: ignore[union-attr]
    assert meaning("new/thing") is None
