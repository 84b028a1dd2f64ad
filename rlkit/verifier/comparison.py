"""Whether two values are the same answer: exactly where both are exact, else by value, and in the permissive mode somewhat rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

from rlkit.verifier.algebra import (
    DEGREE,
    INFINITY,
    ONE,
    PERCENT,
    Atom,
    Expr,
    Unreadable,
    digits,
    mono_key,
    number,
    symbol,
)
from rlkit.verifier.numeric import agree, real
from rlkit.verifier.regions import as_region, merged
from rlkit.verifier.units import unit_of
from rlkit.verifier.values import Based, Equation, Inequality, Items, Matrix, Ratio, Region, Scalar, Text, Value

Mode = Literal["strict", "permissive"]
Tier = Literal["string", "exact", "symbolic"]
MAX_DECIMALS = 60  # after which a decimal is taken not to end


class Comparison:
    """Compares values; ``tier`` is "symbolic" once something was evaluated."""

    def __init__(self, mode: Mode, boxed: bool = True) -> None:
        self.permissive = mode == "permissive"
        self.boxed = boxed
        self.tier: Tier = "exact"
        self.inside = 0  # of a list: there the names of values count

    # -- expressions

    def equal(self, a: Expr, b: Expr) -> bool:
        if a.rational is not None and b.rational is not None:
            return a.rational == b.rational
        try:
            if a.same(b):
                return True
            if not a.opaque and not b.opaque:
                return False
        except Unreadable:  # too many terms: by values
            pass
        if a.atoms & {INFINITY} or b.atoms & {INFINITY}:
            return False
        self.tier = "symbolic"
        return agree(a, b)

    def scalars(self, gold: Scalar, found: Scalar) -> bool:
        a, b = gold.expr, found.expr
        units = [unit_of(s.unit) if s.unit else None for s in (gold, found)]
        if units[0] is not None and units[1] is not None and units[0] != units[1]:
            if not self.permissive or units[0][0] != units[1][0]:
                return False
            return self.equal(a * number(units[0][1]), b * number(units[1][1]))
        if (
            gold.unit
            and not found.unit
            and (letter := Atom(gold.unit.strip())) in b.symbols
            and letter not in a.symbols
        ):
            b = b.without(letter) or b  # 10 \text{ m} against 10m
        a, b = self._bare(a, b, DEGREE)
        pct = [e.without(PERCENT) for e in (a, b)]
        if pct[0] is not None or pct[1] is not None:
            if pct[0] is not None and pct[1] is not None:
                return self.equal(pct[0], pct[1])
            hundredth = number(Fraction(1, 100))
            one, two = (pct[0], b) if pct[0] is not None else (pct[1], a)
            assert one is not None
            return self.equal(one, two) or self.equal(one * hundredth, two)
        return (
            self.equal(a, b)
            or (self.permissive and self._rounded(a, gold, b, found))
            or (not self.boxed and _long_decimal(a, b, found))
        )

    @staticmethod
    def _bare(a: Expr, b: Expr, unit: Atom) -> tuple[Expr, Expr]:
        """Without a unit that all terms of one have."""
        return a.without(unit) or a, b.without(unit) or b

    def _rounded(self, a: Expr, gold: Scalar, b: Expr, found: Scalar) -> bool:
        """A decimal that is the other value correctly rounded."""
        x, y = real(a), real(b)
        if x is None or y is None or (a.rational is not None and a.rational.denominator == 1):
            return False
        if (
            found.decimals is not None
            and b.rational is not None
            and gold.decimals is None
            and _significant(b.rational, found.decimals) >= 3
            and abs(x - y) <= 0.5 * 10.0**-found.decimals * (1 + 1e-9)
        ):
            return True
        return bool(
            gold.decimals
            and a.rational is not None
            and (found.decimals is None or found.decimals > gold.decimals)
            and abs(x - y) <= 0.5 * 10.0**-gold.decimals * (1 + 1e-9)
            and _significant(a.rational, gold.decimals) >= 3
        )

    # -- values

    def same(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Equation) or isinstance(found, Equation):
            return self._equations(gold, found)
        if isinstance(gold, Items) and not gold.ordered and len(gold.items) == 1 and not isinstance(found, Items):
            return self.same(gold.items[0], found)
        if isinstance(found, Items) and not found.ordered and len(found.items) == 1 and not isinstance(gold, Items):
            return self.same(gold, found.items[0])
        if isinstance(gold, Scalar) and isinstance(found, Scalar):
            return self.scalars(gold, found)
        if isinstance(gold, Text) and isinstance(found, Text):
            return gold.text == found.text
        if isinstance(gold, Text) and isinstance(found, Scalar):
            return _is_letter(found, gold.text)
        if isinstance(gold, Scalar) and isinstance(found, Text):
            return _is_letter(gold, found.text)
        if isinstance(gold, Based) or isinstance(found, Based):
            return self._based(gold, found)
        if isinstance(gold, Region) or isinstance(found, Region):
            one, two = as_region(gold), as_region(found)
            return one is not None and two is not None and self._regions(one, two)
        if isinstance(gold, Matrix) or isinstance(found, Matrix):
            return self._matrices(gold, found)
        if isinstance(gold, Ratio) or isinstance(found, Ratio):
            return self._ratios(gold, found)
        if isinstance(gold, Inequality) and isinstance(found, Inequality):
            return gold.op == found.op and self._proportional(
                gold.difference, found.difference, positive=gold.op != "!="
            )
        if isinstance(gold, Items) and isinstance(found, Items):
            return self._items(gold, found)
        return False

    def _each(self, a: Sequence[Any], b: Sequence[Any]) -> bool:
        return len(a) == len(b) and all(self.same(x, y) for x, y in zip(a, b, strict=True))

    def _any_order(self, a: Sequence[Any], b: Sequence[Any]) -> bool:
        if len(a) != len(b) or len(a) > 60:
            return False
        left = list(b)
        for x in a:
            k = next((k for k, y in enumerate(left) if self.same(x, y)), None)
            if k is None:
                return False
            del left[k]
        return True

    def _items(self, gold: Items, found: Items) -> bool:
        self.inside += 1
        try:
            return self._entries(gold, found)
        finally:
            self.inside -= 1

    def _entries(self, gold: Items, found: Items) -> bool:
        if gold.ordered and found.ordered:
            return (gold.ends == found.ends or (self.permissive and len(gold.items) > 2)) and self._each(
                gold.items, found.items
            )
        if gold.ordered:
            if found.kind == "set":
                return self.permissive and gold.kind == "tuple" and self._each(gold.items, found.items)
            pairs = [(v.name, v.parts[-1]) for v in found.items if isinstance(v, Equation) and v.name]
            if len(pairs) == len(found.items) and len({name for name, _ in pairs}) == len(pairs):
                return gold.kind == "tuple" and self._each(
                    gold.items, [v for _, v in sorted(pairs, key=lambda p: p[0])]
                )
            return gold.kind == "tuple" and self._each(gold.items, found.items)  # 3, 5 for the point (3, 5)
        if found.ordered:
            names = [(v.name, v.parts[-1]) for v in gold.items if isinstance(v, Equation) and v.name]
            if names and len(names) == len(gold.items) and len({n for n, _ in names}) == len(names):
                return found.kind == "tuple" and self._each(
                    [v for _, v in sorted(names, key=lambda p: p[0])], found.items
                )
            plain = len(found.items) > 2 or found.ends in ("()", "[]")
            return (
                self.permissive
                and plain
                and (
                    self._each(gold.items, found.items)
                    or (found.ends == "[]" and self._any_order(gold.items, found.items))
                )
            )
        one, two = assigned(gold.items), assigned(found.items)
        if gold.kind == "set" or found.kind == "set" or self.permissive:
            one, two = self._distinct(one), self._distinct(two)
        if not self.permissive and all(isinstance(v, Text) and len(v.text) > 1 for v in (*one, *two)):
            return self._each(one, two)  # words: "put in order"
        return self._any_order(one, two)

    def _distinct(self, values: Sequence[Any]) -> list[Any]:
        out: list[Any] = []
        for v in values[:60]:
            if not any(self.same(v, w) for w in out):
                out.append(v)
        return out + list(values[60:])

    def _equations(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Equation) and isinstance(found, Equation):
            if gold.name and found.name:
                if gold.name == found.name or _same_name(gold.name, found.name):
                    return self.same(gold.parts[-1], found.parts[-1])
                if self.permissive and not self.inside and self.same(gold.parts[-1], found.parts[-1]):
                    return True
            if len(gold.parts) == len(found.parts) == 2 and all(
                isinstance(p, Scalar) for p in (*gold.parts, *found.parts)
            ):
                one, two = (e.parts[0].expr - e.parts[1].expr for e in (gold, found))
                return self._proportional(one, two, positive=False)
            return not gold.name and not found.name and self._each(gold.parts, found.parts)
        if isinstance(gold, Equation):
            if gold.name or _free(gold.parts[0]) >= 2:
                return self.same(gold.parts[-1], found)
            if all(_free(p) == 0 for p in gold.parts):
                return any(self.same(p, found) for p in gold.parts)  # 0.56 = 56\%
            return False
        assert isinstance(found, Equation)
        if isinstance(gold, Items) and gold.ordered and found.name and not isinstance(found.parts[-1], Items):
            return False
        if found.name:
            return all(self.same(gold, p) for p in found.parts[1:])
        if all(_free(p) == 0 for p in found.parts):  # 2 + 3 = 5: every part has to be right
            return all(self.same(gold, p) for p in found.parts)
        if _free(found.parts[0]) >= 2 or self.permissive:
            return isinstance(gold, Scalar) and _free(gold) == 0 and self.same(gold, found.parts[-1])
        return False

    def _proportional(self, a: Expr, b: Expr, positive: bool) -> bool:
        """Whether a is a non-zero (positive) constant times b: the same equation."""
        if not a.num or not b.num:
            return not a.num and not b.num
        if a.symbols != b.symbols:
            return False
        mono = next(iter(sorted(a.num, key=mono_key)))
        if mono in b.num and a.den == b.den:
            ratio = b.num[mono] / a.num[mono]
            if a.opaque or b.opaque:
                return (ratio > 0 or not positive) and self.equal(a * number(ratio), b)
            if (ratio > 0 or not positive) and (a * number(ratio)).same(b):
                return True
        if positive:
            return False
        quotient = a / b if a.den is ONE else b / a
        lead = mono_key
        first, second = (min(p, key=lead) for p in (a.num, b.num))
        c = Expr({second: b.num[second]}) / Expr({first: a.num[first]})  # a constant factor may hold roots
        return not c.symbols and bool(quotient.num) and (a * c).same(b)

    def _based(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Based) and isinstance(found, Based):
            return gold.base == found.base and gold.digits == found.digits
        if isinstance(gold, Based) and isinstance(found, Scalar) and found.expr.rational is not None:
            return digits(found.expr.rational) == gold.digits
        if isinstance(found, Based) and isinstance(gold, Scalar) and gold.expr.rational is not None:
            return self.permissive and digits(gold.expr.rational) == found.digits
        return False

    def _regions(self, a: Region, b: Region) -> bool:
        one, two = merged(a.spans).spans, merged(b.spans).spans
        if len(one) != len(two):
            return False

        def end(x: Expr | None, y: Expr | None) -> bool:
            return x is None and y is None if x is None or y is None else self.equal(*self._bare(x, y, DEGREE))

        return all(
            s[1] == t[1] and s[3] == t[3] and end(s[0], t[0]) and end(s[2], t[2]) for s, t in zip(one, two, strict=True)
        )

    def _matrices(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Matrix) and isinstance(found, Matrix):
            if len(gold.rows) != len(found.rows) and self.permissive and 1 in (len(gold.rows), len(gold.rows[0])):
                return self._each([x for r in gold.rows for x in r], [x for r in found.rows for x in r])
            return len(gold.rows) == len(found.rows) and all(
                self._each(x, y) for x, y in zip(gold.rows, found.rows, strict=True)
            )
        matrix, other = (gold, found) if isinstance(gold, Matrix) else (found, gold)
        assert isinstance(matrix, Matrix)
        flat = [x for r in matrix.rows for x in r]
        vector = 1 in (len(matrix.rows), len(matrix.rows[0]))
        if self.permissive and vector and isinstance(other, Items) and other.kind != "set":
            return self._each(flat, other.items) if matrix is gold else self._each(other.items, flat)
        return len(flat) == 1 and (self.same(flat[0], found) if matrix is gold else self.same(gold, flat[0]))

    def _ratios(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Ratio) and isinstance(found, Ratio) and self._each(gold.items, found.items):
            return True
        one, two = (_quotient(v) for v in (gold, found))
        if not self.permissive and not (_is_fraction(gold, found) or _is_fraction(found, gold)):
            return False
        return one is not None and two is not None and self.equal(one, two)


def _long_decimal(gold: Expr, found: Expr, written: Scalar) -> bool:
    """0.142857142857 for 1/7: nine digits and more of a value that no decimal ends, rounded or cut off."""
    if written.decimals is None or found.rational is None or _significant(found.rational, written.decimals) < 9:
        return False
    if gold.rational is not None and 10**MAX_DECIMALS % gold.rational.denominator == 0:
        return False  # it ends, and is something else
    value = real(gold)
    if value is None:
        return False
    missing = math.copysign(1.0, value) * (value - float(found.rational))
    unit, noise = 10.0**-written.decimals, 4e-16 * abs(value)
    return -0.5 * unit - noise <= missing < unit + noise


def _quotient(v: Value) -> Expr | None:
    if isinstance(v, Scalar):
        return v.expr
    if isinstance(v, Ratio) and len(v.items) == 2 and all(isinstance(x, Scalar) and x.expr.num for x in v.items):
        quotient: Expr = v.items[0].expr / v.items[1].expr
        return quotient
    return None


def _is_fraction(ratio: Value, fraction: Value) -> bool:
    """Whether one may be the other as a fraction: 3:4 in lowest terms, and a fraction that is neither a decimal nor whole."""
    if not (isinstance(ratio, Ratio) and isinstance(fraction, Scalar) and len(ratio.items) == 2):
        return False
    terms = [
        x.expr.rational if isinstance(x, Scalar) and not x.unit and x.decimals is None else None for x in ratio.items
    ]
    q = fraction.expr.rational
    return (
        q is not None
        and q.denominator > 1
        and not fraction.unit
        and fraction.decimals is None
        and terms == [q.numerator, q.denominator]
    )


def _significant(x: Fraction, decimals: int) -> int:
    """Digits of a decimal without leading zeros."""
    return len(str(abs(x.numerator) * 10**decimals // x.denominator).lstrip("0"))


def _is_letter(v: Scalar, text: str) -> bool:
    """Whether an expression is only the letter that a text is: A in a list of letters."""
    names = list(v.expr.symbols)
    return len(names) == 1 and names[0].key.casefold() == text and v.expr.same(symbol(names[0]))


def _free(v: Any) -> int:
    """Number of symbols of an expression; other values count as having none."""
    return len(v.expr.symbols) if isinstance(v, Scalar) else 0


def _same_name(a: str, b: str) -> bool:
    """f(x) and f, angle ABC and ABC name the same."""

    def bare(x: str) -> str:
        return re.sub(r"\(\w\)$", "", re.sub(r"^(?:m?angle|triangle|overline)", "", x.replace(" ", "")))

    return bare(a).casefold() == bare(b).casefold() if len(bare(a)) > 1 else bare(a) == bare(b)


def assigned(items: Sequence[Any]) -> Sequence[Any]:
    """x = 1, x = 2 is 1, 2: values where one name stands for all."""
    names = {v.name for v in items if isinstance(v, Equation)}
    if len(names) == 1 and "" not in names and all(isinstance(v, Equation) for v in items):
        return [v.parts[-1] for v in items]
    return items
