"""Numbers with bounds, and names of folders, written where the field stands: ``n: Count = 8``, ``over: Share = 0.0``.

The reader of configurations checks them with the place in the file; a :class:`Bounded` dataclass also checks them when Python makes one.
A bound is finite by itself: NaN is in no interval. What has no bound at all must still be finite where it comes from a file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from rlkit.errors import ConfigError
from rlkit.values import Fitted, hints_of


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An interval; ``at_least`` and ``at_most`` belong to it, ``above`` and ``below`` do not. Only one of each pair is given."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def admits(self, x: float) -> bool:
        return (
            (self.at_least is None or x >= self.at_least)
            and (self.above is None or x > self.above)
            and (self.at_most is None or x <= self.at_most)
            and (self.below is None or x < self.below)
            and abs(x) < float("inf")
        )

    def __str__(self) -> str:
        """What completes "it must"."""
        low, high = self.at_least, self.at_most
        if (low is not None or self.above is not None) and (high is not None or self.below is not None):
            left = f"({self.above:g}" if low is None else f"[{low:g}"
            right = f"{self.below:g})" if high is None else f"{high:.15g}]"
            return f"be in {left}, {right}"
        if self.above is not None:
            return "be positive" if self.above == 0 else f"be above {self.above:g}"
        if low is not None:
            return "not be negative" if low == 0 else f"be at least {low:g}"
        if high is not None or self.below is not None:
            return f"be at most {high:.15g}" if high is not None else f"be below {self.below:g}"
        return "be finite"


@dataclass(frozen=True)
class FolderName:
    """A text that becomes one folder: it can neither leave the folder around it nor be cut by the file system.

    A file name may have 255 bytes; the rest is for what is put behind it.
    """

    longest: int = 200  # bytes

    def admits(self, x: str) -> bool:
        return (
            0 < len(x.encode(errors="replace")) <= self.longest
            and x.isprintable()
            and not set(x) & set("/\\")
            and x.strip(". ") != ""
        )

    def __str__(self) -> str:
        return f"name one folder: up to {self.longest} bytes, no slashes, no control characters, more than dots"


Name = Annotated[str, FolderName()]
Finite = Annotated[float, Bound()]
Count = Annotated[int, Bound(at_least=1)]
Natural = Annotated[int, Bound(at_least=0)]
Positive = Annotated[float, Bound(above=0)]
NonNegative = Annotated[float, Bound(at_least=0)]
Share = Annotated[float, Bound(at_least=0, at_most=1)]
Decay = Annotated[float, Bound(at_least=0, below=1)]
Seed = Annotated[int, Bound(at_least=0, at_most=2**32 - 1)]  # what NumPy's generators take, which engines seed too


@functools.cache
def bounds(cls: Any) -> dict[str, Bound | FolderName]:
    """The fields of a dataclass that have a bound, ``Count | None``, ``tuple[Count, ...]`` and ``dict[str, Positive]`` included."""
    found: dict[str, Bound | FolderName] = {}
    for name, hint in hints_of(cls).items():
        for arm in (hint, *typing.get_args(hint)):
            if typing.get_origin(arm) is Annotated:
                found.update((name, note) for note in arm.__metadata__ if isinstance(note, Bound | FolderName))
    return found


class Bounded(Fitted):
    """Base of a dataclass whose values are of their types, and whose numbers are finite and within their bounds, however it is made.

    A ``__post_init__`` of a subclass begins with ``super().__post_init__()``.

    >>> from rlkit.objective.losses import PPOClip
    >>> PPOClip(eps_high=float("nan"))
    Traceback (most recent call last):
    rlkit.errors.ConfigError: PPOClip.eps_high is nan; it must be finite.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        made: Any = self
        cls: Any = type(self)
        limits = bounds(cls)
        for f in dataclasses.fields(made):
            bound, x = limits.get(f.name), getattr(made, f.name)
            for entry in x if isinstance(x, tuple) else x.values() if isinstance(x, dict) else (x,):
                fits = isinstance(entry, str) if isinstance(bound, FolderName) else isinstance(entry, int | float)
                if isinstance(entry, float) and not math.isfinite(entry):
                    bound = Bound()
                if bound is not None and fits and not bound.admits(entry):
                    raise ConfigError(f"{type(self).__name__}.{f.name} is {entry!r:.100}; it must {bound}.")
