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
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from rlkit.bounds import Bound, Bounded, FolderName
from rlkit.errors import ConfigError, InputError
from rlkit.place import Beside, beside, by_value, load_user_file, user_file
from rlkit.plug import Plug, is_kind, kind_of
from rlkit.reading import LARGEST, PYTHON, Loader, Located, located, printable, shown
from rlkit.values import OnlyPython, an_object, required, unknown_key
from rlkit.values import expected as words

# -- building ---------------------------------------------------------------------------------------------------------


class _Builder:
    def __init__(self, base: Path) -> None:
        self.base, self.errors = base, list[str]()

    def fail(self, at: Located, path: str, message: str) -> Any:
        place = f"{at.origin}: {printable(path)}" if path else at.origin
        self.errors.append(f"{place}: {printable(message, 1200)}")
        return None

    def unlike(self, hint: Any, at: Located, path: str) -> Any:
        return self.fail(at, path, f"found {shown(at.plain())}, expected {expected(hint)}.")

    def value(self, hint: Any, at: Located, path: str) -> Any:
        v, origin = at.value, typing.get_origin(hint)
        if inspect.isclass(hint) and dataclasses.is_dataclass(v) and isinstance(v, hint):
            return v  # a mapping of Python's may hold the part itself
        if inspect.isclass(hint) and issubclass(hint, OnlyPython):
            return self.given(hint, at, path)
        if origin is Annotated:
            return self.annotated(hint, at, path)
        if origin in (Union, types.UnionType):
            return self.union(hint, at, path)
        if origin is Literal:
            fits = any(v == option and type(v) is type(option) for option in typing.get_args(hint))
            return v if fits else self.unlike(hint, at, path)
        if hint is Any:
            return self.anything(at, path)
        if is_kind(hint):
            return self.component(hint, at, path)
        if dataclasses.is_dataclass(hint):
            return self.section(hint, at, path)
        if origin in (tuple, list):
            return self.sequence(hint, at, path)
        if hint is dict or origin is dict:
            return self.mapping(hint, at, path)
        return self.scalar(hint, at, path)

    def annotated(self, hint: Any, at: Located, path: str) -> Any:
        before = len(self.errors)
        out = self.value(typing.get_args(hint)[0], at, path)
        for note in hint.__metadata__ if len(self.errors) == before else ():
            if isinstance(note, Bound | FolderName) and not note.admits(out):
                return self.fail(at, path, f"is {shown(out)}; it must {note}.")
            if isinstance(note, Beside):
                out = note.resolve(out, self.folders(at))
        return out

    def folders(self, at: Located) -> tuple[Path, ...]:
        """Where a path is looked for: beside the file that is loaded, then beside the extended one in which it stands."""
        return (self.base,) if at.folder is None else (self.base, at.folder)

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

    def given(self, kind: type[OnlyPython], at: Located, path: str) -> Any:
        """What only a mapping of Python's can hold."""
        if at.origin != PYTHON or at.value is None or isinstance(at.value, str | int | float):
            return self.unlike(kind, at, path)
        try:
            return kind.of(at.plain(), path)
        except InputError as error:
            return self.fail(at, path, str(error))

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

    def component(self, kind: type[Plug], at: Located, path: str) -> Any:
        v = at.value
        if isinstance(v, str):  # GroupNorm means {type: GroupNorm}
            at = Located({"type": at}, at.origin)
        elif not isinstance(v, dict) or "type" not in v:
            return self.fail(at, path, f"found {shown(at.plain())}, expected {_one_of(kind)}.")
        fields = dict(at.value)
        name = fields.pop("type")
        if not isinstance(name.value, str):
            return self.unlike(str, name, f"{path}.type".lstrip("."))
        try:
            cls = find(name.value, kind, self.folders(name))
        except InputError as error:
            return self.fail(name, f"{path}.type".lstrip("."), str(error))
        return self.section(cls, Located(fields, at.origin), path)

    def section(self, cls: Any, at: Located, path: str) -> Any:
        shorthand = cls.shorthand if issubclass(cls, Bounded) else None
        if shorthand is not None:
            at = _written_out(cls, shorthand, at)
        if at.value is None:
            at = Located({}, at.origin)
        if not isinstance(at.value, dict):
            return self.fail(at, path, f"found {shown(at.plain())}, expected a mapping with keys of {cls.__name__}.")
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception as error:  # names of the user's annotations that only a type checker sees
            return self.fail(at, path, f"the annotations of {cls.__name__} cannot be read: {error}.")
        fields = [f.name for f in dataclasses.fields(cls) if f.init]
        sets = [key for key, v in at.value.items() if hasattr(type(v.value), "column_names")]
        if any(key not in fields for key in sets):  # a `DatasetDict` in the place of a section
            given = f"{', '.join(sets)}); give each by name, as in {{{shorthand or 'KEY'}: sets[{sets[0]!r}]}}."
            return self.fail(at, path, f"found several data sets ({given}")
        before = len(self.errors)
        values = {}
        for key, v in at.value.items():
            where = f"{path}.{key}" if path else key or "''"
            if key not in fields:
                self.fail(v, where, unknown_key(key, fields))
                continue
            values[key] = self.value(hints[key], v, where)
        for name in required(cls):
            if name not in at.value:
                self.fail(at, f"{path}.{name}" if path else name, "is missing, and it has no default.")
        if len(self.errors) > before:
            return None
        try:
            return cls(**values)
        except InputError as error:
            return self.fail(at, path or cls.__name__, str(error))
        except ValueError as error:  # of the user's own __post_init__: perhaps a check, perhaps a mistake in it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return self.fail(at, path, f"{error} (ValueError, raised at {frame.filename}:{frame.lineno})")


def _written_out(cls: Any, key: str, at: Located) -> Located:
    """A section of which only ``key`` was given, as a text, a list, a function, or rows of Python's, or whose keys stand beside those of a
    part: with ``key`` in it.
    """
    if at.value is not None and not isinstance(at.value, dict | bool | int | float):
        return Located({key: at}, at.origin)
    if not isinstance(at.value, dict) or "type" not in at.value or key in at.value:
        return at
    own = {f.name for f in dataclasses.fields(cls) if f.init}
    part = {name: v for name, v in at.value.items() if name not in own}
    return Located({key: Located(part, at.origin), **{n: v for n, v in at.value.items() if n in own}}, at.origin)


def _one_of(kind: type[Plug]) -> str:
    names = f"one of {', '.join(sorted(known(kind)))}, or " if known(kind) else ""
    return f"a mapping with `type`, {names}your own as my_file.py:MyClass"


def expected(hint: Any) -> str:
    """What a value of this annotation is called in a message about a file."""
    return words(hint, lambda cls: _one_of(cls) if is_kind(cls) else "a mapping")


def _meant(hint: Any, v: Any) -> bool:
    """Whether a value of this kind (mapping, list, text, number) can be meant for the annotation, though it is wrong for it."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _meant(typing.get_args(hint)[0], v)
    if isinstance(v, dict):
        return hint is dict or origin is dict or ("type" in v if is_kind(hint) else dataclasses.is_dataclass(hint))
    if isinstance(v, list):
        return origin in (tuple, list)
    if isinstance(v, str):
        return hint is str or (
            is_kind(hint) and (":" in v or bool(difflib.get_close_matches(v[:100], known(hint), 1, 0.5)))
        )
    return hint in (int, float) and isinstance(v, int | float) and not isinstance(v, bool)


def known(kind: type[Plug]) -> dict[str, type]:
    """The library's classes of a kind by name."""
    return {
        name: cls
        for home in kind.homes
        for name, cls in vars(importlib.import_module(home)).items()
        if inspect.isclass(cls)
        and issubclass(cls, kind)
        and cls is not kind
        and cls.__module__ == home
        and not name.startswith("_")
        and not inspect.isabstract(cls)
    }


def find(name: str, kind: type[Plug], folders: Sequence[Path] = (Path("."),)) -> type:
    """A class of a kind by name, or ``file.py:Class`` / ``module:Class`` of the user's own.

    Raises:
        ConfigError: nothing of that name, with the closest ones; or it is not of that kind, with what it is.
    """
    if ":" in name:
        return _own(name, kind, folders)
    classes = known(kind)
    if name in classes:
        return classes[name]
    other = next((k for k in Plug.__subclasses__() if name in known(k)), None)
    near = difflib.get_close_matches(name[:100], list(classes), 1, cutoff=0.5)
    raise ConfigError(
        (
            f"there is no {shown(name)}."
            if other is None
            else f"{name} is {an_object(other)}; here stands {an_object(kind)}."
        )
        + (f" Did you mean {near[0]!r}?" if near and other is None else "")
        + f" There are {', '.join(sorted(classes))}, or your own as my_file.py:MyClass."
    )


def is_own(name: str) -> bool:
    """Whether a text has the form of a class of the user's own, ``my_file.py:MyClass`` or ``package.module:MyClass``."""
    place, _, attribute = name.rpartition(":")
    return bool(attribute) and (place.endswith(".py") or all(part.isidentifier() for part in place.split(".")))


def _own(name: str, kind: type[Plug], folders: Sequence[Path]) -> type:
    place, _, attribute = name.rpartition(":")
    if not is_own(name):
        raise ConfigError(f"{shown(name)} is not of the form my_file.py:MyClass or package.module:MyClass.")
    there = vars(load_module(place, folders))
    cls = there.get(attribute)
    if not inspect.isclass(cls):
        mine = [n for n, c in there.items() if inspect.isclass(c) and issubclass(c, kind) and not inspect.isabstract(c)]
        near = difflib.get_close_matches(attribute[:100], mine, 1)
        raise ConfigError(
            f"{place} has no class {shown(attribute)}."
            + (f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(mine)}." if mine else "")
        )
    if not issubclass(cls, kind):
        other = kind_of(cls)
        raise ConfigError(
            f"{name} is no {kind.__name__}: make it a subclass (from rlkit import {kind.__name__}; class {attribute}({kind.__name__}))."
            if other is None
            else f"{name} is {an_object(other)}; here stands {an_object(kind)}."
        )
    if inspect.isabstract(cls):
        raise ConfigError(
            f"{name} does not define {', '.join(sorted(cls.__abstractmethods__))}, which {an_object(kind)} must."
        )
    if "__dataclass_fields__" not in vars(cls) and inspect.get_annotations(cls):
        raise ConfigError(f"{name} has fields but is no dataclass: write @dataclass(frozen=True) above the class.")
    return cls


def load_module(place: str, folders: Sequence[Path] = (Path("."),)) -> Any:
    """A module by name, or a file by path in one of the folders; what a file defines travels to Ray workers by value.

    Raises:
        ConfigError: no such file or module, or it fails to import.
    """
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise ConfigError(f"importing {place} failed: {type(error).__name__}: {error}.") from error
    path = Path(beside(place, folders))
    if not path.is_file():
        looked = dict.fromkeys(str(folder.resolve()) for folder in folders)
        raise ConfigError(f"there is no file {place} (looked in {', '.join(looked)} and in the current folder).")
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


# -- writing ----------------------------------------------------------------------------------------------------------


def plain(x: Any) -> Any:
    """Dataclasses as mappings that :func:`build` reads back to the same object."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        out: dict[str, Any] = {}
        if isinstance(x, Plug):
            out["type"] = type(x).__name__ if type(x).__module__ in x.homes else f"{_home(x)}:{type(x).__name__}"
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


def _home(x: Any) -> str:
    """The file, or else the module, that a user's class or function is of."""
    module = x.__module__
    return str(user_file(module) or vars(sys.modules[module]).get("__file__") or module)


class _Dumper(yaml.SafeDumper):
    """Keys like ``on`` without quotes: they are words to :class:`Loader`."""


_Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def to_yaml(x: Any) -> str:
    return str(yaml.dump(plain(x), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def describe(run: Any, origins: Located) -> str:
    """The resolved configuration, one value a line, with where each came from."""
    given = {path: leaf.origin for path, leaf in origins.leaves()}
    rows = [(path, leaf.value) for path, leaf in located(plain(run)).leaves()]
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
