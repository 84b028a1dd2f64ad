"""Writes docs/papers.md: which paper each part of rlkit is from, and what is taken from it. ``python scripts/papers.py``.

Read from the docstrings, where a source stands as ``Source: NAME ID, where (what); NAME ID; ...``: entries with a semicolon between them,
each the name of a paper, its number on arXiv, and the place in it or what is taken, or else a text without a number. Configurations are
listed with the papers that their first comment names by number.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "papers.md"
NUMBER = r"\b\d{4}\.\d{5}\b"
HEAD = """# Papers, and what is made of them

Written by `python scripts/papers.py` from the `Source:` lines of the docstrings and the first lines of `configs/algorithms`; a test compares.
[algorithms.md](algorithms.md) says of each configuration whether it is exact. A part that is *from memory*, or *reconstructed from the
abstract*, was written without the paper at hand: read it before you compare numbers with the paper's.

| paper | part: what of it | configurations |
|---|---|---|
"""
REST = """
## Without a number

| part | source |
|---|---|
"""


@dataclass(frozen=True)
class Source:
    """What one part takes from one source; ``number`` and ``name`` are empty where it is not a paper on arXiv."""

    part: str
    name: str
    number: str
    what: str


def documented(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, docstring) of every module, class and function below ``folder``; the name is as in Python, without packages."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
        if text:
            yield name, text
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                inside = isinstance(node, ast.ClassDef)
                yield from walk(child, f"{name}.{child.name}" if inside else child.name)

    for path in sorted(folder.rglob("*.py")):
        yield from walk(ast.parse(path.read_text()), path.parent.name if path.stem == "__init__" else path.stem)


def sources(part: str, docstring: str) -> list[Source]:
    """The entries of a docstring's ``Source:`` paragraphs.

    Raises:
        ValueError: a number is not the only one of its entry, has no name before it, or stands outside of such a paragraph.
    """
    found = []
    for paragraph in re.findall(r"Source: (.*?)(?:\n\s*\n|\Z)", docstring, re.DOTALL):
        for entry in re.split(r";\s+(?![^(]*\))", " ".join(paragraph.split()).rstrip(".")):
            paper = re.fullmatch(rf"(\S[^,;()]*?) ({NUMBER})(.*)", entry)
            found.append(Source(part, *paper.groups()) if paper else Source(part, "", "", entry))
    numbers = [s.number for s in found if s.number]
    if sorted(numbers) != sorted(re.findall(NUMBER, docstring)) or any(re.search(NUMBER, s.what) for s in found):
        raise ValueError(
            f"{part}: write each paper as `NAME NUMBER, where (what)` after `Source:`, with `; ` between them."
        )
    return found


def configurations() -> dict[str, list[str]]:
    """Names of configurations by the numbers of the papers in their first comment."""
    found = defaultdict(list)
    for path in sorted((ROOT / "configs" / "algorithms").glob("*.yaml")):
        comment = path.read_text().split("\n\n")[0]
        lines = [line for line in comment.splitlines() if line.startswith("#")]
        for number in dict.fromkeys(re.findall(NUMBER, " ".join(lines))):
            found[number].append(path.stem)
    return found


def page() -> str:
    found = [
        s
        for part, text in documented(ROOT / "rlkit")
        if "Source:" in text or re.search(NUMBER, text)
        for s in sources(part, text)
    ]
    used, papers = configurations(), defaultdict(list)
    for s in found:
        papers[s.number].append(s)
    lines = []
    for number in sorted({*papers, *used} - {""}):
        parts = papers[number]
        names = {s.name for s in parts}
        if len(names) > 1:
            raise ValueError(f"{number} has several names: {', '.join(sorted(names))}.")
        what = "<br>".join(f"`{s.part}`{cell(s.what)}" for s in sorted(parts, key=lambda s: s.part))
        link = f"[{number}](https://arxiv.org/abs/{number})"
        lines.append(f"| {' '.join([*names, link])} | {what} | {', '.join(f'`{c}`' for c in used[number])} |\n")
    rest = [f"| `{s.part}` | {plain(s.what)} |\n" for s in papers[""]]
    return HEAD + "".join(lines) + REST + "".join(rest)


def cell(what: str) -> str:
    """What follows a number, ready for a cell: `, eq. 7 (text)` is `: eq. 7 (text)`, and ` (text)` is `: text`."""
    what = what.strip(" ,")
    alone = re.fullmatch(r"\(([^()]*)\)", what)
    return f": {plain(alone[1] if alone else what)}" if what else ""


def plain(text: str) -> str:
    """The text of a docstring as that of a cell."""
    return text.replace("``", "`").replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
