"""Values in digits: whether two expressions agree to 30 digits at sample points, and the float of a real constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlkit.errors import ConfigError
from rlkit.verifier.algebra import INFINITY, MAX_DEPTH, WORK, Atom, Expr, I, Poly, Unreadable


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
    return FUNCTIONS[kind](context, *args)


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
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in "sin cos tan cot sec csc sinh cosh tanh coth sech csch floor ceil exp".split()},
    **{"arc" + name: _method("a" + name) for name in "sin cos tan cot sec csc".split()},
    "log": lambda m, x, b: m.log(x) / m.log(b),
    "abs": lambda m, x: abs(x),
    "binom": lambda m, n, k: m.binomial(n, k),
    "factorial": lambda m, n: m.factorial(n),
}


def real(e: Expr | None) -> float | None:
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
