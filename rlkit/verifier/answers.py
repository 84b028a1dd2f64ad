r"""Reading mathematical answers: LaTeX or plain text to exact values, without sympy.

Numbers live in Q(i, roots of primes) with variables, pi and e as free symbols: an :class:`Expr` is a quotient of polynomials over these,
and two are equal exactly if their cross products are (real radicals of different primes are independent over Q: Besicovitch 1940). What
this field cannot express (sin, log, nested roots, huge powers) is kept as an unevaluated atom, so nothing big is ever computed; where such
atoms differ, :func:`agree` evaluates both sides to 50 digits at sample points.

Everything is bounded: length, nesting, terms and bits. What is not understood raises :class:`Unreadable`, never a guess.
"""

from __future__ import annotations

import functools
import math
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from rlkit.errors import ConfigError

MAX_TEXT = 2000  # characters of an answer
MAX_DEPTH = 32  # nested brackets
MAX_TERMS = 600  # of a polynomial
MAX_BITS = 20_000  # of an integer (2^{4950} is a reference answer of MATH)
MAX_DIGITS = 400  # of a literal
MAX_WORK = (
    10_000  # steps to read one text or to compare two values, a step being one product of two terms (some microseconds)
)


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


# ---------------------------------------------------------------------------------------------------------------- exact arithmetic


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


def _mono(powers: dict[Atom, Fraction]) -> tuple[Fraction, Mono]:
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
                factor, mono = _mono(powers)
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
        lead = Fraction(1) if self.den == ONE else self.den[min(self.den, key=_mono_key)]
        parts = [
            "+".join(sorted(f"{_digits(x / lead)}*{_mono_key(mono)}" for mono, x in poly.items()))
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


def _digits(x: Fraction) -> str:
    """A rational as text; large ones in hexadecimal, which costs no division and which Python does not refuse."""
    large = x.numerator.bit_length() + x.denominator.bit_length() > 10_000
    return f"{x.numerator:x}/{x.denominator:x}h" if large else str(x)


def _mono_key(mono: Mono) -> str:
    return "*".join(f"{atom.key}^{power}" for atom, power in mono)


def _quotient(num: Poly, den: Poly) -> Expr:
    if len(den) == 1 and den != ONE:
        ((mono, x),) = den.items()
        factor, inverse = _mono({atom: -power for atom, power in mono})
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
    factor, mono = _mono(powers)
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
    factor, raised = _mono({atom: p * n for atom, p in mono})
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


# ----------------------------------------------------------------------------------------------------------------- values in digits


def agree(a: Expr, b: Expr) -> bool:
    """Whether both have the same value to 30 digits at every sample point where both are real (or finite, if none is).

    Raises:
        Unreadable: neither can be evaluated, e.g. because it is too large.
    """
    import mpmath

    context = mpmath.mp.clone()
    context.dps = 50
    names = sorted({s.key for s in a.symbols | b.symbols})
    real: list[bool] = []
    other: list[bool] = []
    for k, (low, high) in enumerate(((0.31, 2.9), (5.3, 29.0), (-2.9, -0.31)) if names else ((0.0, 1.0),)):
        at = {name: low + (high - low) * _fixed(name, k) for name in names}
        known: dict[Atom, Any] = {}
        try:
            x, y = (_value(e, at, context, 0, known) for e in (a, b))
        except (ArithmeticError, ValueError):
            continue
        if not (context.isfinite(x) and context.isfinite(y)):
            continue
        equal = bool(abs(x - y) <= context.mpf(10) ** -30 * max(abs(x), abs(y))) or (
            _vanishes(a, x, at, context) and _vanishes(b, y, at, context)
        )
        is_real = all(abs(context.im(v)) <= context.mpf(10) ** -35 * (1 + abs(v)) for v in (x, y))
        (real if is_real or not names else other).append(equal)
    if not real and not other:
        raise Unreadable("a value cannot be computed")
    return all(real or other)


def _vanishes(e: Expr, value: Any, at: dict[str, float], context: Any) -> bool:
    """Whether a tiny value is what is left of zero: other digits come out with a higher precision."""
    if value == 0:
        return True
    if abs(value) > context.mpf(10) ** -40:
        return False
    finer = context.clone()
    finer.dps = 80
    again = _value(e, at, finer, 0, {})
    return bool(abs(again - value) > abs(value) * finer.mpf(10) ** -10)


def _fixed(name: str, k: int) -> float:
    """A number in (0, 1) that depends on a symbol's name only."""
    x = 0.7548776662466927 * (k + 1)
    for c in name:
        x = (x * 1.3247179572447460 + ord(c) * 0.5698402909980532) % 1.0
    return x


def _value(e: Expr, at: dict[str, float], context: Any, depth: int, known: dict[Atom, Any]) -> Any:
    """The value at a point; ``known`` are the atoms that have been evaluated there."""
    if depth > MAX_DEPTH:
        raise Unreadable("too deeply nested")
    WORK.spend(2 * (len(e.num) + len(e.den)))

    def poly(p: Poly) -> Any:
        total = context.mpf(0)
        for mono, x in p.items():
            term = context.mpf(x.numerator) / x.denominator
            for atom, n in mono:
                if atom not in known:
                    known[atom] = _atom(atom, at, context, depth, known)
                term *= _raise(known[atom], context.mpf(n.numerator) / n.denominator, context)
            total += term
        return total

    return poly(e.num) / poly(e.den)


def _raise(base: Any, n: Any, context: Any) -> Any:
    """``base ** n`` within bounds."""
    if base == 0:
        if context.re(n) <= 0:
            raise ConfigError("0 ** 0")
        return base
    if abs(n) * (abs(context.log(abs(base))) + 4) > 50_000:
        raise ConfigError("too large")
    return base ** (int(n) if context.isint(n) else n)


def _atom(atom: Atom, at: dict[str, float], context: Any, depth: int, known: dict[Atom, Any]) -> Any:
    WORK.spend(20)
    kind = atom.kind
    if kind == "symbol":
        return context.mpf(at[atom.key])
    if kind in _CONSTANTS:
        return _CONSTANTS[kind](context)
    if kind == "prime":
        return context.mpf(atom.key)
    if kind.startswith("name_"):  # \overline{AB}: a symbol of its own
        return context.mpf(_fixed(atom.key, 0)) + 1
    args = [_value(a, at, context, depth + 1, known) for a in atom.args]
    if kind == "pow":
        return _raise(args[0], args[1], context)
    if any(abs(x) > 10_000 for x in args) and kind not in ("log", "abs", "floor", "ceil"):
        raise ConfigError("too large")
    if kind == "root":  # the real root of a negative number, if the degree is odd
        if context.im(args[0]) == 0 and context.re(args[0]) < 0 and context.isint(args[1]) and int(args[1]) % 2:
            return -_raise(-args[0], 1 / args[1], context)
        return _raise(args[0], 1 / args[1], context)
    return _FUNCTIONS[kind](context, *args)


def _method(name: str) -> Callable[..., Any]:
    return lambda context, x: getattr(context, name)(x)


_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "i": lambda m: m.mpc(0, 1),
    "pi": lambda m: +m.pi,
    "e": lambda m: +m.e,
    "degree": lambda m: m.pi / 180,
    "percent": lambda m: m.mpf(1) / 100,
    "infinity": lambda m: m.inf,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _method(name)
        for name in (
            "sin",
            "cos",
            "tan",
            "cot",
            "sec",
            "csc",
            "sinh",
            "cosh",
            "tanh",
            "coth",
            "sech",
            "csch",
            "floor",
            "ceil",
            "exp",
        )
    },
    **{"arc" + name: _method("a" + name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    "log": lambda m, x, b: m.log(x) / m.log(b),
    "abs": lambda m, x: abs(x),
    "binom": lambda m, n, k: m.binomial(n, k),
    "factorial": lambda m, n: m.factorial(n),
}
_NAMES = {
    "ln": "log",
    "lg": "log",
    "arsinh": "asinh",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "ctg": "cot",
    "tg": "tan",
}
_CALLS = {name for name in _FUNCTIONS if name not in ("abs", "floor", "ceil", "binom", "factorial")} | {
    "ln",
    "lg",
    "asin",
    "acos",
    "atan",
}


# ------------------------------------------------------------------------------------------------------------------------- the text


_SUPER = {
    "⁰": "0",
    "¹": "1",
    "²": "2",
    "³": "3",
    "⁴": "4",
    "⁵": "5",
    "⁶": "6",
    "⁷": "7",
    "⁸": "8",
    "⁹": "9",
    "⁻": "-",
    "⁺": "+",
    "ⁿ": "n",
}
_SUB = {"₀": "0", "₁": "1", "₂": "2", "₃": "3", "₄": "4", "₅": "5", "₆": "6", "₇": "7", "₈": "8", "₉": "9"}
_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "‐": "-",
        "‑": "-",
        "﹣": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∗": "*",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≈": r"\approx ",
        "ℝ": r"\reals ",
        "∅": r"\emptyset ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "¢": r"\text{cents}",
        "€": r"\text{euros}",
        "£": r"\text{pounds}",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}",
        "⅙": r"\frac{1}{6}",
        "⅛": r"\frac{1}{8}",
        "⅞": r"\frac{7}{8}",
        "⅝": r"\frac{5}{8}",
        "⅜": r"\frac{3}{8}",
        "⅚": r"\frac{5}{6}",
        "⅘": r"\frac{4}{5}",
        "⅗": r"\frac{3}{5}",
        "⅖": r"\frac{2}{5}",
        "⁄": "/",
        "∕": "/",
        "′": "'",
        "’": "'",
        "…": r"\ldots ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "λ": r"\lambda ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "∠": r"\angle ",
        "\u200b": "",
        "\ufeff": "",
        "∖": r"\setminus ",
    }
)
_COMMANDS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "lt": "<",
    "gt": ">",
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "varnothing": "emptyset",
    "lbrace": "{",
    "rbrace": "}",
    "lbrack": "[",
    "rbrack": "]",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "infin": "infty",
    "R": "reals",
    "degree": "circ",
    "lor": "or",
    "vee": "or",
    "land": "and",
    "wedge": "and",
    "backslash": "setminus",
    "arcctg": "arccot",
    "tg": "tan",
    "ctg": "cot",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "simeq": "approx",
    "doteq": "approx",
    "sim": "approx",
    "cong": "approx",
    "colon": ":",
    "mid": "|",
    "lfloor": "lfloor",
    "isin": "in",
    "lparen": "(",
    "rparen": ")",
    "ldots": "ldots",
    "cdots": "ldots",
    "dots": "ldots",
}
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\s*\.?(?=\\|[^\w.]|$)|\\(?:left|right)\."
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|bf|rm|it|boldsymbol|ensuremath|allowbreak)(?![A-Za-z])"
    r"|\\h?phantom\s*(?:\{[^{}]{0,40}\}|[^\s{])|\\[hv]space\s*\{[^{}]{0,20}\}"
)
_BLANK = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|thick|med|neg(?:thin)?)?space(?![A-Za-z])|\s")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|['’]|,\\!|\{,\\!\}|\\,|\\ |,\\ )\s{0,3}(?=\d{3}(?!\d))")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|rm|it|normal|up|sf|tt|sc)?|mbox|hbox|"
    r"math(?:rm|bf|it|sf|tt|bb|cal|ds)|Bbb|operatorname\*?|emph|mathop|underline|fbox|boxed)\s*\{"
)
_REALS = re.compile(r"\\(?:mathbb|Bbb|mathbf|mathds)\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))")
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'))


def clean(text: str) -> str:
    """One spelling for what LaTeX and Unicode spell in many ways; the meaning stays. Linear in the length.

    Raises:
        Unreadable: longer than ``MAX_TEXT``.
    """
    if len(text) > 4 * MAX_TEXT:
        raise Unreadable("the answer is too long")
    s = text.strip()
    if not s.isascii():
        s = re.sub("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", s)
        s = re.sub("[₀-₉]+", lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", s)
        s = re.sub(r"√\s?(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", s).replace("√", r"\sqrt ")
        s = unicodedata.normalize("NFKC", s.translate(_UNICODE))
    for _ in range(4):
        before = s
        for start, end in _WRAPPED:
            if (
                len(s) > len(start) + len(end)
                and s.startswith(start)
                and s.endswith(end)
                and start not in s[len(start) : -len(end)]
            ):
                s = s[len(start) : -len(end)].strip()
        if s == before:
            break
    s = re.sub(r"\\\\(?:\[[^\]]{0,12}\])?", r"\\newrow " if r"\begin" in s else r"\\", s)  # without rows: escaped twice
    s = _REALS.sub(r"\\reals ", s)
    s = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", _THOUSANDS.sub("", s))
    s = _DROPPED.sub(" ", s)
    s = _BLANK.sub(" ", s)
    s = re.sub(r" {2,}", " ", s).strip()
    while s and s[-1] in ".,;:" and not s.endswith("\\;"):
        s = s[:-1].rstrip()
    if len(s) > MAX_TEXT:
        raise Unreadable("the answer is too long")
    return s


def compact(s: str) -> str:
    """Cleaned text without blanks, except where removing one would join numbers or words."""
    return re.sub(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])", "", s)


def words(s: str) -> str:
    """Cleaned text as words: without text commands, brackets around a letter, punctuation at the ends and case."""
    s = _TEXT_COMMAND.sub("{", s).replace("{", " ").replace("}", " ").replace("$", " ").replace("*", " ")
    s = " ".join(s.split()).strip(" .,;:!?'\"").casefold()
    lone = re.fullmatch(r"\(\s*(\w+)\s*\)", s)
    return lone[1] if lone else s


def untexted(s: str) -> str:
    """Compact text without text commands around its words."""
    out, i = [], 0
    for found in _TEXT_COMMAND.finditer(s):
        if found.start() >= i:
            try:
                end = _braced(s, found.end())
            except Unreadable:
                return s
            out += [s[i : found.start()], s[found.end() : end - 1].strip()]
            i = end
    return compact("".join([*out, s[i:]]))


class Token(NamedTuple):
    kind: str  # number, word (text), cmd, letter, or the character itself
    text: str
    gap: bool = False  # a blank stands before it


_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d]))?)"
    r"|(?P<cmd>\\(?:[A-Za-z]+|.))|(?P<letters>[A-Za-z]+)|(?P<other>\S)",
    re.DOTALL,
)
_NUMBER_WORDS = {
    w: i
    for i, w in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}
_GREEK = {
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "ell",
    "hbar",
}
_PLAIN = {
    "pi": "pi",
    "sqrt": "sqrt",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
    "infty": "infty",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
    "frac": "frac",
    "degrees": "°",
    "degree": "°",
    "deg": "°",
    "percent": "%",
    "lambda": "lambda",
    "phi": "phi",
    "union": "cup",
}
_CONNECT = {"or": "or", "and": "and", ", and": "and", ", or": "or", ",and": "and", ",or": "or", "and/or": "or"}

# unit -> (dimension, size): what one of it is in the dimension's base unit
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _names, _dimension, _size in (
    ("mm millimeter millimeters millimetre millimetres", "length", "1/1000"),
    ("cm centimeter centimeters centimetre centimetres", "length", "1/100"),
    ("m meter meters metre metres", "length", "1"),
    ("km kilometer kilometers kilometre kilometres", "length", "1000"),
    ("in inch inches", "length", "127/5000"),
    ("ft foot feet", "length", "381/1250"),
    ("yd yard yards", "length", "1143/1250"),
    ("mi mile miles", "length", "201168/125"),
    ("s sec secs second seconds", "time", "1"),
    ("min mins minute minutes", "time", "60"),
    ("h hr hrs hour hours", "time", "3600"),
    ("day days", "time", "86400"),
    ("week weeks", "time", "604800"),
    ("month months", "months", "1"),
    ("year years yr yrs", "months", "12"),
    ("g gram grams", "mass", "1"),
    ("kg kilogram kilograms", "mass", "1000"),
    ("mg milligram milligrams", "mass", "1/1000"),
    ("lb lbs pound pounds", "pounds", "1"),
    ("oz ounce ounces", "pounds", "1/16"),
    ("dollar dollars usd", "money", "1"),
    ("cent cents", "money", "1/100"),
    ("euro euros", "euro", "1"),
    ("l liter liters litre litres", "volume", "1"),
    ("ml milliliter milliliters", "volume", "1/1000"),
    ("gallon gallons gal", "gallon", "1"),
    ("mph", "mph", "1"),
    ("radian radians rad", "radian", "1"),
    ("acre acres", "acre", "1"),
):
    for _name in _names.split():
        _UNITS[_name] = (_dimension, Fraction(_size))
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# words that change what a number says, so that they are no unit
_NO_UNIT = frozenset(
    [
        "not",
        "no",
        "maybe",
        "perhaps",
        "probably",
        "possibly",
        "unsure",
        "sure",
        "or",
        "either",
        "but",
        "if",
        "unless",
        "except",
        "wrong",
        "incorrect",
        "is",
        "isn't",
        "was",
        "could",
        "plus",
        "minus",
        "times",
        "more",
        "less",
        "than",
        "least",
        "most",
        "dozen",
        "half",
        "mod",
        "modulo",
        "and",
        "to",
        "through",
        "between",
        "then",
        "with",
        "without",
        "when",
        "where",
        "for",
        "undefined",
        "nor",
        "neither",
        "squared",
        "cubed",
    ]
) - {"squared", "cubed"}
_SINGLE_LETTER_UNITS = {"m", "s", "g", "h", "l"}


def unit_of(text: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit as written after a number ("sq. cm", "inches^2", "cubic feet"), or None if it is not known."""
    s = re.sub(r"[{}.\\]", " ", text.casefold()).strip()
    s = re.sub(r"\s+", " ", s)
    power_of = 1
    for word, n in (("square ", 2), ("sq ", 2), ("cubic ", 3), ("cu ", 3)):
        if s.startswith(word):
            s, power_of = s[len(word) :], n
    found = re.fullmatch(r"([a-z]+) ?(?:\^ ?([23])|(squared|cubed))?", s)
    if not found:
        return None
    if found[2] or found[3]:
        power_of = int(found[2] or {"squared": 2, "cubed": 3}[found[3]])
    unit = _UNITS.get(found[1])
    return None if unit is None else (f"{unit[0]}^{power_of}", unit[1] ** power_of)


def _braced(s: str, start: int) -> int:
    """Index after the brace that closes the one opened just before ``start``."""
    depth = 1
    for i in range(start, len(s)):
        c = s[i]
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                return i + 1
    raise Unreadable("an open brace")


def tokenize(s: str) -> list[Token]:
    """Tokens of a cleaned text; ``\text{...}`` becomes a word, or its content where that is mathematics."""
    out: list[Token] = []
    i, gap, n = 0, False, len(s)
    while i < n:
        if s[i] == " ":
            gap, i = True, i + 1
            continue
        if s[i] == "\\":
            text = _TEXT_COMMAND.match(s, i)
            if text:
                end = _braced(s, text.end())
                out.extend(_text_tokens(s[text.end() : end - 1], text[0], gap))
                i, gap = end, False
                continue
        found = _TOKEN.match(s, i)
        assert found is not None
        i = found.end()
        kind, text_of = found.lastgroup, found[0]
        if kind == "number":
            if len(text_of) > MAX_DIGITS:
                raise Unreadable("a number is too long")
            out.append(Token("number", text_of, gap))
        elif kind == "cmd":
            name = text_of[1:]
            name = _COMMANDS.get(name, name)
            if name in ("or", "and"):
                out.append(Token("connect", name, gap))
            elif name in "{}[]()<>:*/|%$&#_" and name:
                out.append(Token({"{": "\\{", "}": "\\}"}.get(name, name), name, gap))
            else:
                out.append(Token("cmd", name, gap))
        elif kind == "letters":
            out.extend(_letter_tokens(text_of, gap, out[-1] if out else None))
        else:
            out.append(Token(text_of, text_of, gap))
        gap = False
    return out


def _text_tokens(content: str, command: str, gap: bool) -> list[Token]:
    inner = content.strip()
    if inner.casefold() in _CONNECT:
        return [Token("connect", _CONNECT[inner.casefold()], gap)]
    if (
        command.startswith((r"\fbox", r"\boxed", r"\underline"))
        or not re.search(r"[A-Za-z]", inner)
        or re.search(r"[\\^_=]", inner)
    ):
        return tokenize(inner)
    if command.startswith((r"\math", r"\operatorname")) and (len(inner) == 1 or inner in _CALLS):
        return _letter_tokens(inner, gap, None)
    return [Token("word", content, gap)]


def _letter_tokens(run: str, gap: bool, before: Token | None) -> list[Token]:
    low = run.casefold()
    if low in _CONNECT:
        return [Token("connect", _CONNECT[low], gap)]
    if low in _NUMBER_WORDS and len(run) > 1:
        return [Token("word", run, gap)]
    if run in _CALLS or run in ("sqrt",):
        return [Token("cmd", run, gap)]
    if low in _PLAIN:
        name = _PLAIN[low]
        return [Token(name, name, gap) if name in "°%" else Token("cmd", name, gap)]
    after_number = before is not None and (before.kind in ("number", "word", "}", ")") or before.text in _GREEK)
    known = (len(run) >= 2 and low in _UNITS) or low in ("sq", "cu")
    if known and (after_number or len(run) >= 3):
        return [Token("word", run, gap)]
    if len(run) >= 4 or (len(run) == 3 and (run.isupper() or (gap and after_number and run.islower()))):
        return [Token("word", run, gap)]
    if len(run) == 1 and gap and before is not None and before.kind == "word":
        return [Token("word", run, gap)]
    return [Token("letter", c, gap and k == 0) for k, c in enumerate(run)]


# ----------------------------------------------------------------------------------------------------------------------- the values


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
_OPEN = {"(", "[", "\\{", "{", "langle", "lfloor", "lceil", "begin"}
_CLOSE = {")", "]", "\\}", "}", "rangle", "rfloor", "rceil", "end"}
_RELATIONS = {"=", "<", ">", "le", "ge", "ne"}


def _name_of(t: Token) -> str:
    return t.text if t.kind == "cmd" else t.kind


def _depths(tokens: list[Token]) -> Iterator[tuple[int, Token, int]]:
    """``(index, token, depth outside of it)``."""
    depth = 0
    for i, t in enumerate(tokens):
        name = _name_of(t)
        if name in _CLOSE:
            depth -= 1
            if depth < 0:
                raise Unreadable("brackets do not match")
        yield i, t, depth
        if name in _OPEN:
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable("too deeply nested")
    if depth:
        raise Unreadable("brackets do not match")


def _split(tokens: list[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """Pieces between the tokens at depth 0 for which ``at`` holds, and those tokens."""
    parts: list[list[Token]] = [[]]
    found = []
    for _, t, depth in _depths(tokens):
        if depth == 0 and at(t):
            parts.append([])
            found.append(t)
        else:
            parts[-1].append(t)
    return parts, found


def _enclosed(tokens: list[Token]) -> bool:
    """Whether the first token's bracket closes at the last token."""
    if len(tokens) < 2 or _name_of(tokens[0]) not in _OPEN or _name_of(tokens[-1]) not in _CLOSE:
        return False
    return all(depth > 0 for i, _, depth in _depths(tokens) if 0 < i < len(tokens) - 1)


_SPACED = re.compile(
    r"([^\d,;]*)(\d{1,3}(?: \d{3})+)((?:\.\d+)?(?:[^\d,;./][^\d,;]*)?)\Z"
)  # 1 500 euros, the only number of a text
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")


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
        runs = re.findall(r"[A-Za-z']+", s) if re.fullmatch(r"[A-Za-z][A-Za-z' ]*", s) else []
        if (
            len(runs) > 1
            and any(len(r) >= 3 for r in runs)
            and not any(r in _CALLS or r.casefold() in _PLAIN or r.casefold() in _CONNECT for r in runs)
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
            or _name_of(tokens[0]) in ("approx", "therefore", "implies", "quad")
            or (tokens[0].kind == "word" and words(tokens[0].text) in ("approximately", "about", "roughly"))
        ):
            tokens = tokens[1:]
        if not tokens:
            raise Unreadable("empty")
        if len(tokens) == 1 and _name_of(tokens[0]) == "emptyset":
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
        if plain in _NUMBER_WORDS:
            return Scalar(number(_NUMBER_WORDS[plain]))
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
        parts, _ = _split(tokens[1:-1], lambda t: t.kind in (",", ";"))
        if len(parts) != 2:
            raise Unreadable("brackets do not match")
        return Items("tuple" if ends == "()" else "bracket", tuple(self.value(p, depth + 1) for p in parts), ends)

    def _list(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = _split(tokens, lambda t: t.kind in (",", ";", "connect"))
        if not found:
            return None
        parts = [p for p in parts if p]
        if not parts:
            raise Unreadable("empty")
        values = [self.value(p, depth + 1) for p in parts]
        if len(values) == 1:
            return values[0]
        regions = [self._as_region(v) for v in values]
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
        parts, found = _split(tokens, lambda t: _name_of(t) == "in" and t.kind == "cmd")
        if found and len(parts) == 2 and len(parts[0]) <= 6:
            return self.value(parts[1], depth + 1)
        if _enclosed(tokens) and tokens[0].kind == "\\{":
            parts, found = _split(tokens[1:-1], lambda t: t.kind in ("|", ":"))
            if len(found) == 1 and len(parts[0]) <= 5 and any(_name_of(t) in _RELATIONS for t in parts[1]):
                return self.value(parts[1], depth + 1)
        return None

    def _as_region(self, v: Value) -> Region | None:
        if isinstance(v, Region):
            return v
        if isinstance(v, Items) and v.ordered and len(v.items) == 2 and all(isinstance(x, Scalar) for x in v.items):
            low, high = (x.expr for x in v.items)
            lo = None if low.same(-symbol(INFINITY)) else low
            hi = None if high.same(symbol(INFINITY)) else high
            return Region(((lo, v.ends[0] == "[" and lo is not None, hi, v.ends[1] == "]" and hi is not None),))
        if isinstance(v, Items) and v.kind == "set" and all(isinstance(x, Scalar) for x in v.items):
            return Region(tuple((x.expr, True, x.expr, True) for x in v.items))
        return None

    def _region(self, tokens: list[Token], depth: int) -> Value | None:
        if len(tokens) == 1 and _name_of(tokens[0]) == "reals":
            return Region(((None, False, None, False),))
        parts, found = _split(tokens, lambda t: t.kind == "cmd" and t.text in ("cup", "cap", "setminus"))
        if not found and _name_of(tokens[0]) == "reals" and len(tokens) > 2 and tokens[1].kind == "-":
            parts, found = [tokens[:1], tokens[2:]], [Token("cmd", "setminus")]
        if not found:
            return None
        values = [self.value(p, depth + 1) for p in parts]
        if all(t.text == "cup" for t in found) and all(isinstance(v, Items) and v.kind == "set" for v in values):
            return Items("set", tuple(x for v in values if isinstance(v, Items) for x in v.items))
        regions = [self._as_region(v) for v in values]
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
        parts, found = _split(tokens, lambda t: t.kind == "cmd" and t.text == "approx")
        if len(parts) == 2 and parts[1] and _plain_name(parts[0]):
            return self.value(parts[1], depth + 1)  # x ~ 5
        return self.value(parts[0], depth + 1) if found and parts[0] else None

    def _relation(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = _split(tokens, lambda t: t.kind in _RELATIONS or (t.kind == "cmd" and t.text in _RELATIONS))
        if not found:
            return None
        if not all(parts):
            raise Unreadable("a relation without a side")
        ops = [_name_of(t) for t in found]
        if all(op == "=" for op in ops):
            name = _plain_name(parts[0])
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
                and _plain_name(parts[1])
                and isinstance(sides[0], Scalar)
                and not sides[0].expr.symbols
            ):
                sides.reverse()
                name = _plain_name(parts[1])
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
        if "=" in ops:
            raise Unreadable("a mixed relation")
        sign = {"<": 1, "le": 1, ">": -1, "ge": -1, "ne": 0}
        names = [_plain_name(p) for p in parts]
        if len(parts) == 2:
            if bool(names[0]) == bool(names[1]) or (names[0] and _infinite(parts[1])):
                sides = [self._side(p) for p in parts]
                if sides[0].atoms & {INFINITY} or sides[1].atoms & {INFINITY}:
                    raise Unreadable("a relation with infinity")
                way = sign[ops[0]]
                return Inequality(
                    {"<": "<", ">": "<", "le": "<=", "ge": "<="}.get(ops[0], "!="),
                    sides[1] - sides[0] if way >= 0 else sides[0] - sides[1],
                )
            bound, way = (self._side(parts[1]), sign[ops[0]]) if names[0] else (self._side(parts[0]), -sign[ops[0]])
            closed = ops[0] in ("le", "ge")
            if way == 0:
                return Region(((None, False, bound, False), (bound, False, None, False)))
            return Region(((None, False, bound, closed),)) if way > 0 else Region(((bound, closed, None, False),))
        if len(parts) == 3 and sign[ops[0]] == sign[ops[1]] != 0:
            ends = [self._side(parts[0]), self._side(parts[2])]
            shut = [op in ("le", "ge") for op in ops]
            if sign[ops[0]] < 0:
                ends.reverse()
                shut.reverse()
            if not names[1] or re.search(r"\(.*\d", names[1]):
                raise Unreadable("a relation of something else than a name")
            low = None if ends[0].same(-symbol(INFINITY)) else ends[0]
            high = None if ends[1].same(symbol(INFINITY)) else ends[1]
            return Region(((low, shut[0] and low is not None, high, shut[1] and high is not None),))
        raise Unreadable("a relation of many parts")

    def _side(self, tokens: list[Token]) -> Expr:
        v = self._scalar(tokens)
        if not isinstance(v, Scalar):
            raise Unreadable("a side that is no expression")
        return v.expr

    def _ratio(self, tokens: list[Token], depth: int) -> Value | None:
        parts, found = _split(tokens, lambda t: t.kind == ":")
        if not found or not all(parts):
            return None
        return Ratio(tuple(self.value(p, depth + 1) for p in parts))

    def _matrix(self, tokens: list[Token], depth: int) -> Value | None:
        if _name_of(tokens[0]) != "begin" or not _enclosed_environment(tokens):
            return None
        name = "".join(t.text for t in tokens[2 : tokens.index(next(t for t in tokens if t.kind == "}"))])
        if name not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"):
            raise Unreadable(f"the environment {name}")
        body = tokens[tokens.index(next(t for t in tokens if t.kind == "}")) + 1 :]
        if name == "array" and body and body[0].kind == "{":
            body = body[next(i for i, t in enumerate(body) if t.kind == "}") + 1 :]
        end = max(i for i, t in enumerate(body) if t.kind == "cmd" and t.text == "end")
        rows, _ = _split(body[:end], lambda t: t.kind == "cmd" and t.text == "newrow")
        out = []
        for row in rows:
            cells, _ = _split(row, lambda t: t.kind == "&")
            if any(cells):
                out.append(tuple(self.value(cell, depth + 1) for cell in cells))
        if not out or len({len(r) for r in out}) != 1:
            raise Unreadable("a matrix with rows of different length")
        return Matrix(tuple(out))

    def _bracket(self, tokens: list[Token], depth: int) -> Value | None:
        if not _enclosed(tokens):
            return None
        first, last = _name_of(tokens[0]), _name_of(tokens[-1])
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
            parts, found = _split(inner, lambda t: t.kind in (",", ";"))
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
            if len(plain) > 5 or any(w in _NO_UNIT for w in plain) or plain[:1] in (["squared"], ["cubed"]):
                raise Unreadable("words beside a value")
            tokens = tokens[:cut]
            if plain and plain[0] in _LARGE:
                factor, plain = number(_LARGE[plain[0]]), plain[1:]
                beside = " ".join(plain)
            unit = unit or beside
        elif (
            [t.kind for t in tokens] == ["number", "letter"]
            and tokens[1].gap
            and tokens[1].text in _SINGLE_LETTER_UNITS
        ):
            unit, tokens = tokens[1].text, tokens[:1]
        if not tokens:
            raise Unreadable("empty")
        parser = _Parser(tokens)
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
    base = int(found[3]) if found[3].isdigit() else _NUMBER_WORDS.get(found[3], 0)
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
    return any(_name_of(t) == "infty" for t in tokens)


def _plain_name(tokens: list[Token]) -> str:
    """The name that the tokens are, e.g. x, x_1, f(x), AB, \\angle ABC, \\text{area}, or ""."""
    text = ""
    kinds = [t.kind for t in tokens]
    if not tokens or len(tokens) > 14:
        return ""
    i = 0
    if _name_of(tokens[0]) in (
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
        or (kinds[i] == "cmd" and tokens[i].text in _GREEK)
    ):
        letters += kinds[i] in ("letter", "word", "cmd")
        text += tokens[i].text.strip() if kinds[i] not in "{}" else ""
        i += 1
    if not letters or (letters == 1 and kinds[0] == "letter" and tokens[0].text in "ie" and len(tokens) == 1):
        return ""
    if i == len(tokens):
        return text
    rest = tokens[i:]
    if letters == 1 and rest[0].kind == "(" and rest[-1].kind == ")" and _enclosed(rest):
        return text + "".join(t.text for t in rest)
    if text and rest[0].kind == "^" and "".join(t.text for t in rest[1:]) in ("{-1}(x)", "-1(x)"):
        return text + "^-1(x)"
    return ""


# ------------------------------------------------------------------------------------------------------------------ expressions


class _Parser:
    """Recursive descent over tokens; juxtaposition multiplies, ``3\\frac{1}{2}`` is a mixed number."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.i = tokens, 0
        self.bars = 0  # absolute values that are open: there a bar closes

    def peek(self) -> str:
        return _name_of(self.tokens[self.i]) if self.i < len(self.tokens) else ""

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
                or name in _GREEK
                or name in _CALLS
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
        if [_name_of(t) for t in self.tokens[self.i : self.i + 3]] == ["{", "circ", "}"]:
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
        name = _name_of(t)
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
            self.i += 1  # 0.1\overline{6}
            self.take("{")
            digits = self.token()
            if digits is None or not digits.text.isdigit():
                raise Unreadable("an overline over something else than digits")
            self.i += 1
            self.take("}")
            return number(
                value + Fraction(int(digits.text), (10 ** len(digits.text) - 1) * 10 ** len(t.text.split(".")[1]))
            )
        if (
            after is not None
            and after.kind == "."
            and (bar := self.token(1)) is not None
            and _name_of(bar) == "overline"
        ):
            self.i += 1
            return self.repeating(value)
        return number(value)

    def repeating(self, whole: Fraction) -> Expr:
        """The decimals of 0.\\overline{3}."""
        self.i += 1
        self.take("{")
        digits = self.token()
        if digits is None or not digits.text.isdigit():
            raise Unreadable("an overline over something else than digits")
        self.i += 1
        self.take("}")
        return number(whole + Fraction(int(digits.text), 10 ** len(digits.text) - 1))

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
        if name in _CALLS:
            return self.call(name, depth)
        if name in ("overline", "vec", "angle", "triangle", "bar", "hat"):
            inner = self.argument(depth) if self.peek() == "{" else self.base(depth + 1)
            return function("name_" + name, inner)
        if name in _GREEK:
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
            while self.starts_factor() and self.peek() not in _CALLS and self.peek() not in ("(", "["):
                argument = argument * self.factor(depth)
        if name == "exp":
            value = power(symbol(EULER), argument)
        elif name in ("log", "ln", "lg"):
            value = function("log", argument, logbase)
        else:
            value = function("arc" + name if inverse else _NAMES.get(name, name), argument)
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


# ------------------------------------------------------------------------------------------------------------------------ real sets


def _real(e: Expr | None) -> float | None:
    """The value of a real constant, for ordering only."""
    if e is None:
        return None
    if e.rational is not None:
        try:
            return float(e.rational)
        except OverflowError:
            return None
    if e.symbols or e.atoms & {INFINITY, I}:
        return None
    import mpmath

    try:
        value = _value(e, {}, mpmath.mp, 0, {})
        return float(value) if mpmath.im(value) == 0 else None
    except (ArithmeticError, ValueError, TypeError):
        return None


Span = tuple[Expr | None, bool, Expr | None, bool]


def merged(spans: tuple[Span, ...]) -> Region:
    """The same set with its intervals sorted and touching ones joined; as it is if an end is not a number."""
    ends = [(-math.inf if s[0] is None else _real(s[0]), math.inf if s[2] is None else _real(s[2])) for s in spans]
    if any(x is None for pair in ends for x in pair):
        return Region(spans)
    order = sorted(range(len(spans)), key=lambda k: (ends[k][0], not spans[k][1]))  # type: ignore[index, return-value, unused-ignore]
    out: list[Span] = []
    high: float = -math.inf
    for k in order:
        s, (low, top) = spans[k], ends[k]
        assert low is not None and top is not None
        if low > top or (low == top and not (s[1] and s[3])):
            continue
        if out and (low < high or (low == high and (s[1] or out[-1][3]))):
            last = out[-1]
            if top > high or (top == high and s[3]):
                out[-1] = (last[0], last[1], s[2], s[3])
                high = top
        else:
            out.append(s)
            high = top
    return Region(tuple(out))


def complement(r: Region) -> Region:
    r = merged(r.spans)
    out: list[Span] = []
    low: Expr | None = None
    closed = False
    first = True
    for s in r.spans:
        if not (first and s[0] is None):
            out.append((low, closed, s[0], not s[1]))
        low, closed, first = s[2], not s[3], False
    if not (r.spans and r.spans[-1][2] is None):
        out.append((low, closed, None, False))
    return Region(tuple(out))


def intersection(a: Region, b: Region) -> Region | None:
    """None if the ends cannot be ordered."""
    out: list[Span] = []
    for x in a.spans:
        for y in b.spans:
            lows = [(-math.inf if s[0] is None else _real(s[0]), s) for s in (x, y)]
            highs = [(math.inf if s[2] is None else _real(s[2]), s) for s in (x, y)]
            if any(v is None for v, _ in lows + highs):
                return None
            low = max(lows, key=lambda p: (p[0], not p[1][1]))[1]  # type: ignore[arg-type, return-value, unused-ignore]
            high = min(highs, key=lambda p: (p[0], p[1][3]))[1]  # type: ignore[arg-type, return-value, unused-ignore]
            out.append((low[0], low[1], high[2], high[3]))
    return merged(tuple(out))
