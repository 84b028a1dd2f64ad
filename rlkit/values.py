"""What Python gives for the fields of a dataclass, held against their annotations as the values of a file are.

::

    rk.Run(model=rk.Model(path="m"), data=rk.Data(train="rows.jsonl"), rewards=[my_reward], objective=[rk.PPOClip()])

A list becomes a tuple, a whole number a float, a path a text, a mapping the section that it describes, and a bare value the section that it
is short for. What cannot be meant is refused when the object is made, with the words of the reader of configurations.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, Union, overload

from rlkit.errors import ConfigError
from rlkit.reading import printable, shown

Read = TypeVar("Read")
Gave = TypeVar("Gave")
T = TypeVar("T")

WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "null",
    Any: "a value",
}

if TYPE_CHECKING:

    class Given(Generic[Read, Gave]):
        """The annotation of a field that is read as one type and may be given as another, e.g. a tuple as any list."""

        @overload
        def __get__(self, made: None, cls: Any) -> Self: ...
        @overload
        def __get__(self, made: object, cls: Any) -> Read: ...
        def __get__(self, made: Any, cls: Any) -> Any: ...
        def __set__(self, made: Any, value: Gave) -> None: ...

else:

    class Given:
        """The annotation of a field that is read as one type and may be given as another: the first of the two."""

        def __class_getitem__(cls, kinds: tuple[Any, Any]) -> Any:
            return kinds[0]


def otherwise(value: Any) -> Any:
    """The default of a :class:`Given` field, whose type a type checker would not accept for it."""
    return dataclasses.field(default=value)


class OnlyPython:
    """Base of values that no file holds: messages about files do not offer them."""

    @classmethod
    def of(cls, given: Any, where: str) -> Self:
        """Made of what Python gave; raises InputError where that cannot be meant."""
        raise NotImplementedError


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Those of a dataclass and its bases; names that only a type checker sees leave their class out."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        try:
            found |= inspect.get_annotations(base, eval_str=True)
        except NameError:
            continue
    return found


def conform(made: Any) -> None:
    """Turns the fields of a frozen dataclass into what their annotations say. What stands at its default is left alone.

    Raises:
        ConfigError: every field that holds something else, one a line.
    """
    cls: Any = type(made)
    wrong = list[str]()
    hints = hints_of(cls)
    for f in dataclasses.fields(made):
        value = getattr(made, f.name)
        if f.name in hints and value is not f.default:
            fitted = fit(hints[f.name], value, f"{cls.__name__}.{f.name}", wrong)
            if fitted is not value:
                object.__setattr__(made, f.name, fitted)
    if wrong:
        raise ConfigError("\n".join(wrong))


def fit(hint: Any, value: Any, where: str, wrong: list[str]) -> Any:
    """``value`` as ``hint`` means it; where it cannot be meant, a sentence more in ``wrong``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return fit(arguments[0], value, where, wrong)
    if origin in (Union, types.UnionType):
        return _one_of(hint, value, where, wrong)
    if origin in (tuple, list) and isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return _sequence(hint, list(value), where, wrong)
    if (hint is dict or origin is dict) and isinstance(value, Mapping):
        kind = arguments[1] if arguments else Any
        return {k: fit(kind, v, f"{where}.{k}", wrong) for k, v in value.items()}
    if isinstance(hint, type) and origin is None:
        return _object(hint, value, where, wrong)
    if origin is Literal and not any(value == x and type(value) is type(x) for x in arguments):
        return _unlike(hint, value, where, wrong)
    if (origin is Callable and not callable(value)) or origin in (tuple, list, dict):
        return _unlike(hint, value, where, wrong)
    return value


class Called(ABCMeta):
    """Of classes that Python makes by calling them: a name that is missing or unknown is refused in our words, not in Python's."""

    def __call__(cls: type[T], *values: Any, **named: Any) -> T:
        made: Any = cls
        try:
            signature_of(made).bind(*values, **named)
        except TypeError:
            raise ConfigError("\n".join(_miscalled(made, len(values), named))) from None
        return type.__call__(made, *values, **named)  # type: ignore[no-any-return]


@functools.cache
def signature_of(cls: Any) -> inspect.Signature:
    """How a class is called."""
    taken = list(inspect.signature(cls.__init__).parameters.values())
    return inspect.Signature(taken[1:])


def _miscalled(cls: type, values: int, named: Iterable[str]) -> list[str]:
    """What is wrong with a call of ``cls`` with so many values by their place and the others by name."""
    parameters = signature_of(cls).parameters
    by_place = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    if values > len(by_place):
        most = f"at most {len(by_place)} values" if by_place else "no values"
        return [f"{cls.__name__} takes {most} without a name, and got {values}. Its keys: {', '.join(parameters)}."]
    twice = [name for name in by_place[:values] if name in named]
    if twice:
        return [f"{cls.__name__}.{twice[0]} is given twice: by its place and by its name."]
    return _misnamed(cls, [*by_place[:values], *named], cls.__name__)


class Fitted(metaclass=Called):
    """Base of a dataclass whose fields are what their annotations say however it is made.

    ``shorthand`` is the field that a bare value stands for, where one is expected.
    """

    shorthand: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        conform(self)


def _unlike(hint: Any, value: Any, where: str, wrong: list[str]) -> Any:
    wrong.append(f"{where}: found {printable(shown(value))}, expected {expected(hint)}.")
    return value


def _one_of(hint: Any, value: Any, where: str, wrong: list[str]) -> Any:
    """The first arm that takes the value. Where none does and one arm took it but for something inside, that is what is wrong."""
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    inside = []
    for arm in typing.get_args(hint):
        trial = list[str]()
        fitted = fit(arm, value, where, trial)
        if not trial:
            return fitted
        if not trial[0].startswith(f"{where}: found"):
            inside.append(trial)
    if len(inside) != 1:
        return _unlike(hint, value, where, wrong)
    wrong += inside[0]
    return value


def _sequence(hint: Any, values: list[Any], where: str, wrong: list[str]) -> Any:
    kinds = typing.get_args(hint)
    many = typing.get_origin(hint) is list or kinds[1:] == (...,)
    if not many and len(values) != len(kinds):
        wrong.append(f"{where}: found {len(values)} values, expected {len(kinds)}.")
        return tuple(values)
    found = [fit(kinds[0] if many else kinds[i], v, f"{where}.{i}", wrong) for i, v in enumerate(values)]
    return found if typing.get_origin(hint) is list else tuple(found)


def _object(cls: type, value: Any, where: str, wrong: list[str]) -> Any:
    """A number, a text, or an object of a class."""
    if cls is bool or isinstance(value, bool):
        return value if isinstance(value, cls) and cls in (bool, object) else _unlike(cls, value, where, wrong)
    if cls is int and isinstance(value, Integral):
        return int(value)
    if cls is float and isinstance(value, Real):
        return float(value)
    if cls is str and isinstance(value, Path):
        return str(value)
    if isinstance(value, cls):
        return value
    if dataclasses.is_dataclass(cls):
        short = cls.shorthand if issubclass(cls, Fitted) else None
        if isinstance(value, Mapping):
            return make(cls, value, where, wrong)
        if short is not None and (isinstance(value, str) or callable(value)):
            return make(cls, {short: value}, where, wrong)
    return _unlike(cls, value, where, wrong)


def make(cls: Any, values: Mapping[str, Any], where: str, wrong: list[str]) -> Any:
    """An instance of a dataclass with these fields; its own mistakes are added to ``wrong``."""
    try:
        misnamed = _misnamed(cls, values, where)
        if misnamed:
            raise ConfigError("\n".join(misnamed))
        return cls(**values)
    except ConfigError as error:
        wrong.append(str(error))
        return None


def _misnamed(cls: Any, names: Collection[str], where: str) -> list[str]:
    """What is wrong with the names of an instance's values: those that are unknown, and those that are missing."""
    parameters = signature_of(cls).parameters
    unknown = [f"{where}.{name}: {unknown_key(name, list(parameters))}" for name in names if name not in parameters]
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in names]
    return unknown + [f"{where}.{name}: is missing, and it has no default." for name in missing]


def unknown_key(name: str, fields: Sequence[str]) -> str:
    """What is said of a key that is none of ``fields``."""
    near = difflib.get_close_matches(str(name)[:100], fields, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key.{hint} Keys here: {', '.join(fields) or 'none'}."


def required(cls: Any) -> list[str]:
    """The fields of a dataclass that have no default."""
    return [f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING]


def an_object(cls: type) -> str:
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def expected(hint: Any, named: Callable[[type], str] = an_object) -> str:
    """What a value of this annotation is called in a message; ``named`` says it of a class that is neither number nor text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return expected(arguments[0], named)
    if origin in (Union, types.UnionType):
        arms = [arm for arm in arguments if not (inspect.isclass(arm) and issubclass(arm, OnlyPython))]
        return " or ".join(expected(arm, named) for arm in arms)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (tuple, list):
        return "a list"
    if origin is Callable:
        return "a function"
    if hint is dict or origin is dict:
        return "a mapping"
    return WORDS.get(hint) or named(hint)


def changed(x: T, changes: Mapping[str, Any]) -> T:
    """A copy of a dataclass with other values: ``{"steps": 5, "learner": {"lr": 1e-5}, "objective.1.coef": 0.02}``.

    A mapping changes keys of a section and leaves its others; a path leads into sections and lists, as on the command line.

    Raises:
        ConfigError: no such key, or a value that cannot stand there.
    """
    made: Any = x
    name = type(x).__name__
    new: dict[str, Any] = {}
    for path, value in changes.items():
        key, _, rest = path.partition(".")
        fields = [f.name for f in dataclasses.fields(made) if f.init]
        if key not in fields:
            raise ConfigError(f"{name}.{key}: {unknown_key(key, fields)}")
        old = new[key] if key in new else getattr(made, key)
        new[key] = _put(old, rest.split(".") if rest else [], value, f"{name}.{key}")
    return typing.cast(T, dataclasses.replace(made, **new))


def _put(old: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """``old`` with ``value`` at ``path``."""
    section = dataclasses.is_dataclass(old)
    if not path:
        return changed(old, value) if section and isinstance(value, Mapping) else value
    key, rest = path[0], path[1:]
    if section:
        return changed(old, {".".join(path): value})
    if old is None or isinstance(old, Mapping):  # a section that is not there yet, or settings of another library
        below = dict(old or {})
        return {**below, key: _put(below.get(key), rest, value, f"{where}.{key}")}
    if isinstance(old, tuple):
        if not key.isdecimal() or int(key) >= len(old):
            raise ConfigError(f"{where} is a list of {len(old)}; {shown(key)} is no index into it.")
        i = int(key)
        return (*old[:i], _put(old[i], rest, value, f"{where}.{key}"), *old[i + 1 :])
    raise ConfigError(f"{where} is {shown(old)} and has no keys.")
