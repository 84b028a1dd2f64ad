"""Tokens to an expression, by recursive descent."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from rlkit.verifier.algebra import (
    DEGREE,
    EULER,
    INFINITY,
    MAX_BITS,
    MAX_DEPTH,
    PERCENT,
    PI,
    Atom,
    Expr,
    I,
    Unreadable,
    function,
    number,
    power,
    symbol,
)
from rlkit.verifier.tokens import CALLS, GREEK, Token, name_of

ALIASES = {
    "ln": "log",
    "lg": "log",
    "arsinh": "asinh",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "ctg": "cot",
    "tg": "tan",
}


class Parser:
    """Recursive descent over tokens; juxtaposition multiplies, ``3\\frac{1}{2}`` is a mixed number."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.i = tokens, 0
        self.bars = 0  # absolute values that are open: there a bar closes

    def peek(self) -> str:
        return name_of(self.tokens[self.i]) if self.i < len(self.tokens) else ""

    def token(self, ahead: int = 0) -> Token | None:
        return self.tokens[self.i + ahead] if self.i + ahead < len(self.tokens) else None

    def take(self, kind: str) -> None:
        if self.peek() != kind:
            raise Unreadable(f"expected {kind!r}")
        self.i += 1

    def expression(self, depth: int) -> Expr:
        if depth > MAX_DEPTH:
            raise Unreadable("too deeply nested")
        total = self.term(depth)
        while self.peek() in ("+", "-"):
            sign = self.peek()
            self.i += 1
            term = self.term(depth)
            total = total + term if sign == "+" else total - term
        return total

    def signs(self) -> int:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.peek() == "-" else sign
            self.i += 1
        return sign

    def term(self, depth: int) -> Expr:
        sign = self.signs()
        product = self.factor(depth)
        while True:
            name = self.peek()
            if name in ("*", "/"):
                self.i += 1
                inner = self.signs()
                factor = self.factor(depth)
                product = product * factor if name == "*" else product / factor
                sign *= inner
            elif self.starts_factor():
                t = self.token()
                if t is not None and t.kind == "number" and self.tokens[self.i - 1].kind in ("number", ")"):
                    raise Unreadable("two numbers side by side")
                product = product * self.factor(depth)
            else:
                return product if sign > 0 else -product

    def starts_factor(self) -> bool:
        name = self.peek()
        t = self.token()
        if t is None:
            return False
        if t.kind == "cmd":
            return (
                name
                in (
                    "frac",
                    "sqrt",
                    "pi",
                    "infty",
                    "binom",
                    "lfloor",
                    "lceil",
                    "overline",
                    "vec",
                    "circ",
                    "triangle",
                    "angle",
                    "circ",
                )
                or name in GREEK
                or name in CALLS
            )
        return t.kind in ("number", "letter", "(", "[", "{") or (t.kind == "|" and not self.bars)

    def factor(self, depth: int) -> Expr:
        base = self.base(depth)
        while True:
            name = self.peek()
            if name == "^" or (name == "*" and (t := self.token(1)) is not None and t.kind == "*"):
                self.i += 1 if name == "^" else 2
                if self.degree_sign():
                    base = base * symbol(DEGREE)
                    continue
                base = power(base, self.exponent(depth))
            elif name == "°" or name == "circ":
                self.i += 1
                base = base * symbol(DEGREE)
            elif name == "%":
                self.i += 1
                base = base * symbol(PERCENT)
            elif name == "!":
                self.i += 1
                n = base.rational
                if n is not None and n.denominator == 1 and 0 <= n <= 1000:
                    base = number(math.factorial(int(n))) if n <= 400 else function("factorial", base)
                else:
                    base = function("factorial", base)
            else:
                return base

    def degree_sign(self) -> bool:
        if self.peek() == "circ":
            self.i += 1
            return True
        if [name_of(t) for t in self.tokens[self.i : self.i + 3]] == ["{", "circ", "}"]:
            self.i += 3
            return True
        return False

    def group(self, depth: int) -> Expr:
        """What stands in the braces that begin here."""
        self.i += 1
        value = self.expression(depth + 1)
        self.take("}")
        return value

    def exponent(self, depth: int) -> Expr:
        if self.peek() == "{":
            return self.group(depth)
        sign = self.signs()
        value = self.base(depth + 1)
        if self.peek() == "^":  # 9^9^9 from the right
            self.i += 1
            value = power(value, self.exponent(depth + 1))
        return value if sign > 0 else -value

    def argument(self, depth: int) -> Expr:
        """A LaTeX argument: a group, or one token, and of a number one digit."""
        if self.peek() == "{":
            return self.group(depth)
        t = self.token()
        if t is not None and t.kind == "number" and len(t.text) > 1 and t.text.isdigit():
            self.tokens = [
                *self.tokens[: self.i],
                Token("number", t.text[0]),
                Token("number", t.text[1:]),
                *self.tokens[self.i + 1 :],
            ]
        return self.base(depth + 1)

    def base(self, depth: int) -> Expr:
        if depth > MAX_DEPTH:
            raise Unreadable("too deeply nested")
        t = self.token()
        if t is None:
            raise Unreadable("an expression that ends too early")
        name = name_of(t)
        self.i += 1
        if t.kind == "number":
            return self.literal(t, depth)
        if t.kind == "letter":
            return self.name(t.text, depth)
        if name in ("(", "[", "{"):
            value = self.expression(depth + 1)
            self.take({"(": ")", "[": "]", "{": "}"}[name])
            return value
        if t.kind == "|":
            self.bars += 1
            value = self.expression(depth + 1)
            self.bars -= 1
            self.take("|")
            n = value.rational
            return number(abs(n)) if n is not None else function("abs", value)
        if t.kind == "cmd":
            return self.command(name, depth)
        raise Unreadable(f"{t.text!r} in an expression")

    def literal(self, t: Token, depth: int) -> Expr:
        value = Fraction(t.text) if _small_exponent(t.text) else None
        if value is None:
            raise Unreadable("a number is too large")
        after = self.token()
        if after is not None and t.text.endswith((".",)):
            raise Unreadable("a number that ends in a point")
        if after is not None and value.denominator == 1 and t.text.isdigit():
            if (
                after.kind == "cmd"
                and after.text == "frac"
                and not (self.i >= 2 and self.tokens[self.i - 2].kind in ("^", "_"))
            ):
                mark = self.i, self.tokens
                self.i += 1
                top, bottom = self.argument(depth), self.argument(depth)
                if _proper(top, bottom):
                    return number(value) + top / bottom
                self.i, self.tokens = mark
            elif (
                after.kind == "number"
                and after.gap
                and after.text.isdigit()
                and (slash := self.token(1)) is not None
                and slash.kind == "/"
                and (below := self.token(2)) is not None
                and below.kind == "number"
                and below.text.isdigit()
                and 0 < int(after.text) < int(below.text)
            ):
                self.i += 3
                return number(value + Fraction(int(after.text), int(below.text)))
        if after is not None and after.kind == "cmd" and after.text == "overline" and "." in t.text:
            return number(value + self.repeating() / 10 ** len(t.text.split(".")[1]))  # 0.1\overline{6}
        if (
            after is not None
            and after.kind == "."
            and (bar := self.token(1)) is not None
            and name_of(bar) == "overline"
        ):
            self.i += 1
            return number(value + self.repeating())
        return number(value)

    def repeating(self) -> Fraction:
        """What the digits of ``\\overline{3}``, where the parser stands, are worth behind the point."""
        self.i += 1
        self.take("{")
        digits = self.token()
        if digits is None or not digits.text.isdigit():
            raise Unreadable("an overline over something else than digits")
        self.i += 1
        self.take("}")
        return Fraction(int(digits.text), 10 ** len(digits.text) - 1)

    def name(self, text: str, depth: int) -> Expr:
        text += self.subscript()
        while self.peek() == "'":
            self.i += 1
            text += "'"
        return symbol({"i": I, "e": EULER}.get(text) or Atom(text))

    def subscript(self) -> str:
        if self.peek() != "_":
            return ""
        self.i += 1
        t = self.token()
        if t is None:
            raise Unreadable("a subscript without content")
        self.i += 1
        if t.kind != "{":
            return "_" + t.text
        text = "_"
        while self.peek() not in ("}", ""):
            text += self.tokens[self.i].text
            self.i += 1
        self.take("}")
        return text

    def command(self, name: str, depth: int) -> Expr:
        if name == "frac":
            top = self.argument(depth)
            return top / self.argument(depth)
        if name == "binom":
            above, below = self.argument(depth), self.argument(depth)
            n, k = above.rational, below.rational
            if n is not None and k is not None and n.denominator == k.denominator == 1 and 0 <= k <= n <= 1000:
                return number(math.comb(int(n), int(k)))
            return function("binom", above, below)
        if name == "sqrt":
            degree = number(2)
            if self.peek() == "[":
                self.i += 1
                degree = self.expression(depth + 1)
                self.take("]")
            inside = self.sqrt_argument(depth)
            whole = degree.rational
            if whole is None or whole.denominator != 1 or not 1 <= whole <= 100:
                raise Unreadable("a root of this degree")
            if whole > 2 and inside.rational is None:
                return function("root", inside, degree)
            return power(inside, number(1) / degree)
        if name == "pi":
            return symbol(PI)
        if name == "infty":
            return symbol(INFINITY)
        if name in ("lfloor", "lceil"):
            value = self.expression(depth + 1)
            self.take({"lfloor": "rfloor", "lceil": "rceil"}[name])
            inner_value = value.rational
            if inner_value is not None:
                return number(math.floor(inner_value) if name == "lfloor" else math.ceil(inner_value))
            return function({"lfloor": "floor", "lceil": "ceil"}[name], value)
        if name in CALLS:
            return self.call(name, depth)
        if name in ("overline", "vec", "angle", "triangle", "bar", "hat"):
            inner = self.argument(depth) if self.peek() == "{" else self.base(depth + 1)
            return function("name_" + name, inner)
        if name in GREEK:
            return self.name("\\" + name, depth)
        raise Unreadable(f"the command \\{name}")

    def sqrt_argument(self, depth: int) -> Expr:
        t = self.token()
        if t is not None and t.kind == "number":  # \sqrt12 is written for the root of 12
            self.i += 1
            return number(Fraction(t.text)) if _small_exponent(t.text) else number(0)
        return self.argument(depth)

    def call(self, name: str, depth: int) -> Expr:
        raised: Expr | None = None
        inverse = False
        logbase = symbol(EULER) if name == "ln" else number(10)
        while self.peek() in ("^", "_"):
            if self.peek() == "_":
                self.i += 1
                logbase = self.argument(depth)
            else:
                self.i += 1
                raised = self.exponent(depth)
        if raised is not None and raised.rational == -1 and name in ("sin", "cos", "tan"):
            inverse, raised = True, None
        if self.peek() in ("(", "{", "["):
            argument = self.factor_without_power(depth)
        else:
            argument = self.factor(depth)
            while self.starts_factor() and self.peek() not in CALLS and self.peek() not in ("(", "["):
                argument = argument * self.factor(depth)
        if name == "exp":
            value = power(symbol(EULER), argument)
        elif name in ("log", "ln", "lg"):
            value = function("log", argument, logbase)
        else:
            value = function("arc" + name if inverse else ALIASES.get(name, name), argument)
        return value if raised is None else power(value, raised)

    def factor_without_power(self, depth: int) -> Expr:
        """``\\sin(x)^2`` squares the sine: the bracket alone is the argument."""
        return self.base(depth)


def _small_exponent(text: str) -> bool:
    found = re.search(r"[eE]([+-]?\d+)$", text)
    return found is None or (len(found[1]) < 6 and abs(int(found[1])) <= MAX_BITS // 8)


def _proper(top: Expr, bottom: Expr) -> bool:
    a, b = top.rational, bottom.rational
    return a is not None and b is not None and a.denominator == b.denominator == 1 and 0 < a < b
