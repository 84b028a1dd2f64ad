"""YAML files to validated frozen dataclasses, and back.

The dataclass *is* the schema: a field is a key, its annotation the type, its default the default. A component (a loss term, an
advantage, a sampler, ...) is a mapping with ``type``, looked up among the library's classes or in the user's own file::

    objective:
      - {type: PPOClip, eps_high: 0.28}
      - {type: my_losses.py:MyLoss, tau: 0.1}

``extends: other.yaml`` starts from another file; ``a.b=c`` on the command line changes one value. Every value remembers where it
came from, and every error says file, line, key, what was found, and what to do. All errors of a file are reported together.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import os
import re
import stat
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from rlkit.bounds import Bound, FolderName
from rlkit.errors import ConfigError, InputError
from rlkit.place import by_value, load_user_file, user_file

TERMS = ("rlkit.objective.losses", "rlkit.objective.divergences", "rlkit.objective.full_vocab")
NAMESPACES: dict[str, tuple[str, ...]] = {  # the annotation's name -> where its classes live
    "Term": TERMS,
    "Advantage": ("rlkit.objective.advantages",),
    "Coefficient": ("rlkit.objective.coefficients",),
    "Penalty": ("rlkit.objective.penalties",),
    "Correction": ("rlkit.objective.corrections",),
    "Sampler": ("rlkit.data.curriculum",),
    "DropRule": ("rlkit.data.curriculum",),
    "AdmitRule": ("rlkit.data.curriculum",),
    "Task": ("rlkit.data.tasks",),
    "Reference": ("rlkit.learner.reference",),
    "Generator": (),  # of a divergence: by name, or the user's own
}
FITS: dict[str, Callable[[type], bool]] = {  # which classes of a module that serves several annotations
    "Task": lambda cls: hasattr(cls, "demonstration"),
    "Sampler": lambda cls: hasattr(cls, "build"),
    "DropRule": lambda cls: _parameters(cls) == ["group"],
    "AdmitRule": lambda cls: _parameters(cls) == ["prompt", "ask"],
}
PROMISES: dict[str, tuple[str, ...]] = {  # what a class of the user's own must have to stand where the annotation is
    "Term": ("needs", "coef", "reduce", "on", "mark", "name"),
    "Advantage": ("needs", "__call__"),
    "Coefficient": ("start", "next"),
    "Penalty": ("coef", "placement", "needs", "name", "__call__"),
    "Correction": ("needs", "denominator", "__call__"),
    "Sampler": ("build",),
    "DropRule": ("__call__",),
    "AdmitRule": ("__call__",),
    "Task": ("alphabet", "rows", "demonstration", "verify"),
    "Reference": ("build",),
    "Generator": ("value", "slope"),
}
SHORTHAND = {"RewardSpec": "fn"}  # a bare string fills this field


@dataclass
class Located:
    """A YAML value with its origin; mappings and lists hold further ``Located`` values."""

    value: Any
    origin: str

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


# -- reading ----------------------------------------------------------------------------------------------------------

LARGEST_FILE = 2**20  # bytes; the longest configuration of the library has 4,000
MOST_VALUES = 20_000  # of one file, its aliases written out
DEEPEST = 64  # mappings and lists inside each other
LONGEST_CHAIN = 32  # files that extend each other
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


class _Loader(yaml.SafeLoader):
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
    _Loader.add_implicit_resolver(
        _YAML + _name, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


def _too_much(deep: bool) -> str:
    return (
        f"mappings and lists are nested more than {DEEPEST} deep"
        if deep
        else f"there are more than {MOST_VALUES:,} values, aliases written out"
    )


class _Reader:
    """The nodes of one YAML text as ``Located`` values."""

    def __init__(self, place: str, lines: bool) -> None:
        self.place, self.lines, self.count = place, lines, 0
        self.inside = list[int]()

    def at(self, mark: Any) -> str:
        return f"{self.place}:{mark.line + 1}" if self.lines and mark else self.place

    def fail(self, node: yaml.Node, message: str) -> typing.NoReturn:
        raise ConfigError(f"{self.at(node.start_mark)}: {message}")

    def read(self, text: str) -> Located | None:
        """None where the text holds no value."""
        try:
            node = _Loader(text).get_single_node()
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
                return Located(self.mapping(node), origin)
            if isinstance(node, yaml.SequenceNode) and node.tag == _YAML + "seq":
                return Located([self.convert(v) for v in node.value], origin)
            if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_YAML) in (*_PLAIN, "str"):
                return Located(self.scalar(node), origin)
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


def printable(text: str) -> str:
    """``text`` on one line, without control characters, and cut where it is long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:300])
    return line if len(text) <= 300 else f"{line}..."


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


def read(path: str | Path) -> Located:
    """A file with everything that it extends.

    Raises:
        ConfigError: no such file, not text, not YAML, not a mapping, or a cycle of ``extends``.
    """
    return _read(Path(path), "", ())


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
        raise ConfigError(
            f"{where}{name}: there is no such file." + (f" Did you mean {folder / near[0]}?" if near else "")
        ) from None
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
    tree = _Reader(printable(str(path)), lines=True).read(text)
    if tree is None or not isinstance(tree.value, dict):
        found = "nothing" if tree is None or tree.value is None else shown(tree.plain())
        raise ConfigError(f"{printable(str(path))}: the file holds {found}; it must be a mapping of keys to values.")
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    if not isinstance(extends.value, str):
        raise ConfigError(f"{extends.origin}: extends: found {shown(extends.plain())}, expected the name of a file.")
    below = _read(path.parent / extends.value, f"{extends.origin}: extends: ", (*chain, path.resolve()))
    return merge(below, tree)


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
    value = _Reader(f"command line: {path}", lines=False).read(raw) or Located(None, "command line")
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


# -- building ---------------------------------------------------------------------------------------------------------

WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "null",
    Any: "a value",
}


class _Builder:
    def __init__(self, base: Path) -> None:
        self.base, self.errors = base, list[str]()

    def fail(self, at: Located, path: str, message: str) -> Any:
        place = f"{at.origin}: {printable(path)}" if path else at.origin
        self.errors.append(f"{place}: {message}")
        return None

    def unlike(self, hint: Any, at: Located, path: str) -> Any:
        return self.fail(at, path, f"found {shown(at.plain())}, expected {expected(hint)}.")

    def value(self, hint: Any, at: Located, path: str) -> Any:
        v, origin = at.value, typing.get_origin(hint)
        if origin is Annotated:
            return self.bounded(hint, at, path)
        if origin in (Union, types.UnionType):
            return self.union(hint, at, path)
        if origin is Literal:
            fits = any(v == option and type(v) is type(option) for option in typing.get_args(hint))
            return v if fits else self.unlike(hint, at, path)
        if hint is Any:
            return self.anything(at, path)
        if _namespace(hint):
            return self.component(hint.__name__, at, path)
        if dataclasses.is_dataclass(hint):
            return self.section(hint, at, path)
        if origin in (tuple, list):
            return self.sequence(hint, at, path)
        if hint is dict or origin is dict:
            return self.mapping(hint, at, path)
        return self.scalar(hint, at, path)

    def bounded(self, hint: Any, at: Located, path: str) -> Any:
        before = len(self.errors)
        out = self.value(typing.get_args(hint)[0], at, path)
        for bound in hint.__metadata__ if len(self.errors) == before else ():
            if isinstance(bound, Bound | FolderName) and not bound.admits(out):
                return self.fail(at, path, f"is {shown(out)}; it must {bound}.")
        return out

    def scalar(self, hint: Any, at: Located, path: str) -> Any:
        v = at.value
        number = isinstance(v, int | float) and not isinstance(v, bool)
        if number and hint in (float, int) and not abs(v) < (LARGEST if isinstance(v, int) else math.inf):
            return self.fail(at, path, f"is {shown(v)}; it must be finite and below 2^63.")
        if hint is float and number:
            return float(v)
        if hint is int and number and isinstance(v, int):
            return v
        if hint in (bool, str) and isinstance(v, hint):
            return v
        if hint is types.NoneType and v is None:
            return None
        if typing.get_origin(hint) is Callable and callable(v):
            return v
        if isinstance(v, float) and hint is int and v == int(v):
            return self.fail(at, path, f"found {v}, expected a whole number: write it without point and exponent.")
        return self.unlike(hint, at, path)

    def anything(self, at: Located, path: str) -> Any:
        """What goes to another library as it is; its numbers are finite all the same."""
        if isinstance(at.value, dict):
            return {k: self.anything(v, f"{path}.{k}") for k, v in at.value.items()}
        if isinstance(at.value, list):
            return [self.anything(v, f"{path}.{i}") for i, v in enumerate(at.value)]
        if isinstance(at.value, int | float) and not isinstance(at.value, bool):
            return self.scalar(type(at.value), at, path)
        return at.value

    def union(self, hint: Any, at: Located, path: str) -> Any:
        """The first arm that takes the value; where none does, the error of the only arm that a value of this kind could be meant for."""
        if at.value is None and types.NoneType in typing.get_args(hint):
            return None
        arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
        trials = []
        for arm in arms:
            trial = _Builder(self.base)
            out = trial.value(arm, at, path)
            if not trial.errors:
                return out
            trials.append(trial)
        meant = [trial for arm, trial in zip(arms, trials, strict=True) if _meant(arm, at.value)]
        if len(meant) == 1:
            self.errors += meant[0].errors
            return None
        return self.unlike(hint, at, path)

    def sequence(self, hint: Any, at: Located, path: str) -> Any:
        kind, arguments = typing.get_origin(hint), typing.get_args(hint)
        if not isinstance(at.value, list):
            return self.unlike(hint, at, path)
        if kind is tuple and arguments[-1] is not Ellipsis:
            if len(at.value) != len(arguments):
                return self.fail(at, path, f"found {len(at.value)} entries, expected {len(arguments)}.")
            return tuple(
                self.value(h, v, f"{path}.{i}") for i, (h, v) in enumerate(zip(arguments, at.value, strict=True))
            )
        return kind(self.value(arguments[0], v, f"{path}.{i}") for i, v in enumerate(at.value))

    def mapping(self, hint: Any, at: Located, path: str) -> Any:
        if not isinstance(at.value, dict):
            return self.unlike(hint, at, path)
        _, kind = typing.get_args(hint) or (str, Any)
        return {k: self.value(kind, v, f"{path}.{k}") for k, v in at.value.items()}

    def component(self, namespace: str, at: Located, path: str) -> Any:
        v = at.value
        if isinstance(v, str):  # GroupNorm means {type: GroupNorm}
            at = Located({"type": Located(v, at.origin)}, at.origin)
        elif not isinstance(v, dict) or "type" not in v:
            return self.fail(at, path, f"found {shown(at.plain())}, expected {_one_of(namespace)}.")
        fields = dict(at.value)
        name = fields.pop("type")
        if not isinstance(name.value, str):
            return self.unlike(str, name, f"{path}.type")
        try:
            cls = find(name.value, namespace, self.base)
        except InputError as error:
            return self.fail(name, f"{path}.type", str(error))
        return self.section(cls, Located(fields, at.origin), path)

    def section(self, cls: Any, at: Located, path: str) -> Any:
        if isinstance(at.value, str) and cls.__name__ in SHORTHAND:
            at = Located({SHORTHAND[cls.__name__]: at}, at.origin)
        if at.value is None:
            at = Located({}, at.origin)
        if not isinstance(at.value, dict):
            return self.fail(at, path, f"found {shown(at.plain())}, expected a mapping with keys of {cls.__name__}.")
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception as error:  # names of the user's annotations that only a type checker sees
            return self.fail(at, path, f"the annotations of {cls.__name__} cannot be read: {error}.")
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        before = len(self.errors)
        values = {}
        for key, v in at.value.items():
            where = f"{path}.{key}" if path else key or "''"
            if key not in fields:
                near = difflib.get_close_matches(key[:100], list(fields), 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                self.fail(v, where, f"unknown key.{hint} Keys here: {', '.join(fields) or 'none'}.")
                continue
            values[key] = self.value(hints[key], v, where)
        for f in fields.values():
            if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                where = f"{path}.{f.name}" if path else f.name
                if f.name not in at.value:
                    self.fail(at, where, "is missing, and it has no default.")
        if len(self.errors) > before:
            return None
        try:
            return cls(**values)
        except InputError as error:
            return self.fail(at, path or cls.__name__, str(error))
        except ValueError as error:  # of the user's own __post_init__: perhaps a check, perhaps a mistake in it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return self.fail(at, path, f"{error} (ValueError, raised at {frame.filename}:{frame.lineno})")


def _namespace(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__name__ in NAMESPACES


def _one_of(namespace: str) -> str:
    names = f"one of {', '.join(sorted(known(namespace)))}, or " if known(namespace) else ""
    return f"a mapping with `type`, {names}your own as my_file.py:MyClass"


def expected(hint: Any) -> str:
    """What a value of this annotation is called in a message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return expected(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(arm) for arm in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if _namespace(hint):
        return _one_of(hint.__name__)
    if origin in (tuple, list):
        return "a list"
    if origin is Callable:
        return "a function"
    return WORDS.get(hint, "a mapping")


def _meant(hint: Any, v: Any) -> bool:
    """Whether a value of this kind (mapping, list, text, number) can be meant for the annotation, though it is wrong for it."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _meant(typing.get_args(hint)[0], v)
    if isinstance(v, dict):
        return hint is dict or origin is dict or dataclasses.is_dataclass(hint) or (_namespace(hint) and "type" in v)
    if isinstance(v, list):
        return origin in (tuple, list)
    if isinstance(v, str):
        return hint is str or (
            _namespace(hint) and (":" in v or bool(difflib.get_close_matches(v[:100], known(hint.__name__), 1, 0.5)))
        )
    return hint in (int, float) and isinstance(v, int | float) and not isinstance(v, bool)


def known(namespace: str) -> dict[str, type]:
    """The library's component classes of a namespace by name."""
    out = {}
    for module_name in NAMESPACES[namespace]:
        module = importlib.import_module(module_name)
        for name, cls in vars(module).items():
            if (
                inspect.isclass(cls)
                and dataclasses.is_dataclass(cls)
                and cls.__module__ == module_name
                and not name.startswith("_")
            ):
                out[name] = cls
    fits = FITS.get(namespace, lambda cls: True)
    return {name: cls for name, cls in out.items() if fits(cls)}


def _parameters(cls: type) -> list[str]:
    """Names of the parameters of ``__call__``."""
    call = vars(cls).get("__call__")
    return [] if call is None else list(inspect.signature(call).parameters)[1:]


def find(name: str, namespace: str, base: Path) -> type:
    """A component class by name, or ``file.py:Class`` / ``module:Class`` of the user's own.

    Raises:
        ValueError: nothing of that name, with the closest ones.
    """
    if ":" in name:
        place, _, attribute = name.rpartition(":")
        if not place or not attribute:
            raise ConfigError(f"{shown(name)} is not of the form my_file.py:MyClass or package.module:MyClass.")
        cls = getattr(load_module(place, base), attribute, None)
        if not inspect.isclass(cls) or not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"{place} has no dataclass {shown(attribute)}. A component is a class with @dataclass(frozen=True)."
            )
        there = {*dir(cls), *(f.name for f in dataclasses.fields(cls))}
        missing = [member for member in PROMISES[namespace] if member not in there]
        if missing:
            raise ConfigError(f"{name} is no {namespace}: it has no {' and no '.join(map(repr, missing))}.")
        return cls
    classes = known(namespace)
    if name in classes:
        return classes[name]
    near = difflib.get_close_matches(name[:100], list(classes), 1, cutoff=0.5)
    raise ConfigError(
        f"there is no {shown(name)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" There are {', '.join(sorted(classes))}, or your own as my_file.py:MyClass."
    )


def load_module(place: str, base: Path) -> Any:
    """A module by name, or a file by path (relative to the config); what a file defines travels to Ray workers by value.

    Raises:
        ConfigError: no such file or module, or it fails to import.
    """
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise ConfigError(f"importing {place} failed: {type(error).__name__}: {error}.") from error
    path = locate(place, base)
    if not path.is_file():
        raise ConfigError(f"there is no file {place} (looked in {base.resolve()} and in the current folder).")
    module = load_user_file(path)
    try:
        import cloudpickle
        import ray.cloudpickle
    except ImportError:  # without Ray nothing travels
        return module
    by_value(module, cloudpickle)
    by_value(module, ray.cloudpickle)
    return module


def build(cls: Any, tree: Located, base: Path | None = None) -> Any:
    """An instance of the dataclass ``cls``.

    Raises:
        ConfigError: all problems of the tree.
    """
    builder = _Builder(base or Path("."))
    out = builder.value(cls, tree, "")
    if builder.errors:
        raise ConfigError("\n".join(builder.errors))
    return out


def load(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Any:
    """The :class:`rlkit.run.Run` of a YAML file, or of the same keys as a mapping.

    ``overrides`` are like ``["steps=200", "learner.lr=1e-5"]``.

    Raises:
        ConfigError: every mistake found, one a line, each with its place.
    """
    return load_with_origins(source, overrides)[0]


def load_with_origins(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Any, Located]:
    from rlkit.run import Run

    if isinstance(source, Mapping):
        tree, base = located(source), Path(".")
    else:
        tree, base = read(source), Path(source).parent
    for text in overrides:
        override(tree, text)
    remembered = tree.value.get("base")  # the resolved configuration of a run folder remembers where it came from
    if remembered is not None and isinstance(remembered.value, str):
        base = Path(remembered.value)
    return dataclasses.replace(build(Run, tree, base), base=str(base.resolve())), tree


def locate(place: str, base: str | Path | None) -> Path:
    """A path of a configuration: relative to the folder of the configuration, or else to the current one."""
    beside = Path(base or ".") / place
    return (
        beside if os.path.exists(beside) else Path(place)
    )  # unlike a Path's own method, false for a name that is too long


# -- writing ----------------------------------------------------------------------------------------------------------


def plain(x: Any) -> Any:
    """Dataclasses as mappings that :func:`build` reads back to the same object."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        out: dict[str, Any] = {}
        module = type(x).__module__
        if any(module in names for names in NAMESPACES.values()):
            out["type"] = type(x).__name__
        elif not module.startswith("rlkit."):
            file = user_file(module) or getattr(sys.modules[module], "__file__", None) or module
            out["type"] = f"{file}:{type(x).__name__}"
        for f in dataclasses.fields(x):
            if f.init:
                out[f.name] = plain(getattr(x, f.name))
        return out
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return [plain(v) for v in x]
    if isinstance(x, float) and math.isfinite(x) and x == int(x) and abs(x) < 1e15:
        return float(x)
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if callable(x):
        module = getattr(x, "__module__", "?")
        return f"{user_file(module) or module}:{getattr(x, '__qualname__', type(x).__name__)}"
    return str(x)


class _Dumper(yaml.SafeDumper):
    """Keys like ``on`` without quotes: they are words to :class:`_Loader`."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def to_yaml(x: Any) -> str:
    return str(yaml.dump(plain(x), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def describe(run: Any, origins: Located) -> str:
    """The resolved configuration, one value a line, with where each came from."""
    given = {path: leaf.origin for path, leaf in origins.leaves()}
    rows = [(path, leaf.value) for path, leaf in _located(plain(run)).leaves() if path != "base"]
    width = max(len(p) for p, _ in rows)
    shown = [(p, "" if v is None else repr(v) if isinstance(v, str) and not v else str(v)) for p, v in rows]
    value_width = min(40, max(len(v) for _, v in shown))

    def origin(path: str) -> str:
        while path:
            if path in given:
                return given[path]
            path = path.rpartition(".")[0]
        return "default"

    return "\n".join(f"{p:<{width}}  {v or 'null':<{value_width}}  {origin(p)}" for p, v in shown)


def _located(x: Any, origin: str = "") -> Located:
    if isinstance(x, dict):
        return Located({k: _located(v, origin) for k, v in x.items()}, origin)
    if isinstance(x, list):
        return Located([_located(v, origin) for v in x], origin)
    return Located(x, origin)


def located(x: Any, path: str = "", depth: int = 0) -> Located:
    """What Python code gives, as if it stood in a file: tuples are lists, and keys and texts are those that a file can hold."""
    if depth > DEEPEST:
        raise ConfigError(f"mapping: {path[:100]}: {_too_much(True)}. Does it hold itself?")
    if isinstance(x, Mapping):
        strange = next((k for k in x if not isinstance(k, str | int | float)), None)
        if strange is not None:
            raise ConfigError(f"mapping: {path or 'the keys'}: a key must be a word; found {shown(strange)}.")
        return Located(
            {str(k): located(v, f"{path}.{k}" if path else str(k), depth + 1) for k, v in x.items()}, "mapping"
        )
    if isinstance(x, list | tuple):
        return Located([located(v, f"{path}.{i}", depth + 1) for i, v in enumerate(x)], "mapping")
    problem = _unwritable(x) if isinstance(x, str) else None
    if problem:
        raise ConfigError(f"mapping: {path}: {problem}.")
    return Located(x, "mapping")
