"""The rooms of the house and the directions between them, read from the imports and held against the table of docs/design.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlkit"
# What the program uses is imported when it is used, so that `rlkit --help` takes no time.
FACES = {"cli"}
# These need a library at their top that is not installed everywhere.
OPTIONAL = {
    *("rlkit.learner.gloo", "rlkit.rollout.vllm_gpu", "rlkit.rollout.vllm_weights", "rlkit.rollout.vllm_steering"),
}

# A name that scripts import, in a room below what it calls.
KEPT = {"rlkit.cluster.submit -> commands"}


class Import(NamedTuple):
    by: str  # module
    of: str  # module
    in_function: bool


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = modules()


def imports(by: str, tree: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """The imports of our own modules, those for type checkers among them: who names a type knows its room."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                of = f"{node.module}.{name.name}"
                of = of if of in MODULES else node.module
                if of in MODULES:
                    yield Import(by, of, in_function)
        elif isinstance(node, ast.Import):
            yield from (Import(by, name.name, in_function) for name in node.names if name.name in MODULES)
        else:
            yield from imports(by, node, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


IMPORTS = [found for by, path in MODULES.items() for found in imports(by, ast.parse(path.read_text()))]


def room(module: str) -> str:
    """The first name below the package; the package's own module is its face."""
    return module.split(".")[1] if "." in module else "__init__"


def floors() -> dict[str, int]:
    """The floor of each room, from the table: ``| 3 | `config.py`, `verifier/` | ... |``."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}


def test_every_room_stands_on_a_floor_of_the_table() -> None:
    assert floors().keys() == {room(module) for module in MODULES}


def test_rooms_know_only_what_is_below_them() -> None:
    floor = floors()
    up = {
        f"{i.by} -> {room(i.of)}"
        for i in IMPORTS
        if room(i.by) != room(i.of) and floor[room(i.by)] <= floor[room(i.of)]
    }
    assert up == KEPT


def test_what_a_module_imports_stands_at_its_top() -> None:
    inside = {
        f"{i.by} -> {i.of}" for i in IMPORTS if i.in_function and room(i.by) not in FACES and i.of not in OPTIONAL
    }
    assert inside == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {module: {i.of for i in IMPORTS if i.by == module and i.of != module} for module in MODULES}

    def reached(start: str) -> set[str]:
        seen, todo = set[str](), [start]
        while todo:
            new = below[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    far = {module: reached(module) for module in MODULES}
    circles = {frozenset(b for b in far[a] if a in far[b]) for a in MODULES if a in far[a]}
    assert not circles


def test_the_reader_of_imports_sees_what_it_is_for() -> None:
    source = "from rlkit import types\nif True:\n    import rlkit.run\ndef f():\n    def g():\n        from rlkit.files import told\n"
    assert list(imports("rlkit.x", ast.parse(source))) == [
        Import("rlkit.x", "rlkit.types", False),
        Import("rlkit.x", "rlkit.run", False),
        Import("rlkit.x", "rlkit.files", True),
    ]
