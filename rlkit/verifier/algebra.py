r"""Exact values: quotients of polynomials over Q(i, roots of primes), with variables, pi and e as free symbols, and without sympy.

Two :class:`Expr` are equal exactly if their cross products are (real radicals of different primes are independent over Q: Besicovitch,
1940).
What this field cannot express (sin, log, nested roots, huge powers) is kept as an unevaluated atom, so nothing big is ever computed.

Everything is bounded: terms, bits and steps. What is too much, or not understood, raises :class:`Unreadable`, never a guess.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

MAX_TEXT = 2000  # characters of an answer
MAX_DEPTH = 32  # nested brackets
MAX_TERMS = 600  # of a polynomial
MAX_BITS = 20_000  # of an integer (2^{4950} is a reference answer of MATH)
MAX_WORK = 10_000  # steps to read one text or to compare two values; one is a product of two terms (some microseconds)


class Unreadable(ValueError):
    """The text is not an answer this module can read."""


class Work(threading.local):
    """Steps of algebra in this thread: of the present text or pair of values, and of all."""

    now = 0
    total = 0

    def begin(self) -> None:
        """Another text or pair of values: it has ``MAX_WORK`` steps, whatever came before."""
        self.now = 0

    def spend(self, steps: int) -> None:
        """Counts steps before they are taken.

        Raises:
            Unreadable: there are more than ``MAX_WORK``.
        """
        self.now += steps
        if self.now > MAX_WORK:
            raise Unreadable("too much to compute")
        self.total += steps


WORK = Work()


@dataclass(frozen=True, slots=True)
class Atom:
    """A symbol, a prime under a root, i, or a function of expressions that is not evaluated; equal if its key is."""

    key: str
    kind: str = field(default="symbol", compare=False)
    args: tuple[Any, ...] = field(default=(), compare=False)


Mono = tuple[tuple[Atom, Fraction], ...]
Poly = dict[Mono, Fraction]
I = Atom("i", "i")  # noqa: E741
DEGREE, PERCENT = Atom("°", "degree"), Atom("%", "percent")
PI, EULER = Atom("π", "pi"), Atom("e", "e")
INFINITY = Atom("∞", "infinity")
ONE: Poly = {(): Fraction(1)}


def canonical(powers: dict[Atom, Fraction]) -> tuple[Fraction, Mono]:
    """Canonical form: i to the power 0 or 1, roots of primes with powers in [0, 1); and the rational factor that this leaves."""
    factor = Fraction(1)
    kept = []
    for atom, power in powers.items():
        if atom.kind == "prime":
            whole = math.floor(power)
            if abs(whole) * 8 > MAX_BITS:
                raise Unreadable("a number is too large")
            factor *= Fraction(int(atom.key)) ** whole
            power -= whole
        elif atom.kind == "i" and power.denominator == 1:
            factor *= (1, 1, -1, -1)[int(power) % 4]
            power = Fraction(int(power) % 2)
        if power:
            kept.append((atom, power))
    kept.sort(key=lambda entry: entry[0].key)
    return factor, tuple(kept)


def _poly_mul(a: Poly, b: Poly) -> Poly:
    if len(a) * len(b) > 20 * MAX_TERMS:
        raise Unreadable("too many terms")
    bits = max((x.numerator.bit_length() + x.denominator.bit_length() for p in (a, b) for x in p.values()), default=0)
    WORK.spend(len(a) * len(b) * (1 + bits // 1000))
    out: Poly = {}
    for mono_a, x in a.items():
        for mono_b, y in b.items():
            if mono_a and mono_b:
                powers = dict(mono_a)
                for atom, power in mono_b:
                    powers[atom] = powers.get(atom, Fraction(0)) + power
                factor, mono = canonical(powers)
                value = x * y * factor
            else:
                mono, value = mono_a or mono_b, x * y
            out[mono] = out.get(mono, Fraction(0)) + value
    if len(out) > MAX_TERMS:
        raise Unreadable("too many terms")
    out = {mono: x for mono, x in out.items() if x}
    if any(x.numerator.bit_length() + x.denominator.bit_length() > 2 * MAX_BITS for x in out.values()):
        raise Unreadable("a number is too large")
    return out


def _poly_add(a: Poly, b: Poly, sign: int = 1) -> Poly:
    out = dict(a)
    for mono, x in b.items():
        out[mono] = out.get(mono, Fraction(0)) + sign * x
    return {mono: x for mono, x in out.items() if x}


@dataclass(frozen=True, eq=False)
class Expr:
    """``num / den``; the denominator is 1 unless it has several terms (a single term is divided out)."""

    num: Poly
    den: Poly = field(default_factory=lambda: ONE)

    def __add__(self, other: Expr) -> Expr:
        if self.den == other.den:
            return _quotient(_poly_add(self.num, other.num), self.den)
        return _quotient(
            _poly_add(_poly_mul(self.num, other.den), _poly_mul(other.num, self.den)), _poly_mul(self.den, other.den)
        )

    def __neg__(self) -> Expr:
        return Expr({mono: -x for mono, x in self.num.items()}, self.den)

    def __sub__(self, other: Expr) -> Expr:
        return self + -other

    def __mul__(self, other: Expr) -> Expr:
        return _quotient(
            _poly_mul(self.num, other.num),
            ONE if self.den is ONE and other.den is ONE else _poly_mul(self.den, other.den),
        )

    def __truediv__(self, other: Expr) -> Expr:
        if not other.num:
            raise Unreadable("division by zero")
        return _quotient(_poly_mul(self.num, other.den), _poly_mul(self.den, other.num))

    @cached_property
    def rational(self) -> Fraction | None:
        """The value if it is a rational number."""
        if self.den != ONE:
            return None
        if not self.num:
            return Fraction(0)
        return self.num.get(()) if len(self.num) == 1 else None

    @cached_property
    def atoms(self) -> frozenset[Atom]:
        """All atoms, those inside functions too."""
        found: set[Atom] = set()
        for poly in (self.num, self.den):
            for mono in poly:
                for atom, _ in mono:
                    found.add(atom)
                    for argument in atom.args:
                        found |= argument.atoms
        return frozenset(found)

    @property
    def symbols(self) -> frozenset[Atom]:
        return frozenset(a for a in self.atoms if a.kind == "symbol")

    @property
    def opaque(self) -> bool:
        """Whether something is unevaluated, so that different forms may have the same value."""
        return any(a.args or a.kind == "infinity" for a in self.atoms)

    @cached_property
    def key(self) -> str:
        WORK.spend(len(self.num) + len(self.den))
        lead = Fraction(1) if self.den == ONE else self.den[min(self.den, key=mono_key)]
        parts = [
            "+".join(sorted(f"{digits(x / lead)}*{mono_key(mono)}" for mono, x in poly.items()))
            for poly in (self.num, self.den)
        ]
        if len(parts[0]) + len(parts[1]) > 4 * MAX_TEXT:
            raise Unreadable("the expression is too long")
        return parts[0] if self.den == ONE else f"({parts[0]})/({parts[1]})"

    def same(self, other: Expr) -> bool:
        """Equal in the field; with ``opaque`` atoms False only means not shown."""
        if self.den == other.den:
            return self.num == other.num
        return _poly_mul(self.num, other.den) == _poly_mul(other.num, self.den)

    def without(self, atom: Atom) -> Expr | None:
        """Divided by ``atom`` if every term has it exactly once (a unit: degrees, percent), else None."""
        if self.den != ONE or not self.num or not all(dict(mono).get(atom) == 1 for mono in self.num):
            return None
        return Expr({tuple(entry for entry in mono if entry[0] != atom): x for mono, x in self.num.items()})


def digits(x: Fraction) -> str:
    """A rational as text; large ones in hexadecimal, which costs no division and which Python does not refuse."""
    large = x.numerator.bit_length() + x.denominator.bit_length() > 10_000
    return f"{x.numerator:x}/{x.denominator:x}h" if large else str(x)


def mono_key(mono: Mono) -> str:
    return "*".join(f"{atom.key}^{power}" for atom, power in mono)


def _quotient(num: Poly, den: Poly) -> Expr:
    if len(den) == 1 and den != ONE:
        ((mono, x),) = den.items()
        factor, inverse = canonical({atom: -power for atom, power in mono})
        return Expr(_poly_mul(num, {inverse: factor / x}))
    return Expr(num, den)


def number(value: Fraction | int) -> Expr:
    return Expr({(): Fraction(value)} if value else {})


def symbol(atom: Atom) -> Expr:
    return Expr({((atom, Fraction(1)),): Fraction(1)})


def function(name: str, *args: Expr) -> Expr:
    """An unevaluated function, equal to another one with equal arguments."""
    key = f"{name}({','.join(a.key for a in args)})"
    if len(key) > 4 * MAX_TEXT:
        raise Unreadable("the expression is too long")
    return symbol(Atom(key, name, args))


def _root(n: int, power: Fraction) -> Expr | None:
    """``n ** power`` for an integer n > 0 by its prime factors, or None if it has a large one."""
    WORK.spend(20)
    powers: dict[Atom, Fraction] = {}
    p = 2
    while p * p <= n and p < 2000:
        while n % p == 0:
            powers[Atom(str(p), "prime")] = powers.get(Atom(str(p), "prime"), Fraction(0)) + power
            n //= p
        p += 1 if p == 2 else 2
    if n >= 2000**2:
        whole = math.isqrt(n)
        if whole * whole != n or whole >= 2000**2:
            return None
        n, power = whole, 2 * power
    if n > 1:
        powers[Atom(str(n), "prime")] = powers.get(Atom(str(n), "prime"), Fraction(0)) + power
    factor, mono = canonical(powers)
    return Expr({mono: factor})


def power(base: Expr, exponent: Expr) -> Expr:
    """``base ** exponent``, unevaluated where the value is too large or outside the field."""
    n = exponent.rational
    if n is None:
        return function("pow", base, exponent)
    if n.denominator == 1:
        return _whole_power(base, int(n), exponent)
    if base.den != ONE or len(base.num) != 1:
        return function("pow", base, exponent) if base.num else base
    ((mono, x),) = base.num.items()
    positive = all(atom.kind in ("prime", "pi", "e") for atom, _ in mono)
    if not mono and x < 0:
        if n == Fraction(1, 2):
            return symbol(I) * power(number(-x), exponent)
        if n.denominator % 2 == 1:  # the real root: (-8)^{1/3} = -2
            return number((-1) ** n.numerator) * power(number(-x), exponent)
    single = len(mono) == 1 and x == 1 and mono[0][0].kind == "symbol" and mono[0][1] == 1
    if (
        abs(n) > 200
        or not (single or (positive and x > 0))
        or max(x.numerator.bit_length(), x.denominator.bit_length()) > 200
    ):
        return function("pow", base, exponent)
    factor, raised = canonical({atom: p * n for atom, p in mono})
    top, bottom = _root(x.numerator, n), _root(x.denominator, -n)
    return function("pow", base, exponent) if top is None or bottom is None else top * bottom * Expr({raised: factor})


def _whole_power(base: Expr, n: int, exponent: Expr) -> Expr:
    if n < 0:
        return number(1) / _whole_power(base, -n, -exponent)
    if not base.num:
        return number(0 if n else 1)
    size = max(
        x.numerator.bit_length() + x.denominator.bit_length() for poly in (base.num, base.den) for x in poly.values()
    )
    terms = max(len(base.num), len(base.den))
    simple = base.rational in (1, -1)
    if (
        n > 1
        and not simple
        and (
            n * size > MAX_BITS
            or (terms > 1 and math.comb(min(n, 64) + terms - 1, terms - 1) > MAX_TERMS)
            or (terms > 1 and n > 64)
        )
    ):
        return function("pow", base, exponent)
    if simple:
        return number(-1 if base.rational == -1 and n % 2 else 1)
    out = number(1)
    while n:
        if n & 1:
            out = out * base
        n >>= 1
        if n:
            base = base * base
    return out
