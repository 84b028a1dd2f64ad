"""What losses, advantages, coefficients, penalties and corrections have in common."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlkit.errors import ConfigError


class Part:
    """Base of the frozen dataclasses of an objective: their numbers are finite, from a file or from Python.

    A ``__post_init__`` of a subclass begins with ``super().__post_init__()``.

    >>> from rlkit.objective.losses import PPOClip
    >>> PPOClip(eps_high=float("nan"))
    Traceback (most recent call last):
    rlkit.errors.ConfigError: PPOClip.eps_high is nan; it must be a finite number.
    """

    def __post_init__(self) -> None:
        part: Any = self
        for field in dataclasses.fields(part):
            x = getattr(part, field.name)
            for number in x if isinstance(x, tuple) else (x,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ConfigError(f"{type(self).__name__}.{field.name} is {number}; it must be a finite number.")
