r"""The answer of a mathematical solution, checked in three tiers: text, exact values, symbols.

1. ``string``: both answers are the same after cleaning (``\dfrac`` is ``\frac``, blanks, ``$``, Unicode).
2. ``exact``: both are read to exact values (:mod:`rlkit.verifier.answers`) and compared in the field of rationals, roots, pi and variables;
   tuples, sets, intervals, matrices and equations entry by entry. Nothing is rounded.
3. ``symbolic``: values with functions (sin, log, nested roots) are compared to 50 digits at sample points.

Where the answer is looked for, and what counts as one, says :mod:`rlkit.verifier.finding`. What none of the tiers can read (prose,
a sum or an integral that was not worked out) is ``unreadable`` and wrong. Every step is bounded by the length of the text.

What is accepted, in both modes:

* any form of the same value: 0.5, 1/2, ``\frac12``, ``1\frac{3}{4}`` and 7/4, ``1.2\times10^3`` and 1200, ``\sqrt{12}`` and ``2\sqrt3``;
* a unit, a degree sign or a currency sign on one side only; two known units must be the same one;
* 50% against 50 (the sign as a unit, as references write it) and against 0.5 (its value); 0.5 against 50 is wrong;
* ``x=5`` against 5, and an interval against its inequality; the same equation multiplied by a constant;
* lists and sets in any order, tuples and matrices in theirs; (1, 2] is not [1, 2);
* 1,234 and 1 234 are one number, the first not inside brackets or where the reference is a list;
* outside of a box, where nothing says how exact the answer is to be, nine and more digits of a value that no decimal ends:
  0.142857142857 for 1/7. ``\boxed{0.142857142857}`` is wrong.

The reference may hold what a response may not: ``204_5`` accepts 204 (the question states the base), but 204 does not accept ``204_5``. A
response with several candidates (1 or 2) is wrong where the reference has one; of several boxes the last one counts.

``mode="permissive"`` accepts in addition: the correct rounding to at least three significant digits of a reference that is no integer, and
an exact value or longer decimal that rounds to a decimal reference; another name (``y=5`` for ``x=5``); tuples for lists, column vectors
and sets and the other way round; 1:2 for 1/2 or 2:4; units of the same dimension (60 minutes, 1 hour); a decimal comma.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rlkit.errors import ConfigError
from rlkit.verifier import answers
from rlkit.verifier.answers import (
    DEGREE,
    INFINITY,
    PERCENT,
    Atom,
    Based,
    Equation,
    Expr,
    Inequality,
    Items,
    Matrix,
    Ratio,
    Reader,
    Region,
    Scalar,
    Text,
    Unreadable,
    Value,
)
from rlkit.verifier.finding import EXTRACT, MAX_RESPONSE, boxes, extract_answer, find

Mode = Literal["strict", "permissive"]
Tier = Literal["string", "exact", "symbolic"]
Reason = Literal["equal", "different", "no_answer", "truncated", "unreadable", "refused"]
MAX_DECIMALS = 60  # after which a decimal is taken not to end


@dataclass(frozen=True)
class Verdict:
    """What was found and why it counts or not.

    ``tier`` decided (None if there was nothing to compare). ``reason``: equal, different; no_answer; truncated (finish "length" and no
    complete answer); unreadable (no tier understands the answer, or the reference); refused (too long for an answer).
    ``way`` found the answer (one of ``KINDS``; None if none did).
    """

    correct: bool
    extracted: str | None
    gold: str
    tier: Tier | None
    reason: Reason
    way: str | None = None


@functools.lru_cache(maxsize=8192)
def _gold(text: str) -> str:
    """A bare reference from a bare one or a whole solution (GSM8K's ``#### 72``, MATH's boxed one)."""
    return (extract_answer(text, ("boxed", "hash") + (("line",) if len(text) > 40 else ())) or text).strip()


# ----------------------------------------------------------------------------------------------------------------------- comparison


class _Comparison:
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
        return answers.agree(a, b)

    def scalars(self, gold: Scalar, found: Scalar) -> bool:
        a, b = gold.expr, found.expr
        units = [answers.unit_of(s.unit) if s.unit else None for s in (gold, found)]
        if units[0] is not None and units[1] is not None and units[0] != units[1]:
            if not self.permissive or units[0][0] != units[1][0]:
                return False
            return self.equal(a * answers.number(units[0][1]), b * answers.number(units[1][1]))
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
            hundredth = answers.number(Fraction(1, 100))
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
        x, y = answers._real(a), answers._real(b)
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
            one, two = _as_region(gold), _as_region(found)
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
        one, two = _assigned(gold.items), _assigned(found.items)
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
        mono = next(iter(sorted(a.num, key=answers._mono_key)))
        if mono in b.num and a.den == b.den:
            ratio = b.num[mono] / a.num[mono]
            if a.opaque or b.opaque:
                return (ratio > 0 or not positive) and self.equal(a * answers.number(ratio), b)
            if (ratio > 0 or not positive) and (a * answers.number(ratio)).same(b):
                return True
        if positive:
            return False
        quotient = a / b if a.den is answers.ONE else b / a
        lead = answers._mono_key
        first, second = (min(p, key=lead) for p in (a.num, b.num))
        c = Expr({second: b.num[second]}) / Expr({first: a.num[first]})  # a constant factor may hold roots
        return not c.symbols and bool(quotient.num) and (a * c).same(b)

    def _based(self, gold: Value, found: Value) -> bool:
        if isinstance(gold, Based) and isinstance(found, Based):
            return gold.base == found.base and gold.digits == found.digits
        if isinstance(gold, Based) and isinstance(found, Scalar) and found.expr.rational is not None:
            return answers._digits(found.expr.rational) == gold.digits
        if isinstance(found, Based) and isinstance(gold, Scalar) and gold.expr.rational is not None:
            return self.permissive and answers._digits(gold.expr.rational) == found.digits
        return False

    def _regions(self, a: Region, b: Region) -> bool:
        one, two = answers.merged(a.spans).spans, answers.merged(b.spans).spans
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
        if not self.permissive:
            return False
        one, two = (_quotient(v) for v in (gold, found))
        return one is not None and two is not None and self.equal(one, two)


def _long_decimal(gold: Expr, found: Expr, written: Scalar) -> bool:
    """0.142857142857 for 1/7: nine digits and more of a value that no decimal ends, rounded or cut off."""
    if written.decimals is None or found.rational is None or _significant(found.rational, written.decimals) < 9:
        return False
    if gold.rational is not None and 10**MAX_DECIMALS % gold.rational.denominator == 0:
        return False  # it ends, and is something else
    value = answers._real(gold)
    if value is None:
        return False
    missing = math.copysign(1.0, value) * (value - float(found.rational))
    unit, noise = 10.0**-written.decimals, 4e-16 * abs(value)
    return -0.5 * unit - noise <= missing < unit + noise


def _quotient(v: Value) -> Expr | None:
    if isinstance(v, Scalar):
        return v.expr
    if isinstance(v, Ratio) and len(v.items) == 2 and all(isinstance(x, Scalar) and x.expr.num for x in v.items):
        return v.items[0].expr / v.items[1].expr
    return None


def _significant(x: Fraction, decimals: int) -> int:
    """Digits of a decimal without leading zeros."""
    return len(str(abs(x.numerator) * 10**decimals // x.denominator).lstrip("0"))


def _is_letter(v: Scalar, text: str) -> bool:
    """Whether an expression is only the letter that a text is: A in a list of letters."""
    names = list(v.expr.symbols)
    return len(names) == 1 and names[0].key.casefold() == text and v.expr.same(answers.symbol(names[0]))


def _free(v: Any) -> int:
    """Number of symbols of an expression; other values count as having none."""
    return len(v.expr.symbols) if isinstance(v, Scalar) else 0


def _same_name(a: str, b: str) -> bool:
    """f(x) and f, angle ABC and ABC name the same."""

    def bare(x: str) -> str:
        return re.sub(r"\(\w\)$", "", re.sub(r"^(?:m?angle|triangle|overline)", "", x.replace(" ", "")))

    return bare(a).casefold() == bare(b).casefold() if len(bare(a)) > 1 else bare(a) == bare(b)


def _assigned(items: Sequence[Any]) -> Sequence[Any]:
    """x = 1, x = 2 is 1, 2: values where one name stands for all."""
    names = {v.name for v in items if isinstance(v, Equation)}
    if len(names) == 1 and "" not in names and all(isinstance(v, Equation) for v in items):
        return [v.parts[-1] for v in items]
    return items


def _as_region(v: Value) -> Region | None:
    return Reader()._as_region(v) if isinstance(v, Items | Region) else None


# --------------------------------------------------------------------------------------------------------------------- the verifier


@functools.lru_cache(maxsize=8192)
def _cleaned(text: str) -> tuple[str, str] | None:
    """Compact text and its words, or None if it is too long."""
    try:
        s = answers.clean(text)
    except Unreadable:
        return None
    return answers.compact(s), answers.words(s)


_INTEGER = re.compile(r"-?\d{1,30}")
_GROUPS = re.compile(r"\d,\d{3}(?!\d)")


def _readings(text: str, gold: bool) -> list[Value]:
    """The meanings of a text: 1,234 is one number; in brackets, or if the reference is a list, two."""
    if not _GROUPS.search(text):
        choices = [True]
    elif re.search(r"[(\[]|\\[{l]", text):
        choices = [False] if gold or ", " not in text else [False, True]
    elif gold:
        choices = [", " not in text]
    else:
        choices = [True, False]
    values = (answers.read(text, thousands) for thousands in choices)
    return [v for v in values if v is not None]


def _choice(text: str) -> str | None:
    """The letter of a multiple choice: A, (A), \\textbf{(A)}, (A) 12, A. 12, or None."""
    found = re.fullmatch(r"\(?([a-j])(?:\)|[.):](?=\s|$))(.{0,200})|([a-j])", text, re.DOTALL)
    if found is None:
        return None
    if found[2] and re.search(r"^\s*(?:[,;/&]|or\b|and\b)|\([a-j]\)", found[2]):
        return None  # several letters
    return found[1] or found[3]


def _compare(found: str, gold: str, mode: Mode, boxed: bool) -> tuple[bool, Tier | None, Reason]:
    """Whether the answer ``found`` is the reference ``gold``; outside of a box, a long decimal may stand for a fraction."""
    if _INTEGER.fullmatch(found) and _INTEGER.fullmatch(gold):
        if found == gold:
            return True, "string", "equal"
        same = int(found) == int(gold)
        return same, "exact", "equal" if same else "different"
    one, two = _cleaned(gold), _cleaned(found)
    if one is None or two is None:
        return found == gold, "string", "equal" if found == gold else "refused"
    if not one[0]:
        raise ConfigError(f"the reference answer {gold!r} has nothing to compare; correct the data.")
    if one[0] == two[0]:
        return True, "string", "equal"
    letter = re.fullmatch(r"\(?([a-j])\)?", one[1])
    if letter and re.search(rf"{letter[1].upper()}", gold):  # a choice; lower case letters are variables
        right = _choice(two[1]) == letter[1]
        return right, "string", "equal" if right else "different"
    if "\\" in one[0] + two[0] and answers.untexted(one[0]) == answers.untexted(two[0]):
        return True, "string", "equal"
    words = re.search(r"\\(?:text|mbox|math[rb])|[A-Za-z]{4}", one[0]) is not None
    if (words or re.fullmatch(r"[a-z]{3,}", one[1])) and one[1] == two[1] and not re.search(r"\d \d", two[1]):
        return True, "string", "equal"
    label = re.fullmatch(
        r"(?:\\(?:text|mathrm|textbf|mathbf)\s?\{)?\(([A-J])\)\}?(?=[\s\d\\-])(.{1,300})", two[0], re.DOTALL
    )
    texts = [found, label[2]] if label else [found]  # (B) 12
    comparison = _Comparison(mode, boxed)
    golds = _readings(gold, True)
    readings = [v for text in texts for v in _readings(text, False)]
    if mode == "permissive" and re.fullmatch(r"-?\d{1,9},\d{1,2}", two[0]):
        readings += _readings(two[0].replace(",", "."), False)
    undecided = not golds or not readings
    answers.WORK.begin()
    for g in golds:
        for v in readings:
            try:
                if comparison.same(g, v):
                    return True, comparison.tier, "equal"
            except Unreadable:
                undecided = True
    if not undecided:
        return False, comparison.tier, "different"
    return False, "symbolic" if golds and readings else "string", "unreadable"


@functools.lru_cache(maxsize=16_384)
def _decide(found: str, gold: str, mode: Mode, boxed: bool = True) -> tuple[bool, Tier | None, Reason]:
    return _compare(found, gold, mode, boxed)


def same_answer(answer: str, truth: str, mode: Mode = "strict") -> bool:
    """Whether a final answer means the same as the reference; equal texts always do."""
    return answer.strip() == truth.strip() or _decide(answer.strip(), truth.strip(), mode)[0]


def _golds(answer: Any) -> list[str]:
    """The references of a row: a list holds alternatives, any of which counts.

    Raises:
        ValueError: there is none: an error of the data, not of the response.
    """
    several = answer if isinstance(answer, list | tuple) else [answer]
    golds = [_gold(str(a).strip()) for a in several if a is not None and str(a).strip()]
    if not golds:
        raise ConfigError("the row has no reference answer; fill the data's answer column or drop the row.")
    return golds


def verify(
    response: str, answer: Any, *, finish: str = "stop", mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> Verdict:
    r"""Compares the response's final answer with the reference.

    ``answer`` may be a bare answer, a whole solution (GSM8K's ``#### 72``, MATH's boxed one), or a list of answers any of which counts.
    ``finish`` "length": the response was cut off; without a complete answer it is ``truncated``, not ``no_answer``.

    Raises:
        ValueError: no reference answer, an unknown mode, or an unknown way to extract.
    """
    if mode not in ("strict", "permissive"):
        raise ConfigError(f"the reward `math` has no mode {mode!r}; it is strict or permissive.")
    golds = _golds(answer)
    found = find(response, extract, finish)
    if found is None:
        return Verdict(False, None, golds[0], None, "truncated" if finish == "length" else "no_answer")
    joined = _joined(response, found.text, golds) if found.way == "boxed" else []
    first: Verdict | None = None
    for candidate, gold in ((f, g) for f in (found.text, *joined) for g in golds):
        short = len(candidate) <= 4 * answers.MAX_TEXT
        correct, tier, reason = (
            _decide(candidate, gold, mode, found.way == "boxed") if short else (candidate == gold, "string", "refused")
        )
        verdict = Verdict(correct, candidate, gold, tier, reason if not correct else "equal", found.way)
        if correct:
            return verdict
        first = first or verdict
    assert first is not None
    return first


_JOIN = re.compile(
    r"[\s$.,;]*(?:\\\)|\\\]|\\[(\[])?[\s$,;]*(?:and|or|,|\\text\{\s*(?:and|or)\s*\})?[\s$]*(?:\\[(\[])?[\s$]*"
)


def _joined(response: str, found: str, golds: Sequence[str]) -> list[str]:
    r"""``\boxed{2} and \boxed{3}`` as one list, tried only where the reference has several values."""
    if response.count("boxed") < 2 or not any(isinstance(v, Items) for g in golds for v in _readings(g, True)):
        return []
    contents: list[str] = []
    left = None
    for start, end, content in boxes(response[-MAX_RESPONSE:]):
        if left is not None and not _JOIN.fullmatch(response[-MAX_RESPONSE:][end:left][:60]):
            break
        contents.insert(0, content)
        left = start
    return [", ".join(contents)] if 1 < len(contents) <= 20 and contents[-1] == found else []


def vote_key(text: str) -> str:
    """A text that different ways of writing a final answer share, to count votes (maj@k): 0.5 and ``\\frac12`` vote for the same.

    Equal keys mean equal answers; of what is only equal by value (sines, inequalities) the ways of writing may keep different keys.
    """
    cleaned = _cleaned(text.strip())
    values = _readings(text.strip(), True)
    key = _value_key(values[0]) if values else None
    return key or (cleaned[0] if cleaned else text.strip())


def _value_key(v: Any) -> str | None:
    if isinstance(v, Equation) and v.name:
        return _value_key(v.parts[-1])
    if isinstance(v, Scalar):
        expr = v.expr.without(DEGREE) or v.expr
        return (expr.without(PERCENT) or expr).key
    if isinstance(v, Text):
        return v.text
    if isinstance(v, Items):
        keys = [_value_key(x) for x in _assigned(v.items)]
        if any(k is None for k in keys):
            return None
        known = [k for k in keys if k is not None]
        return v.ends[0] + ",".join(known) + v.ends[1] if v.ordered else "{" + ",".join(sorted(known)) + "}"
    return None


def gold_against_itself(
    rows: Iterable[Mapping[str, Any]], *, mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> list[dict[str, Any]]:
    """Rows whose reference answer is not accepted as a response: each ``{"row", "id", "answer", "as", "reason"}``.

    The answer is given boxed and in every way of ``extract``; ``as`` names the one that failed. Rows need "answer"; "id" is optional.
    """
    written: dict[str, Callable[[str], str]] = {
        "boxed": lambda a: rf"The result is $\boxed{{{a}}}$.",
        "tag": lambda a: f"<think> so </think> <answer> {a} </answer>",
        "line": lambda a: f"So we are done.\nAnswer: {a}",
        "hash": lambda a: f"That is all.\n#### {a}",
        "closing": lambda a: f"Therefore, the result is\n\\[{a}\\]",
        "number": lambda a: f"This makes {a}",
        "whole": str,
    }
    bad: list[dict[str, Any]] = []
    for k, row in enumerate(rows):
        answer = row.get("answer")
        try:
            golds = _golds(answer)
        except ValueError:
            bad.append({"row": k, "id": row.get("id", k), "answer": answer, "as": "boxed", "reason": "no_reference"})
            continue
        for kind in dict.fromkeys(["boxed", *extract]):
            if kind == "number" and not re.fullmatch(r"-?[\d.,]+", golds[0]):
                continue
            verdict = verify(written[kind](" ".join(golds[0].split())), answer, mode=mode, extract=[kind])
            if not verdict.correct:
                bad.append({"row": k, "id": row.get("id", k), "answer": answer, "as": kind, "reason": verdict.reason})
                break
    return bad
