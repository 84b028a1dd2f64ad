"""Shapes that the source names, checked at every call while tests run.

A shape is named in two ways: ``PerToken`` and its like in annotations (``Annotated[Tensor, "terms S"]``), and the letters at the end of a
parameter's name (``cost_N``). A method also has the shapes of those that it overrides. Within one call a letter has one size.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union

from torch import Tensor

import rlkit.objective
from rlkit.types import Batch, New, PerSequence, PerToken

HOME = "rlkit.objective"
MODULES = ["rlkit.types", HOME, *(m.name for m in pkgutil.iter_modules(rlkit.objective.__path__, f"{HOME}."))]
OWN = {Batch: {"seq": PerToken, "reward": PerSequence}, New: {"logp": PerToken}}  # what fixes the sizes of a call


def named(hint: Any) -> bool:
    """Whether a hint names a shape somewhere."""
    inside = typing.get_args(hint)
    return (typing.get_origin(hint) is Annotated and inside[0] is Tensor) or any(map(named, inside))


def fits(hint: Any, x: Any, sizes: dict[str, int]) -> bool:
    """Whether ``x`` has the shape that ``hint`` names; letters that are seen for the first time are noted in ``sizes``."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return any(fits(h, x, sizes) for h in inside)
    if isinstance(x, Mapping) and inside:
        return all(fits(inside[-1], v, sizes) for v in x.values())
    if not isinstance(x, Tensor) or not named(hint):
        return not isinstance(x, Tensor)
    letters = inside[1].split()
    return len(letters) == x.ndim and all(sizes.setdefault(k, n) == n for k, n in zip(letters, x.shape, strict=True))


def shapes(fn: Callable[..., Any]) -> dict[str, Any]:
    """The shapes of parameters and of the result (``return``) that a function names."""
    hints = {k: h for k, h in typing.get_type_hints(fn, include_extras=True).items() if named(h)}
    letters = {name: re.fullmatch(r".+_([LNSGVKP]+)", name) for name in inspect.signature(fn).parameters}
    return {**{name: Annotated[Tensor, " ".join(m[1])] for name, m in letters.items() if m}, **hints}


def checked(fn: Callable[..., Any], hints: dict[str, Any]) -> Callable[..., Any]:
    signature, makes = inspect.signature(fn), fn.__name__ == "__init__"

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes: dict[str, int] = {}

        def check(name: str, x: Any, hint: Any) -> None:
            shape = {k: v.shape for k, v in x.items()} if isinstance(x, Mapping) else getattr(x, "shape", None)
            assert fits(hint, x, sizes), f"{fn.__qualname__}: {name} is {shape}, not {hint} where {sizes}"

        given = list(signature.bind(*args, **kwargs).arguments.items())
        for name, x in given[makes:]:
            for part, hint in OWN.get(type(x), {}).items():
                check(f"{name}.{part}", getattr(x, part), hint)
        for name, x in given:
            if name in hints:
                check(name, x, hints[name])
        out = fn(*args, **kwargs)
        if "return" in hints:
            check("the result", out, hints["return"])
        return out

    return call


def switch_on() -> None:
    """Wraps every function and method of ``MODULES`` that names a shape."""
    modules = [importlib.import_module(name) for name in MODULES]
    for m in modules:
        ours = {k: f for k, f in vars(m).items() if inspect.isfunction(f) and f.__module__ in MODULES}
        vars(m).update({k: checked(f, shapes(f)) for k, f in ours.items() if shapes(f)})
    for cls in {c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ in MODULES}:
        for name, fn in [
            (k, f) for k, f in vars(cls).items() if inspect.isfunction(f) and (k != "__init__" or cls in OWN)
        ]:
            same = [f for base in cls.__mro__[::-1] if inspect.isfunction(f := vars(base).get(name))]
            if hints := {k: h for f in same for k, h in shapes(f).items()}:
                setattr(cls, name, checked(fn, hints))
