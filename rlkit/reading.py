"""Configuration files as values that remember where they stand.

Only the part of YAML 1.2 that a configuration needs is read: mappings, lists, texts and numbers. Aliases are written out; tags, merge keys
and several documents are refused, so is whatever would take long or not end: large files, deep nesting, anchors inside themselves. Every
error is a :class:`~rlkit.errors.ConfigError` with file and line.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import ConfigError
from rlkit.shipped import find, names


@dataclass
class Located:
    """A YAML value with its origin; mappings and lists hold further ``Located`` values."""

    value: Any
    origin: str
    folder: Path | None = None  # of the file in which it stands

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() for v in self.value]
        return self.value

    def move(self, origin: str) -> None:
        """Everything in it comes from ``origin``."""
        self.origin = origin
        inside = self.value.values() if isinstance(self.value, dict) else self.value
        for v in inside if isinstance(self.value, dict | list) else ():
            v.move(origin)

    def leaves(self, path: str = "") -> Iterator[tuple[str, Located]]:
        if isinstance(self.value, dict) and self.value:
            for k, v in self.value.items():
                yield from v.leaves(f"{path}.{k}" if path else str(k))
        elif isinstance(self.value, list) and self.value:
            for i, v in enumerate(self.value):
                yield from v.leaves(f"{path}.{i}")
        else:
            yield path, self


# -- YAML -------------------------------------------------------------------------------------------------------------

LARGEST_FILE = 2**20  # bytes; the longest configuration of the library has 4,000
MOST_VALUES = 20_000  # of one file, its aliases written out
DEEPEST = 64  # mappings and lists inside each other
LONGEST_CHAIN = 32  # files that extend each other
PYTHON = "mapping"  # the origin of what stands in no file
LARGEST = 2**63  # a whole number must be smaller: torch and NumPy have no larger ones

_YAML = "tag:yaml.org,2002:"
_PLAIN: dict[str, tuple[str, str]] = {  # YAML 1.2, and numbers may be grouped with _: what a word without quotes is
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _TooMuch(yaml.MarkedYAMLError):
    """Valid, but no configuration."""


class Loader(yaml.SafeLoader):
    """YAML 1.2: ``1e-4`` is a number, ``010`` is ten, ``on`` and ``2026-01-01`` are words; only ``true`` and ``false`` are booleans.

    It only composes nodes, of which there are at most ``MOST_VALUES`` and ``DEEPEST`` inside each other.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's, filled below)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth, self.count = self.depth + 1, self.count + 1
        if self.depth > DEEPEST or self.count > MOST_VALUES:
            raise _TooMuch(None, None, _too_much(self.depth > DEEPEST), self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, (_pattern, _first) in _PLAIN.items():
    Loader.add_implicit_resolver(
        _YAML + _name, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


def _too_much(deep: bool) -> str:
    return (
        f"mappings and lists are nested more than {DEEPEST} deep"
        if deep
        else f"there are more than {MOST_VALUES:,} values, aliases written out"
    )


class _Reader:
    """The nodes of one YAML text as ``Located`` values; ``folder`` is that of the file, whose lines are told then."""

    def __init__(self, place: str, folder: Path | None = None) -> None:
        self.place, self.folder, self.lines, self.count = place, folder, folder is not None, 0
        self.inside = list[int]()

    def at(self, mark: Any) -> str:
        return f"{self.place}:{mark.line + 1}" if self.lines and mark else self.place

    def fail(self, node: yaml.Node, message: str) -> typing.NoReturn:
        raise ConfigError(f"{self.at(node.start_mark)}: {message}")

    def read(self, text: str) -> Located | None:
        """None where the text holds no value."""
        try:
            node = Loader(text).get_single_node()
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            where = f"{self.place}:{line}" if self.lines else self.place
            raise ConfigError(f"{where}: the character U+{error.character:04X} may not stand in YAML.") from None
        except _TooMuch as error:
            raise ConfigError(f"{self.at(error.problem_mark)}: {error.problem}. Is this the right file?") from None
        except yaml.MarkedYAMLError as error:
            said = ": ".join(x for x in (error.context, error.problem) if x)
            raise ConfigError(
                f"{self.at(error.problem_mark or error.context_mark)}: not valid YAML: {printable(said)}."
            ) from None
        except (ValueError, OverflowError) as error:  # an escape like "\\UFFFFFFFF", which PyYAML does not check
            raise ConfigError(
                f"{self.place}: not valid YAML: an escape in quotes names no character ({error})."
            ) from None
        return None if node is None else self.convert(node)

    def convert(self, node: yaml.Node) -> Located:
        self.count += 1
        if id(node) in self.inside:
            self.fail(node, "an anchor (&) stands inside itself: a value cannot hold itself.")
        if self.count > MOST_VALUES or len(self.inside) > DEEPEST:
            self.fail(node, f"{_too_much(self.count <= MOST_VALUES)}. Is this the right file?")
        origin = self.at(node.start_mark)
        self.inside.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _YAML + "map":
                return Located(self.mapping(node), origin, self.folder)
            if isinstance(node, yaml.SequenceNode) and node.tag == _YAML + "seq":
                return Located([self.convert(v) for v in node.value], origin, self.folder)
            if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_YAML) in (*_PLAIN, "str"):
                return Located(self.scalar(node), origin, self.folder)
        finally:
            self.inside.pop()
        tag = node.tag.replace(_YAML, "!!")
        self.fail(node, f"the tag {tag} is not read here: write plain values, mappings and lists.")

    def mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        out: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.fail(key_node, f"a key must be a word; found a {key_node.id}.")
            key = self.text(key_node)
            if key == "<<":
                self.fail(key_node, "<<: merge keys are not read; use `extends: other.yaml`, or write the keys out.")
            if key in out:
                self.fail(
                    key_node,
                    f"{printable(key)}: the key stands here a second time (first at {out[key].origin}). Remove one of them.",
                )
            alone = value_node.start_mark.index == value_node.end_mark.index == key_node.end_mark.index
            name, colon, rest = key.partition(":")
            if alone and colon and rest and key_node.style is None:
                self.fail(
                    key_node, f"{printable(key)}: YAML wants a space after the colon: {printable(f'{name}: {rest}')}."
                )
            out[key] = self.convert(value_node)
        return out

    def text(self, node: yaml.ScalarNode) -> str:
        problem = _unwritable(node.value)
        if problem:
            self.fail(node, f"{problem}.")
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_YAML), self.text(node)
        bare = text.replace("_", "").lower()
        try:
            if kind == "str":
                return text
            if kind == "int":
                return int(bare, {"0x": 16, "0o": 8}.get(bare[:2], 10))
            if kind == "float":
                return float(bare.replace(".inf", "inf").replace(".nan", "nan"))
            if kind == "bool":
                return {"true": True, "false": False}[bare]
        except (ValueError, KeyError):
            long = f" ({len(bare):,} digits)" if len(bare) > 100 else ""
            self.fail(node, f"found {shown(text)}{long}, which is not readable as a YAML {kind}.")
        return None


def _unwritable(text: str) -> str | None:
    """Why a text cannot go into files and names, or None."""
    if "\0" in text:
        return f"the text {shown(text)} holds a NUL character"
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    return half and f"the text {shown(text)} holds half of a character (U+{ord(half):04X}), which no file can hold"


def printable(text: str, longest: int = 300) -> str:
    """``text`` on one line, without control characters, and cut where it is long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:longest])
    return line if len(text) <= longest else f"{line}..."


def shown(x: Any) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    if x is None or isinstance(x, bool):
        return "null" if x is None else str(x).lower()
    if isinstance(x, int) and abs(x) >= LARGEST:
        return f"a whole number of {x.bit_length()} bits"
    if isinstance(x, dict | list):
        x = _some(x, 2)
    text = repr(x[:200] if isinstance(x, str) else x)
    return text if len(text) <= 100 else f"{text[:90]}...{text[-1] if text[0] == text[-1] else ''}"


def _some(x: Any, depth: int) -> Any:
    """The first few entries of a nested value."""
    if isinstance(x, dict):
        return {k[:40]: _some(v, depth - 1) for k, v in list(x.items())[:9]} if depth else {}
    if isinstance(x, list):
        return [_some(v, depth - 1) for v in x[:9]] if depth else []
    return shown(x) if isinstance(x, int) and abs(x) >= LARGEST else x


def configuration(source: str | Path) -> Path:
    """The file that somebody means: a path, or the name of a configuration that comes with the library (``algorithms/grpo``)."""
    path = Path(source)
    return path if os.path.isfile(path) else find(path.as_posix()) or path


def read(path: str | Path) -> Located:
    """A file with everything that it extends.

    Raises:
        ConfigError: no such file, not text, not YAML, not a mapping, or a cycle of ``extends``.
    """
    return _read(configuration(path), "", ())


def _file_text(path: Path, where: str) -> str:
    """The text of a configuration; ``where`` is the place that names it."""
    name = printable(str(path))
    try:
        status = path.stat()
        # A pipe is not opened: that would wait for somebody who writes into it.
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE else None
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], 1)
        meant, what = [str(folder / x) for x in near], "there is no such file."
        if not path.suffix:
            meant += difflib.get_close_matches(str(path)[:100], names(), 1)
            what = "there is no such file, and no configuration of this name (`rlkit configs` lists them)."
        raise ConfigError(f"{where}{name}: {what}" + (f" Did you mean {meant[0]}?" if meant else "")) from None
    except OSError as error:
        raise ConfigError(f"{where}{name}: cannot be read: {error.strerror}.") from None
    except ValueError:  # what a path may not hold
        raise ConfigError(f"{where}{name}: is not the name of a file.") from None
    if data is None and stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{where}{name}: has {status.st_size:,} bytes; a configuration has at most {LARGEST_FILE:,}. Is this the right file?"
        )
    if data is None:
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise ConfigError(f"{where}{name}: is {kind}, not a file. Name a YAML file.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{name}: the file is UTF-16. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}:{line}: the byte 0x{data[error.start]:02x} is not UTF-8: the file is binary or in another encoding. "
            "Save it as UTF-8."
        ) from None


def _read(path: Path, where: str, chain: tuple[Path, ...]) -> Located:
    text = _file_text(path, where)
    if path.resolve() in chain:
        raise ConfigError(f"{where}{path}: extends itself: {' -> '.join(p.name for p in (*chain, path))}.")
    if len(chain) >= LONGEST_CHAIN:
        raise ConfigError(f"{where}{path}: more than {LONGEST_CHAIN} files extend each other.")
    tree = _Reader(printable(str(path)), path.parent).read(text)
    if tree is None or not isinstance(tree.value, dict):
        found = "nothing" if tree is None or tree.value is None else shown(tree.plain())
        raise ConfigError(f"{printable(str(path))}: the file holds {found}; it must be a mapping of keys to values.")
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    if not isinstance(extends.value, str):
        raise ConfigError(f"{extends.origin}: extends: found {shown(extends.plain())}, expected the name of a file.")
    beside = path.parent / extends.value
    below = beside if os.path.isfile(beside) else find(extends.value) or beside
    below_tree = _read(below, f"{extends.origin}: extends: ", (*chain, path.resolve()))
    return merge(below_tree, tree)


def merge(base: Located, top: Located) -> Located:
    """``top`` over ``base``: mappings merge key by key, everything else (and another ``type``) replaces."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    if "type" in top.value and ("type" not in base.value or base.value["type"].value != top.value["type"].value):
        return top
    merged = dict(base.value)
    for key, v in top.value.items():
        merged[key] = merge(merged[key], v) if key in merged else v
    return Located(merged, top.origin)


def override(tree: Located, text: str) -> None:
    """Applies ``a.b.0.c=value``; the value is read as YAML.

    Raises:
        ConfigError: not of that form, or a path through something that has no keys.
    """
    path, eq, raw = text.partition("=")
    if not eq or not path:
        raise ConfigError(f"command line: {shown(text)} is not of the form key=value, e.g. learner.lr=1e-5.")
    keys = path.split(".")
    if not all(keys) or len(keys) > DEEPEST or _unwritable(path):
        raise ConfigError(f"command line: {shown(path)} is not a path of keys, e.g. learner.lr or objective.0.coef.")
    value = _Reader(f"command line: {path}").read(raw) or Located(None, "command line")
    value.move("command line")
    here = tree
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(here.value, list):
            if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(here.value):
                raise ConfigError(
                    f"command line: {path}: {'.'.join(keys[:i])} is a list of {len(here.value)}; {shown(key)} is no index into it."
                )
            if last:
                here.value[int(key)] = value
            here = here.value[int(key)]
        else:
            if here.value is None:
                here.value = {}
            if not isinstance(here.value, dict):
                raise ConfigError(f"command line: {path}: {'.'.join(keys[:i])} is {shown(here.value)} and has no keys.")
            if last:
                here.value[key] = value
            here = here.value.setdefault(key, Located({}, "command line"))


def located(x: Any, path: str = "", depth: int = 0) -> Located:
    """What Python code gives, as if it stood in a file: tuples are lists, and keys and texts are those that a file can hold."""
    if depth > DEEPEST:
        raise ConfigError(f"{PYTHON}: {path[:100]}: {_too_much(True)}. Does it hold itself?")
    if isinstance(x, Mapping):
        strange = next((k for k in x if not isinstance(k, str | int | float)), None)
        if strange is not None:
            raise ConfigError(f"{PYTHON}: {path or 'the keys'}: a key must be a word; found {shown(strange)}.")
        return Located({str(k): located(v, f"{path}.{k}" if path else str(k), depth + 1) for k, v in x.items()}, PYTHON)
    if isinstance(x, list | tuple):
        return Located([located(v, f"{path}.{i}", depth + 1) for i, v in enumerate(x)], PYTHON)
    problem = _unwritable(x) if isinstance(x, str) else None
    if problem:
        raise ConfigError(f"{PYTHON}: {path}: {problem}.")
    return Located(x, PYTHON)
