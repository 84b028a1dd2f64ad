"""What is read of another library's configuration, and what is made of it."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import ConfigError
from rlkit.reading import located, override, printable, read, shown

MISSING = object()
OPENRLHF = "openrlhf.cli."  # what a script calls whose words are OpenRLHF's options


@dataclass(frozen=True)
class LeftOut:
    """A setting that has no counterpart here, and why."""

    key: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.value)}: {self.why}"


@dataclass(frozen=True)
class Converted:
    """A configuration of rlkit; ``str`` is its file.

    Attributes:
        settings: keys and values. notes: what means something else here. left_out: what was not carried over.
    """

    settings: Mapping[str, Any]
    source: str
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        """YAML, with what differs and what is missing as comments."""
        lines = [f"# From a configuration of {self.source}, by rlkit convert."]
        lines += [f"# Note: {printable(note, 1000)}" for note in self.notes]
        lines += [f"# Not carried over: {printable(str(x), 1000)}" for x in self.left_out]
        body = yaml.safe_dump(
            dict(self.settings), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
        )
        return "\n".join([*lines, body])


class Given:
    """Settings of another library by their dotted names. What nobody reads is left out in the end."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self._read = dict(values), set[str]()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or what the library takes in its place; a null is such a place, too."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """The same of what must be a number.

        Raises:
            ConfigError: it is none.
        """
        value = self.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{key}: found {shown(value)}, expected a number.")
        return value

    def choice(self, key: str, options: Mapping[str, Any], default: str) -> Any:
        """What stands for a word.

        Raises:
            ConfigError: a word that has no counterpart.
        """
        value = str(self.get(key, default))
        if value not in options:
            raise ConfigError(f"{key}: {shown(value)} has no counterpart in rlkit; there are {', '.join(options)}.")
        return options[value]

    def unread(self) -> dict[str, Any]:
        return {key: value for key, value in self.values.items() if key not in self._read}


@dataclass
class Draft:
    """A configuration in the making."""

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: list[LeftOut] = field(default_factory=list)

    def set(self, path: str, value: Any) -> None:
        """Puts a value at a dotted path; None is not written."""
        if value is None:
            return
        here, (*parents, last) = self.settings, path.split(".")
        for key in parents:
            here = here.setdefault(key, {})
        here[last] = value

    def note(self, text: str) -> None:
        self.notes.append(text)

    def leave(self, given: Given, key: str, why: str) -> None:
        """A key that was given and cannot be carried over; nothing if it was not given."""
        if given.get(key, MISSING) is not MISSING:
            self.left.append(LeftOut(key, given.get(key), why))

    def done(self, source: str, given: Given, reasons: Mapping[str, str]) -> Converted:
        """``reasons`` by pattern for keys that nobody read; an empty one is a matter of that library alone and is not named.

        Nor are keys without a value, or with one that says no: the arguments of a Python object have hundreds of them.
        """
        for key, value in given.unread().items():
            if value is None or value is False or value in ("", [], {}):
                continue
            why = next((why for pattern, why in reasons.items() if fnmatch.fnmatchcase(key, pattern)), None)
            if why != "":
                self.left.append(LeftOut(key, value, why or "rlkit convert does not know this key"))
        return Converted(self.settings, source, tuple(self.notes), tuple(self.left))


def quotient(a: float, b: float, what: str) -> int:
    """``a / b``, which must be a whole number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    if b <= 0 or a % b or a < b:
        raise ConfigError(f"{what}: {a:g} is not a multiple of {b:g}.")
    return int(a // b)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names. A mapping is walked into, a list is a value."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        out |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return out


def from_file(path: Path) -> dict[str, Any]:
    """The values of a YAML file, or of the words of a shell script: its options where it calls OpenRLHF, else ``key=value``, nested."""
    if path.suffix in (".yaml", ".yml"):
        found: dict[str, Any] = read(path).plain()
        return found
    words = words_of(path)
    return from_options(words) if any(OPENRLHF in word for word in words) else from_words(words)


def words_of(path: Path) -> list[str]:
    """The words of a shell script.

    Raises:
        ConfigError: it is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    try:
        return shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ConfigError(f"{path}: is neither YAML (.yaml) nor a shell script: {error}.") from None


def from_options(words: Iterable[str]) -> dict[str, Any]:
    """The options among these words: ``--name value`` or ``--name=value``, ``--name a b`` (a list), ``--name`` (true).

    ``$HOME`` is filled in.
    """
    found, name = dict[str, list[Any]](), ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [_plain(value)] if equals else []
        elif name:
            found[name].append(_plain(word))
    return {key: x[0] if len(x) == 1 else x or True for key, x in found.items() if key}


def _plain(word: str) -> Any:
    """A word as YAML reads it."""
    tree = located({})
    override(tree, f"x={os.path.expandvars(word)}")
    return tree.plain()["x"]


def from_words(words: Iterable[str]) -> dict[str, Any]:
    """The ``section.key=value`` among these words, as Hydra has them (``+`` adds a key); others are left alone. ``$HOME`` is filled in."""
    tree = located({})
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and "." in key and all(part.isidentifier() for part in key.split(".")):
            override(tree, f"{key}={os.path.expandvars(value)}")
    found: dict[str, Any] = tree.plain()
    return found
