"""Numbers of an objective's parts are finite, whichever way they are made."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.objective.advantages import Plain
from rlkit.objective.anchors import Mixture
from rlkit.objective.coefficients import Constant, as_coefficient
from rlkit.objective.divergences import KL

MODULES = ("anchors", "losses", "divergences", "full_vocab", "advantages", "coefficients", "penalties", "corrections")
WANTED: dict[str, dict[str, Any]] = {
    "Constant": {"value": 1.0},
    "Linear": {"start_value": 1.0, "end_value": 0.0, "steps": 3},
    "Cosine": {"start_value": 1.0, "end_value": 0.0, "steps": 3},
    "Step": {"values": (1.0, 2.0), "at": (3,)},
    "KLBudget": {"target": 0.1},
    "DualAscent": {"target": 0.1},
    "EntropyTarget": {"target": 0.1},
    "LengthShaped": {"of": Plain()},
    "Mixture": {"of": ("ref", "teacher"), "weights": (1.0, 2.0)},
}


def parts() -> Iterator[type]:
    for name in MODULES:
        module = importlib.import_module(f"rlkit.objective.{name}")
        for cls in vars(module).values():
            plain = inspect.isclass(cls) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
            if (
                plain
                and dataclasses.is_dataclass(cls)
                and not inspect.isabstract(cls)
                and cls.__name__ not in ("Advantages", "Head", "TopK")
            ):
                yield cls


def numbers(cls: Any) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if field.name == "coef" or any(x in (float, tuple[float, ...]) for x in (hint, *typing.get_args(hint))):
            yield field.name


CASES = [(cls, name) for cls in parts() for name in numbers(cls)]


def test_the_cases_are_all_parts() -> None:
    assert len(CASES) > 100 and {cls.__name__ for cls, _ in CASES} > {"KL", "GAE", "KLReward", "IcePop", *WANTED}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_number_that_is_not_finite_is_refused_by_name(cls: Any, name: str, bad: float) -> None:
    given = WANTED.get(cls.__name__, {})
    cls(**given)
    value = (bad, *given[name][1:]) if isinstance(given.get(name), tuple) else bad
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name} is {bad}; it must be finite"):
        cls(**given | {name: value})


@pytest.mark.parametrize("bad", ["abc", None, True, {"start": 1}, [1.0]])
def test_what_is_no_coefficient_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="must be a number or a coefficient"):
        as_coefficient(bad)
    assert as_coefficient(2) == Constant(2.0)


def test_several_numbers_are_all_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"Mixture\.weights is nan"):
        Mixture(of=("ref", "teacher"), weights=(1.0, math.nan))
    assert KL(coef=0.0).coef == 0.0
