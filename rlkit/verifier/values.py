"""What an answer can be: a number, a text, a list, a region, a matrix, an equation, an inequality, a ratio, digits in a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.verifier.algebra import Expr

Span = tuple[Expr | None, bool, Expr | None, bool]  # low, whether it is in, high, whether it is in; None at infinity


@dataclass(frozen=True)
class Scalar:
    """An expression, with the unit that stood beside it and the digits after the point if it is a plain decimal."""

    expr: Expr
    unit: str = ""
    decimals: int | None = None
    raw: str = ""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    """``kind``: list (separated by commas or words: no order), set (braces), tuple ( ), bracket [ ] or ( ] or [ ): in order."""

    kind: str
    items: tuple[Any, ...]
    ends: str = ""

    @property
    def ordered(self) -> bool:
        return self.kind in ("tuple", "bracket")


@dataclass(frozen=True)
class Region:
    """A union of intervals ``(low, low_closed, high, high_closed)``, low and high None at infinity; sorted and merged if numeric."""

    spans: tuple[tuple[Expr | None, bool, Expr | None, bool], ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Equation:
    """``parts[0] = parts[1] = ...``; ``name`` if the left side is only a name: x, f(x), AB, P(A)."""

    parts: tuple[Any, ...]
    name: str = ""


@dataclass(frozen=True)
class Inequality:
    """``low < high`` (or <=) that is no interval of one variable; ``!=`` too."""

    op: str
    difference: Expr


@dataclass(frozen=True)
class Ratio:
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Based:
    """Digits in a stated base."""

    digits: str
    base: int


Value = Scalar | Text | Items | Region | Matrix | Equation | Inequality | Ratio | Based
