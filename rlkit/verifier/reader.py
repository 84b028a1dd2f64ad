r"""A text to the value it stands for: lists, regions, relations, matrices and tuples, down to single expressions.

What is not understood raises :class:`Unreadable`, never a guess; length and nesting are bounded.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from rlkit.verifier.algebra import INFINITY, MAX_DEPTH, WORK, Expr, Unreadable, number, symbol
from rlkit.verifier.expressions import Parser
from rlkit.verifier.regions import as_region, complement, intersection, merged
from rlkit.verifier.spelled import NUMBER_WORDS, spelled
from rlkit.verifier.text import clean, words
from rlkit.verifier.tokens import CALLS, CONNECT, GREEK, PLAIN, Token, enclosed, name_of, split, tokenize
from rlkit.verifier.units import LARGE, NO_UNIT, SINGLE_LETTERS, UNITS, compound
from rlkit.verifier.values import Based, Equation, Inequality, Items, Matrix, Ratio, Region, Scalar, Text, Value

_WAY = {"<": 1, "le": 1, ">": -1, "ge": -1, "ne": 0}  # where the larger side stands: 1 on the right
_RELATIONS = {"=", *_WAY}
# 1 500 euros, the only number of a text.
_SPACED = re.compile(r"([^\d,;]*)(\d{1,3}(?: \d{3})+)((?:\.\d+)?(?:[^\d,;./][^\d,;]*)?)\Z")
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")

_RATIO = re.compile(r"(\d{1,9})\s?(?:to|\\(?:text|mathrm|mbox)\s?\{\s?to\s?\})\s?(\d{1,9})")


@dataclass(frozen=True)
class Reader:
    """Reads one answer. ``thousands``: 1,234 is a number (else two)."""

    thousands: bool = True

    def read(self, text: str) -> Value:
        """The value of a text.

        Raises:
            Unreadable: not an answer that can be read.
        """
        s = clean(text)
        if self.thousands:
            s = _GROUPED.sub(lambda m: m[0].replace(",", ""), s)
            s = _SPACED.sub(lambda m: m[1] + m[2].replace(" ", "") + m[3], s)
        based = _based(s)
        if based is not None:
            return based
        count, _, unit = words(s).rpartition(" ") if s[:1].isalpha() else ("", "", "")
        if count and len(unit) > 1 and unit in UNITS and (said := spelled(count)) is not None:
            return Scalar(number(said), unit)  # two and a half hours
        ratio = _RATIO.fullmatch(s)
        if ratio is not None:
            return Ratio((Scalar(number(int(ratio[1]))), Scalar(number(int(ratio[2])))))
        several = compound(s) if s[-1:].isalpha() or s[-1:] == "}" else None
        if several is not None:
            return Scalar(number(several[0]), several[1])
        if "-" in s and re.fullmatch(r"(?:\\text\s?\{)?[A-Za-z][A-Za-z -]*\}?", s):
            said = spelled(words(s))  # twenty-one
            if said is not None:
                return Scalar(number(said))
        runs = re.findall(r"[A-Za-z']+", s) if re.fullmatch(r"[A-Za-z][A-Za-z' ]*", s) else []
        if (
            len(runs) > 1
            and any(len(r) >= 3 for r in runs)
            and not any(r in CALLS or r.casefold() in PLAIN or r.casefold() in CONNECT for r in runs)
        ):
            return self._words(s)
        try:
            return self.value(tokenize(s), 0)
        except RecursionError:
            raise Unreadable("too deeply nested") from None

    def value(self, tokens: list[Token], depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise Unreadable("too deeply nested")
        while tokens and (tokens[-1].kind in (".", ",", ";", "!") and (tokens[-1].kind != "!" or len(tokens) == 1)):
            tokens = tokens[:-1]
        while tokens and (
            tokens[0].kind in ("=", ":")
            or name_of(tokens[0]) in ("approx", "therefore", "implies", "quad")
            or (tokens[0].kind == "word" and words(tokens[0].text) in ("approximately", "about", "roughly"))
        ):
            tokens = tokens[1:]
        if len(tokens) > 1 and tokens[0].kind == "word" and words(tokens[0].text) in ("minus", "negative"):
            if tokens[1].kind not in ("number", "cmd", "{", "("):
                raise Unreadable("words before a value")
            tokens = [Token("-", "-"), *tokens[1:]]
        if not tokens:
            raise Unreadable("empty")
        if len(tokens) == 1 and name_of(tokens[0]) == "emptyset":
            return Text("emptyset")
        if all(t.kind == "word" for t in tokens):
            return self._words(" ".join(t.text for t in tokens))
        if (
            (tokens[0].kind == "]" and tokens[-1].kind == "[")
            or (tokens[0].kind == "]" and tokens[-1].kind == "]")
            or (tokens[0].kind == "[" and tokens[-1].kind == "[")
        ):
            return self._french(tokens, depth)
        return (
            self._list(tokens, depth)
            or self._member(tokens, depth)
            or self._region(tokens, depth)
            or self._approximate(tokens, depth)
            or self._relation(tokens, depth)
            or self._ratio(tokens, depth)
            or self._matrix(tokens, depth)
            or self._bracket(tokens, depth)
            or self._plus_minus(tokens, depth)
            or self._scalar(tokens)
        )

    def _words(self, text: str) -> Value:
        plain = words(text)
        said = spelled(plain)
        if said is not None:
            return Scalar(number(said))
        if plain in ("all real numbers", "all reals", "all real", "the real numbers", "real numbers"):
            return Region(((None, False, None, False),))
        if plain in (
            "no solutions",
            "no real solutions",
            "no real solution",
            "there is no solution",
            "the empty set",
            "empty set",
        ):
            return Text(
                {"the empty set": "emptyset", "empty set": "emptyset"}.get(
                    plain, "no solution" if "real" not in plain else "no real solution"
                )
            )
        if "," in plain:
            return Items("list", tuple(Text(p.strip()) for p in plain.split(",") if p.strip()))
        return Text(plain)

    def _french(self, tokens: list[Token], depth: int) -> Value:
        """]1, 2[ is (1, 2)."""
        ends = ("(" if tokens[0].kind == "]" else "[") + (")" if tokens[-1].kind == "[" else "]")
        parts, _ = split(tokens[1:-1], lambda t: t.kind in (",", ";"))
        if len(parts) != 2:
            raise Unreadable("brackets do not match")
        return Items("tuple" if ends == "()" else "bracket", tuple(self.value(p, depth + 1) for p in parts), ends)

    def _list(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = split(tokens, lambda t: t.kind in (",", ";", "connect"))
        if not found:
            return None
        parts = [p for p in parts if p]
        if not parts:
            raise Unreadable("empty")
        values = [self.value(p, depth + 1) for p in parts]
        if len(values) == 1:
            return values[0]
        regions = [as_region(v) for v in values]
        connectors = {t.text for t in found if t.kind == "connect"}
        if all(r is not None for r in regions) and not all(isinstance(v, Items) for v in values):
            spans = tuple(s for r in regions if r is not None for s in r.spans)
            if "or" in connectors:
                return merged(spans)
            both = regions[0]
            for r in regions[1:]:
                both = intersection(both, r) if both is not None and r is not None else None
            if both is not None and both.spans:
                return both
            return merged(spans)
        # "x = 1, 2": the name holds for what follows
        if isinstance(values[0], Equation) and values[0].name and not any(isinstance(v, Equation) for v in values[1:]):
            values[0] = values[0].parts[-1]
        return Items(
            "list",
            tuple(item for v in values for item in (v.items if isinstance(v, Items) and v.kind == "list" else (v,))),
        )

    def _member(self, tokens: list[Token], depth: int) -> Value | None:
        """x in S is S; a set {x | condition} is its condition."""
        parts, found = split(tokens, lambda t: name_of(t) == "in" and t.kind == "cmd")
        if found and len(parts) == 2 and len(parts[0]) <= 6:
            return self.value(parts[1], depth + 1)
        if enclosed(tokens) and tokens[0].kind == "\\{":
            parts, found = split(tokens[1:-1], lambda t: t.kind in ("|", ":"))
            if len(found) == 1 and len(parts[0]) <= 5 and any(name_of(t) in _RELATIONS for t in parts[1]):
                return self.value(parts[1], depth + 1)
        return None

    def _region(self, tokens: list[Token], depth: int) -> Value | None:
        if len(tokens) == 1 and name_of(tokens[0]) == "reals":
            return Region(((None, False, None, False),))
        parts, found = split(tokens, lambda t: t.kind == "cmd" and t.text in ("cup", "cap", "setminus"))
        if not found and name_of(tokens[0]) == "reals" and len(tokens) > 2 and tokens[1].kind == "-":
            parts, found = [tokens[:1], tokens[2:]], [Token("cmd", "setminus")]
        if not found:
            return None
        values = [self.value(p, depth + 1) for p in parts]
        if all(t.text == "cup" for t in found) and all(isinstance(v, Items) and v.kind == "set" for v in values):
            return Items("set", tuple(x for v in values if isinstance(v, Items) for x in v.items))
        regions = [as_region(v) for v in values]
        if any(r is None for r in regions):
            raise Unreadable("a union of something else than intervals")
        known = [r for r in regions if r is not None]
        out = known[0]
        for t, r in zip(found, known[1:], strict=True):
            if t.text == "cup":
                out = merged(out.spans + r.spans)
            else:
                new = intersection(out, r if t.text == "cap" else complement(r))
                if new is None:
                    raise Unreadable("ends that cannot be ordered")
                out = new
        return out

    def _approximate(self, tokens: list[Token], depth: int) -> Value | None:
        """a = b ~ c: what stands before the sign is the answer."""
        parts, found = split(tokens, lambda t: t.kind == "cmd" and t.text == "approx")
        if len(parts) == 2 and parts[1] and plain_name(parts[0]):
            return self.value(parts[1], depth + 1)  # x ~ 5
        return self.value(parts[0], depth + 1) if found and parts[0] else None

    def _relation(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = split(tokens, lambda t: t.kind in _RELATIONS or (t.kind == "cmd" and t.text in _RELATIONS))
        if not found:
            return None
        if not all(parts):
            raise Unreadable("a relation without a side")
        ops = [name_of(t) for t in found]
        if all(op == "=" for op in ops):
            return self._equation(parts, depth)
        if "=" in ops:
            raise Unreadable("a mixed relation")
        if len(parts) == 2:
            return self._bound(parts, ops[0])
        if len(parts) == 3:
            return self._between(parts, ops)
        raise Unreadable("a relation of many parts")

    def _equation(self, parts: list[list[Token]], depth: int) -> Equation:
        name = plain_name(parts[0])
        sides: list[Any] = []
        for k, part in enumerate(parts):
            try:
                sides.append(self.value(part, depth + 1))
            except Unreadable:
                if k or not name:
                    raise
                sides.append(Text(name))
        if (
            not name
            and len(parts) == 2
            and plain_name(parts[1])
            and isinstance(sides[0], Scalar)
            and not sides[0].expr.symbols
        ):
            sides.reverse()
            name = plain_name(parts[1])
        if (
            not name
            and isinstance(sides[0], Items)
            and sides[0].kind == "tuple"
            and all(
                isinstance(x, Scalar) and x.expr.symbols and x.expr.same(symbol(next(iter(x.expr.symbols))))
                for x in sides[0].items
            )
        ):
            name = "".join(t.text for t in parts[0])  # (x, y) = (2, 3)
        return Equation(tuple(sides), name)

    def _bound(self, parts: list[list[Token]], op: str) -> Region | Inequality:
        """x < 3 is an interval; x < y + 1 is an inequality."""
        way, closed = _WAY[op], op in ("le", "ge")
        names = [plain_name(part) for part in parts]
        if bool(names[0]) == bool(names[1]) or (names[0] and _infinite(parts[1])):
            left, right = (self._side(part) for part in parts)
            if left.atoms & {INFINITY} or right.atoms & {INFINITY}:
                raise Unreadable("a relation with infinity")
            sign = "!=" if way == 0 else "<=" if closed else "<"
            return Inequality(sign, right - left if way >= 0 else left - right)
        bound, way = (self._side(parts[1]), way) if names[0] else (self._side(parts[0]), -way)
        if way == 0:
            return Region(((None, False, bound, False), (bound, False, None, False)))
        return Region(((None, False, bound, closed),)) if way > 0 else Region(((bound, closed, None, False),))

    def _between(self, parts: list[list[Token]], ops: list[str]) -> Region:
        """1 < x <= 3."""
        if not _WAY[ops[0]] == _WAY[ops[1]] != 0:
            raise Unreadable("a relation of many parts")
        ends = [self._side(parts[0]), self._side(parts[2])]
        shut = [op in ("le", "ge") for op in ops]
        if _WAY[ops[0]] < 0:
            ends.reverse()
            shut.reverse()
        name = plain_name(parts[1])
        if not name or re.search(r"\(.*\d", name):
            raise Unreadable("a relation of something else than a name")
        low = None if ends[0].same(-symbol(INFINITY)) else ends[0]
        high = None if ends[1].same(symbol(INFINITY)) else ends[1]
        return Region(((low, shut[0] and low is not None, high, shut[1] and high is not None),))

    def _side(self, tokens: list[Token]) -> Expr:
        v = self._scalar(tokens)
        if not isinstance(v, Scalar):
            raise Unreadable("a side that is no expression")
        return v.expr

    def _ratio(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = split(tokens, lambda t: t.kind == ":")
        if not found or not all(parts):
            return None
        return Ratio(tuple(self.value(p, depth + 1) for p in parts))

    def _matrix(self, tokens: list[Token], depth: int) -> Value | None:
        if name_of(tokens[0]) != "begin" or not _enclosed_environment(tokens):
            return None
        name = "".join(t.text for t in tokens[2 : tokens.index(next(t for t in tokens if t.kind == "}"))])
        if name not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"):
            raise Unreadable(f"the environment {name}")
        body = tokens[tokens.index(next(t for t in tokens if t.kind == "}")) + 1 :]
        if name == "array" and body and body[0].kind == "{":
            body = body[next(i for i, t in enumerate(body) if t.kind == "}") + 1 :]
        end = max(i for i, t in enumerate(body) if t.kind == "cmd" and t.text == "end")
        rows, _ = split(body[:end], lambda t: t.kind == "cmd" and t.text == "newrow")
        out = []
        for row in rows:
            cells, _ = split(row, lambda t: t.kind == "&")
            if any(cells):
                out.append(tuple(self.value(cell, depth + 1) for cell in cells))
        if not out or len({len(r) for r in out}) != 1:
            raise Unreadable("a matrix with rows of different length")
        return Matrix(tuple(out))

    def _bracket(self, tokens: list[Token], depth: int) -> Value | None:
        if not enclosed(tokens):
            return None
        first, last = name_of(tokens[0]), name_of(tokens[-1])
        if (
            first == "{"
            or (first, last) == ("langle", "rangle")
            or (first, last) == ("\\{", "\\}")
            or (first in "([" and last in ")]")
        ):
            inner = tokens[1:-1]
            if not inner:
                if first == "\\{":
                    return Text("emptyset")
                raise Unreadable("empty")
            parts, found = split(inner, lambda t: t.kind in (",", ";"))
            values = tuple(self.value(p, depth + 1) for p in parts if p)
            if first == "{" or (first, last) == ("{", "}"):
                return Items("set", values) if found else values[0]
            if first == "\\{":
                return Items(
                    "set",
                    tuple(x for v in values for x in (v.items if isinstance(v, Items) and v.kind == "list" else (v,))),
                )
            if not found:
                if first == "[" and isinstance(values[0], Items):
                    return values[0]
                single = values[0]
                return single if not isinstance(single, Items) or first == "(" else None
            if first == "[" and last == "]" and all(isinstance(v, Items) and v.ends == "[]" for v in values):
                return Matrix(tuple(v.items for v in values if isinstance(v, Items)))
            ends = "()" if first == "langle" else first + last
            return Items("tuple" if ends == "()" else "bracket", values, ends)
        return None

    def _plus_minus(self, tokens: list[Token], depth: int) -> Value | None:
        if not any(t.kind == "cmd" and t.text in ("pm", "mp") for t in tokens):
            return None

        def with_sign(up: str, down: str) -> list[Token]:
            return [
                Token(up, up, t.gap)
                if t.text == "pm" and t.kind == "cmd"
                else Token(down, down, t.gap)
                if t.text == "mp" and t.kind == "cmd"
                else t
                for t in tokens
            ]

        return Items("list", (self._scalar(with_sign("+", "-")), self._scalar(with_sign("-", "+"))))

    def _scalar(self, tokens: list[Token]) -> Value:
        unit, factor = "", number(1)
        if tokens and tokens[0].kind == "$":
            unit, tokens = "dollar", tokens[1:]
        elif len(tokens) > 2 and tokens[0].kind == "-" and tokens[1].kind == "$":
            unit, tokens = "dollar", [tokens[0], *tokens[2:]]
        if len(tokens) > 1 and tokens[-1].kind == "$":
            unit, tokens = "dollar", tokens[:-1]
        cut = next((i for i, t in enumerate(tokens) if t.kind == "word"), None)
        if cut is not None:
            tail = tokens[cut:]
            if cut == 0:
                raise Unreadable("words before a value")
            if not all(
                t.kind in ("word", "number", "^", "{", "}", "/", ".", "letter", "(", ")", "%") for t in tail
            ) or any(t.kind == "number" and t.text not in "23" for t in tail):
                raise Unreadable("words inside a value")
            beside = " ".join(t.text for t in tail)
            plain = words(beside).split()
            if len(plain) > 5 or any(w in NO_UNIT for w in plain) or plain[:1] in (["squared"], ["cubed"]):
                raise Unreadable("words beside a value")
            tokens = tokens[:cut]
            if plain and plain[0] in LARGE:
                factor, plain = number(LARGE[plain[0]]), plain[1:]
                beside = " ".join(plain)
            unit = unit or beside
        elif [t.kind for t in tokens] == ["number", "letter"] and tokens[1].gap and tokens[1].text in SINGLE_LETTERS:
            unit, tokens = tokens[1].text, tokens[:1]
        if not tokens:
            raise Unreadable("empty")
        parser = Parser(tokens)
        expr = parser.expression(0)
        if parser.i != len(parser.tokens):
            raise Unreadable(f"{parser.tokens[parser.i].text!r} in an expression")
        decimals = None
        digits = [t for t in tokens if t.kind not in ("-", "+", "%", "°")]
        if (
            len(digits) == 1
            and digits[0].kind == "number"
            and "." in digits[0].text
            and "e" not in digits[0].text.lower()
        ):
            decimals = len(digits[0].text.split(".")[1])
        return Scalar(expr * factor, unit, decimals if factor.rational == 1 else None)


@functools.lru_cache(maxsize=8192)
def read(text: str, thousands: bool) -> Value | None:
    """The value of a text (``thousands``: 1,234 is one number), or None if it cannot be read."""
    WORK.begin()
    try:
        return Reader(thousands).read(text)
    except Unreadable:
        return None


def _based(s: str) -> Based | None:
    s = s.replace("{,}", "")
    found = re.fullmatch(
        r"(-?)\s?\(?\s?(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?([0-9A-Za-z]{1,200})\}?\s?\)?\s?_"
        r"\s?\{?\s?\(?\s?(?:\\(?:text|mathrm)\s?\{)?\s?(?:base\s?)?(\d{1,2}|[a-z]{2,8})\s?\}?\s?\)?\s?\}?",
        s,
    )
    found = found or re.fullmatch(
        r"(-?)\s?([0-9A-Za-z]{1,200})\s?(?:\\text\s?\{)?\s?\(?(?:in )?base[ -](\d{1,2}|[a-z]{2,8})\s?\)?\}?", s
    )
    if not found or not re.search(r"\d", found[2]):
        return None
    base = int(found[3]) if found[3].isdigit() else NUMBER_WORDS.get(found[3], 0)
    digits = found[2].upper()
    if not 2 <= base <= 36 or any(int(c, 36) >= base for c in digits) or not (digits[0].isdigit() or len(digits) > 1):
        return None
    return Based(found[1] + (digits.lstrip("0") or "0"), base)


def _enclosed_environment(tokens: list[Token]) -> bool:
    ends = [i for i, t in enumerate(tokens) if t.kind == "cmd" and t.text == "end"]
    begins = [i for i, t in enumerate(tokens) if t.kind == "cmd" and t.text == "begin"]
    return (
        len(begins) == 1 == len(ends) and tokens[-1].kind == "}" and all(t.kind != "cmd" for t in tokens[ends[0] + 1 :])
    )


def _infinite(tokens: list[Token]) -> bool:
    return any(name_of(t) == "infty" for t in tokens)


def plain_name(tokens: list[Token]) -> str:
    """The name that the tokens are, e.g. x, x_1, f(x), AB, \\angle ABC, \\text{area}, or ""."""
    text = ""
    kinds = [t.kind for t in tokens]
    if not tokens or len(tokens) > 14:
        return ""
    i = 0
    if name_of(tokens[0]) in (
        "angle",
        "triangle",
        "overline",
        "vec",
        "mathbf",
        "measuredangle",
        "hat",
        "bar",
        "widehat",
        "overrightarrow",
    ):
        text, i = tokens[0].text, 1
    letters = 0
    while i < len(tokens) and (
        kinds[i] in ("letter", "word", "{", "}", "'", "_")
        or (kinds[i] == "number" and i and kinds[i - 1] in ("_", "{"))
        or (kinds[i] == "cmd" and tokens[i].text in GREEK)
    ):
        letters += kinds[i] in ("letter", "word", "cmd")
        text += tokens[i].text.strip() if kinds[i] not in "{}" else ""
        i += 1
    if not letters or (letters == 1 and kinds[0] == "letter" and tokens[0].text in "ie" and len(tokens) == 1):
        return ""
    if i == len(tokens):
        return text
    rest = tokens[i:]
    if letters == 1 and rest[0].kind == "(" and rest[-1].kind == ")" and enclosed(rest):
        return text + "".join(t.text for t in rest)
    if text and rest[0].kind == "^" and "".join(t.text for t in rest[1:]) in ("{-1}(x)", "-1(x)"):
        return text + "^-1(x)"
    return ""
