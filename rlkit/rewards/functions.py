"""Reward functions: where they are found, what they are called with, what they may return."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.config import locate
from rlkit.errors import ConfigError

BUILTIN = {"math": "rlkit.rewards.math:reward", "exact": "rlkit.rewards.text:exact"}


def import_function(where: str, base: Path | None = None) -> Callable[..., Any]:
    """The function at ``file.py:name`` or ``module:name``, or a built-in reward.

    Raises:
        ValueError: nothing there, with what is.
    """
    target = BUILTIN.get(where, where)
    place, _, name = target.rpartition(":")
    if not place:
        raise ConfigError(
            f"rewards: {where!r} is not a built-in reward ({', '.join(BUILTIN)}); write my_file.py:function or "
            "package.module:function."
        )
    try:
        module = _load_file(locate(place, base)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError:
        raise ConfigError(
            f"rewards: there is no file {place!r} (looked in {Path(base or '.').resolve()} and in the current folder)."
        ) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"rewards: importing {place!r} failed at {last.filename}:{last.lineno}: {type(error).__name__}: {error}"
        ) from error
    fn = getattr(module, name, None)
    if not callable(fn):
        here = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise ConfigError(f"rewards: {place!r} has no function {name!r}; it has {', '.join(here) or 'none'}.")
    return fn


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"rlkit_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parameters(fn: Callable[..., Any], available: Sequence[str], label: str) -> list[str]:
    """Names to pass.

    Raises:
        ValueError: a parameter without default that no column fills.
    """
    names: list[str] = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            return [*available]
        if p.name in available:
            names.append(p.name)
        elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise ConfigError(
                f"reward {label!r} has a parameter {p.name!r} that nothing fills; there are "
                f"{', '.join(sorted(available))}. Rename it, give it a default, or add the column to the data."
            )
    return names


def normalise_result(value: Any) -> dict[str, float] | None:
    """Components by name; a plain number is the component ``""``; None means that the response cannot be scored."""
    if value is None:
        return None
    items = value.items() if isinstance(value, Mapping) else [("", value)]
    out = {}
    for key, v in items:
        try:
            out[str(key)] = float(v)
        except (TypeError, ValueError):
            raise TypeError(
                f"returned {v!r} ({type(v).__name__}); a reward is a number, a dict of numbers, or None"
            ) from None
        if not math.isfinite(out[str(key)]):
            raise ConfigError(f"returned {v!r}; a reward must be finite")
    return out
