"""Reward functions: where they are found, what they are called with, what they may return."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import io
import math
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlkit.errors import ConfigError, RewardError
from rlkit.place import LIBRARIES, by_value, load_user_file

T = TypeVar("T", bound=Callable[..., Any])
BUILTIN = {"math": "rlkit.rewards.math:reward", "exact": "rlkit.rewards.text:exact"}
WRAP = {"reward": "def my_reward(response): return ...", "episode": "async def my_episode(chat): return ..."}
MOST_PARTS, LONGEST_NAME = 100, 200
SINGLE = ("response", "tokens", "finish", "transcript")  # what is a single response's
LONGEST_ERROR = 2_000  # characters of an error's text


def import_function(where: str, key: str = "rewards") -> Callable[..., Any]:
    """The function at ``file.py:name`` or ``module:name``, or a built-in reward. ``key`` is what names it in the configuration.

    Raises:
        ConfigError: nothing there, with what is.
    """
    target = BUILTIN.get(where, where) if key == "rewards" else where
    place, _, name = target.rpartition(":")
    if not place:
        raise ConfigError(
            f"rewards: {where!r} is not a built-in reward ({', '.join(BUILTIN)}); write my_file.py:function or "
            "package.module:function."
            if key == "rewards"
            else f"{key}: {where!r} names no function; write my_file.py:function or package.module:function."
        )
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ConfigError(
                f"{key}: there is no file {place!r}, neither beside the configuration nor in the current folder."
            )
        try:
            module = load_user_file(path)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error.__cause__
    else:
        try:
            module = importlib.import_module(place)
        except Exception as error:
            raise ConfigError(f"{key}: importing {place!r} failed: {clip(error)}") from error
    return function_of(module, name, place, key)


def function_of(module: types.ModuleType, name: str, place: str, key: str = "rewards") -> Callable[..., Any]:
    """``name`` of a module; ``Class.method`` and the like are found, too."""
    fn: Any = module
    for part in name.split("."):
        fn = getattr(fn, part, None)
    if not callable(fn):
        here = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise ConfigError(f"{key}: {place!r} has no function {name!r}; it has {', '.join(here) or 'none'}.")
    found: Callable[..., Any] = fn
    return found


def signature(fn: Callable[..., Any], label: str, kind: str = "reward") -> inspect.Signature:
    """Its parameters. ``kind`` and ``label`` are what messages call it.

    Raises:
        ConfigError: they are not known, or have to be passed by position.
    """
    try:
        found = inspect.signature(fn)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{kind} {label!r}: Python does not know the parameters of {reprlib.repr(fn)}. Wrap it: {WRAP[kind]}"
        ) from None
    for p in found.parameters.values():
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise ConfigError(
                f"{kind} {label!r} takes its parameter {p.name!r} by position only; parameters are filled by name. Wrap it: {WRAP[kind]}"
            )
    return found


def parameters(fn: Callable[..., Any], available: Sequence[str], label: str, kind: str = "reward") -> list[str]:
    """Names to pass; what ``functools.partial`` has bound stays as it is.

    Raises:
        ConfigError: a parameter without default that no column fills.
    """
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    names: list[str] = []
    found = list(signature(fn, label, kind).parameters.values())
    if found and all(p.kind is p.VAR_POSITIONAL for p in found):
        raise ConfigError(
            f"{kind} {label!r} takes no parameter by name, only by position (*{found[0].name}); parameters are filled by name. If a "
            "decorator hides them, let it use functools.wraps."
        )
    for p in found:
        if p.kind is p.VAR_KEYWORD:
            return [name for name in available if name not in bound]
        if p.name in bound or p.kind is p.POSITIONAL_ONLY:
            continue
        if p.name in available:
            names.append(p.name)
        elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise ConfigError(
                f"{kind} {label!r} has a parameter {p.name!r} that nothing fills; there are "
                f"{', '.join(sorted(available))}. Rename it, give it a default, or add the column to the data."
            )
    return names


def is_of_group(names: Iterable[str]) -> bool:
    """Whether a reward of these parameters is called once for all responses to a prompt."""
    return "responses" in (names := set(names)) and names.isdisjoint(SINGLE)


def underlying(fn: Any) -> Any:
    """The function or class that the user wrote, under partials, caches, decorators and methods."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        else:
            return fn if inspect.isroutine(fn) or inspect.isclass(fn) else type(fn)


def label_of(fn: Any) -> str:
    """What a reward without a name is called."""
    return fn.rsplit(":", 1)[-1] if isinstance(fn, str) else str(getattr(fn, "__name__", underlying(fn).__name__))


def is_async(fn: Any) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def rows_checked_by(check: Callable[..., None]) -> Callable[[T], T]:
    """Of a reward function: ``check``, whose parameters are filled by name from a row, raises RewardError for one that nobody could solve.
    It is called for all rows before a run starts.
    """

    def mark(fn: T) -> T:
        vars(fn)["check_row"] = check
        return fn

    return mark


def row_check(fn: Any) -> Callable[..., None] | None:
    """What :func:`rows_checked_by` has given a function."""
    found: Callable[..., None] | None = vars(underlying(fn)).get("check_row")
    return found


# -- how functions travel to other processes ----------------------------------------------------------------------------


def _cached(parameters: Mapping[str, Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = functools.lru_cache(**parameters)(fn)
    return cached


def _kept(fn: Callable[[Any], Any], name: str) -> functools.cached_property[Any]:
    made = functools.cached_property(fn)
    made.__set_name__(object, name)
    return made


def pack(functions: Sequence[Any]) -> bytes:
    """Functions, or where they are; those of scripts, notebooks and users' modules by value. :func:`pickle.loads` reads it."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # By itself a cached function is pickled as the name of its module, which another process may not have.
            if isinstance(obj, functools._lru_cache_wrapper) and _travels(inspect.getmodule(obj.__wrapped__)):
                return _cached, (obj.cache_parameters(), obj.__wrapped__)
            if type(obj) is functools.cached_property:  # of a class that travels by value; Python 3.11's holds a lock
                return _kept, (obj.func, obj.attrname)
            return super().reducer_override(obj)

    for fn in _with_inner(functions):
        module = None if isinstance(fn, str) else sys.modules.get(underlying(fn).__module__)
        if module is not None and module.__name__ != "__main__" and _travels(module):
            by_value(module, cloudpickle)
    out = io.BytesIO()
    Pickler(out).dump(list(functions))
    return out.getvalue()


def _with_inner(functions: Iterable[Any]) -> Iterator[Any]:
    """Functions, and those that stand in fields of a part among them."""
    for fn in functions:
        yield fn
        if dataclasses.is_dataclass(fn) and not isinstance(fn, type):
            values = (getattr(fn, f.name) for f in dataclasses.fields(fn))
            yield from _with_inner(v for v in values if callable(v))


def _travels(module: types.ModuleType | None) -> bool:
    """Whether another process may be unable to import a module: it is neither installed nor part of Python or rlkit."""
    if module is None or module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    return file is not None and not file.startswith(LIBRARIES) and "-packages/" not in file


# -- what they return -------------------------------------------------------------------------------------------------


def clip(error: BaseException | str, most: int = LONGEST_ERROR) -> str:
    """An exception's class and text, or a text, of bounded length."""
    try:
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
    except Exception as second:
        text = f"{type(error).__name__} (whose text cannot be made: {type(second).__name__})"
    return (
        text if len(text) <= most else f"{text[: most // 2]} [...{len(text) - most} characters...] {text[-most // 2 :]}"
    )


def normalise_result(value: Any) -> dict[str, float] | None:
    """Components by name; a plain number is the component ``""``; None means that the response cannot be scored.

    Raises:
        RewardError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and len(value) > MOST_PARTS:
        raise RewardError(f"returned a dict of {len(value)} parts; there may be {MOST_PARTS}")
    out = {}
    for key, v in value.items() if isinstance(value, Mapping) else [("", value)]:
        name = str(key)
        if len(name) > LONGEST_NAME:
            raise RewardError(f"returned a part whose name has {len(name)} characters; there may be {LONGEST_NAME}")
        try:
            if isinstance(v, str | bytes):
                raise TypeError
            out[name] = float(v)
        except Exception:
            raise RewardError(
                f"returned {reprlib.repr(v)} ({type(v).__name__}); a reward is a number, a dict of numbers, or None"
            ) from None
        if not math.isfinite(out[name]):
            raise RewardError(f"returned {out[name]}{f' for {name!r}' if name else ''}; a reward must be finite")
    return out


def normalise_group(value: Any, n: int) -> list[dict[str, float] | None]:
    """Of a reward of all ``n`` responses to a prompt: the components of each. What is no list is the same for all of them.

    Raises:
        RewardError: it is something else, or a list of another length.
    """
    if not isinstance(value, list | tuple):
        return [normalise_result(value)] * n
    if len(value) != n:
        raise RewardError(f"returned {len(value)} rewards for {n} responses; a list has one for each, in their order")
    return [normalise_result(v) for v in value]
