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
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from rlkit.errors import ConfigError
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
    "Any": ("rlkit.objective.coefficients",),
}
FITS: dict[str, Callable[[type], bool]] = {  # which classes of a module that serves several annotations
    "Task": lambda cls: hasattr(cls, "demonstration"),
    "Sampler": lambda cls: hasattr(cls, "build"),
    "DropRule": lambda cls: _parameters(cls) == ["group"],
    "AdmitRule": lambda cls: _parameters(cls) == ["prompt", "ask"],
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


class _Loader(yaml.SafeLoader):
    """YAML 1.2: ``1e-4`` is a number, ``on`` and ``no`` are words; only ``true`` and ``false`` are booleans."""


_Loader.yaml_implicit_resolvers = {
    k: [(tag, pattern) for tag, pattern in v if tag != "tag:yaml.org,2002:bool"]
    for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _convert(node: yaml.Node, loader: _Loader, file: str) -> Located:
    origin = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Located] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            if key in out:
                raise ConfigError(
                    f"{file}:{key_node.start_mark.line + 1}: {key}: the key stands here a second time (first at "
                    f"{out[key].origin}). Remove one of them."
                )
            out[key] = _convert(value_node, loader, file)
        return Located(out, origin)
    if isinstance(node, yaml.SequenceNode):
        return Located([_convert(v, loader, file) for v in node.value], origin)
    return Located(loader.construct_object(node, deep=True), origin)


def read(path: str | Path, _chain: tuple[Path, ...] = ()) -> Located:
    """A file with everything that it extends.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or a cycle of ``extends``.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path(".")
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], 1)
        raise ConfigError(f"{path}: there is no such file." + (f" Did you mean {folder / near[0]}?" if near else ""))
    if path.resolve() in _chain:
        raise ConfigError(f"{path}: extends itself: {' -> '.join(p.name for p in (*_chain, path))}.")
    loader = _Loader(path.read_text())
    try:
        node = loader.get_single_node()
        tree = None if node is None else _convert(node, loader, str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    if tree is None or not isinstance(tree.value, dict):
        found = "nothing" if tree is None else f"a {type(tree.value).__name__}"
        raise ConfigError(f"{path}: the file holds {found}; it must be a mapping of keys to values.")
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    return merge(read(path.parent / str(extends.value), (*_chain, path.resolve())), tree)


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
        raise ConfigError(f"command line: {text!r} is not of the form key=value, e.g. learner.lr=1e-5.")
    loader = _Loader(raw)
    node = loader.get_single_node()
    value = Located(None, "command line") if node is None else _convert(node, loader, "command line")
    for _, leaf in value.leaves():
        leaf.origin = "command line"
    here = tree
    keys = path.split(".")
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(here.value, list):
            if not key.isdigit() or int(key) >= len(here.value):
                raise ConfigError(
                    f"command line: {path}: {'.'.join(keys[:i])} is a list of {len(here.value)}; {key!r} is no "
                    "index into it."
                )
            if last:
                here.value[int(key)] = value
            here = here.value[int(key)]
        else:
            if here.value is None:
                here.value = {}
            if not isinstance(here.value, dict):
                raise ConfigError(f"command line: {path}: {'.'.join(keys[:i])} is {here.value!r} and has no keys.")
            if last:
                here.value[key] = value
            here = here.value.setdefault(key, Located({}, "command line"))


# -- building ---------------------------------------------------------------------------------------------------------


class _Builder:
    def __init__(self, base: Path) -> None:
        self.base, self.errors = base, list[str]()

    def fail(self, at: Located, path: str, message: str) -> Any:
        self.errors.append(f"{at.origin}: {path}: {message}")
        return None

    def value(self, hint: Any, at: Located, path: str) -> Any:
        v, origin = at.value, typing.get_origin(hint)
        name = getattr(hint, "__name__", str(hint))
        if origin in (Union, types.UnionType):
            return self.union(hint, at, path)
        if origin is Literal:
            options = typing.get_args(hint)
            return (
                v
                if v in options
                else self.fail(at, path, f"found {v!r}, expected one of {', '.join(map(repr, options))}.")
            )
        if hint is Any and isinstance(v, dict) and "type" in v:
            return self.component("Any", at, path)
        if hint is Any:
            return at.plain()
        if name in NAMESPACES and not isinstance(hint, str):
            return self.component(name, at, path)
        if dataclasses.is_dataclass(hint):
            return self.section(hint, at, path)
        if origin in (tuple, list):
            return self.sequence(hint, at, path)
        if hint is dict or origin is dict:
            return at.plain() if isinstance(v, dict) else self.fail(at, path, f"found {v!r}, expected a mapping.")
        return self.scalar(hint, at, path)

    def scalar(self, hint: Any, at: Located, path: str) -> Any:
        v = at.value
        if hint is float and isinstance(v, int | float) and not isinstance(v, bool):
            return float(v)
        if hint is int and isinstance(v, int) and not isinstance(v, bool):
            return v
        if hint in (bool, str) and isinstance(v, hint):
            return v
        if hint is types.NoneType and v is None:
            return None
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", types.NoneType: "null"}
        return self.fail(at, path, f"found {at.plain()!r}, expected {words.get(hint, str(hint))}.")

    def union(self, hint: Any, at: Located, path: str) -> Any:
        arms = typing.get_args(hint)
        if at.value is None and types.NoneType in arms:
            return None
        arms = tuple(a for a in arms if a is not types.NoneType)
        for arm in arms[:-1]:
            trial = _Builder(self.base)
            out = trial.value(arm, at, path)
            if not trial.errors:
                return out
        return self.value(arms[-1], at, path)

    def sequence(self, hint: Any, at: Located, path: str) -> Any:
        kind, arguments = typing.get_origin(hint), typing.get_args(hint)
        if not isinstance(at.value, list):
            return self.fail(at, path, f"found {at.plain()!r}, expected a list.")
        if kind is tuple and arguments[-1] is not Ellipsis:
            if len(at.value) != len(arguments):
                return self.fail(at, path, f"found {len(at.value)} entries, expected {len(arguments)}.")
            return tuple(
                self.value(h, v, f"{path}.{i}") for i, (h, v) in enumerate(zip(arguments, at.value, strict=True))
            )
        return kind(self.value(arguments[0], v, f"{path}.{i}") for i, v in enumerate(at.value))

    def component(self, namespace: str, at: Located, path: str) -> Any:
        v = at.value
        if isinstance(v, str):  # GroupNorm means {type: GroupNorm}
            at = Located({"type": Located(v, at.origin)}, at.origin)
        elif not isinstance(v, dict) or "type" not in v:
            return self.fail(
                at,
                path,
                f"found {at.plain()!r}, expected a mapping with `type`, one of {', '.join(sorted(known(namespace)))}.",
            )
        fields = dict(at.value)
        name = fields.pop("type")
        try:
            cls = find(str(name.value), namespace, self.base)
        except ValueError as error:
            return self.fail(name, f"{path}.type", str(error))
        return self.section(cls, Located(fields, at.origin), path)

    def section(self, cls: Any, at: Located, path: str) -> Any:
        if isinstance(at.value, str) and cls.__name__ in SHORTHAND:
            at = Located({SHORTHAND[cls.__name__]: at}, at.origin)
        if at.value is None:
            at = Located({}, at.origin)
        if not isinstance(at.value, dict):
            return self.fail(at, path, f"found {at.value!r}, expected a mapping with keys of {cls.__name__}.")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        before = len(self.errors)
        values = {}
        for key, v in at.value.items():
            where = f"{path}.{key}" if path else key
            if key not in fields:
                near = difflib.get_close_matches(key, list(fields), 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                self.fail(v, where, f"unknown key.{hint} Keys here: {', '.join(fields)}.")
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
        except ValueError as error:
            return self.fail(at, path or cls.__name__, str(error))


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
        cls = getattr(load_module(place, base), attribute, None)
        if not inspect.isclass(cls) or not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"{place} has no dataclass {attribute!r}. A component is a class with @dataclass(frozen=True)."
            )
        return cls
    classes = known(namespace)
    if name in classes:
        return classes[name]
    near = difflib.get_close_matches(name, list(classes), 1, cutoff=0.5)
    raise ConfigError(
        f"there is no {name!r}."
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
        tree, base = _located(dict(source), "mapping"), Path(".")
    else:
        tree, base = read(source), Path(source).parent
    for text in overrides:
        override(tree, text)
    if "base" in tree.value:  # the resolved configuration of a run folder remembers where it came from
        base = Path(str(tree.value["base"].value))
    return dataclasses.replace(build(Run, tree, base), base=str(base.resolve())), tree


def locate(place: str, base: str | Path | None) -> Path:
    """A path of a configuration: relative to the folder of the configuration, or else to the current one."""
    beside = Path(base or ".") / place
    return beside if beside.exists() else Path(place)


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
