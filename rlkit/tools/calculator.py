"""Arithmetic on what a model wrote, without evaluating it as a program."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction

from rlkit.tools.using import ToolError

LONGEST, MOST_BITS = 500, 4096  # characters of an expression; bits of a numerator or denominator
FUNCTIONS: dict[str, Callable[..., float]] = {
    name: getattr(math, name)
    for name in (
        "sqrt",
        "exp",
        "log",
        "log2",
        "log10",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "floor",
        "ceil",
        "gcd",
        "factorial",
    )
} | {"abs": abs, "min": min, "max": max, "round": round}
CONSTANTS = {"pi": math.pi, "e": math.e}
OPERATORS: dict[type[ast.AST], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


def calculator(expression: str) -> str:
    """Works out an arithmetic expression, exactly where that is possible.

    Args:
        expression: numbers, + - * / // % ** and parentheses, and functions such as sqrt, log, sin, abs, min, max; e.g. (3 + 5) * 2.
    """
    text = expression.replace("^", "**").replace("\u00d7", "*").replace("\u00f7", "/").replace("\u2212", "-").strip()
    if len(text) > LONGEST:
        raise ToolError(f"the expression has {len(text)} characters; there may be {LONGEST}")
    try:
        tree = ast.parse(text, mode="eval")
        return _written(_value(tree.body))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ToolError(f"{text[:80]!r} is no arithmetic expression") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(str(error)) from None


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(Fraction(str(node.value)) if isinstance(node.value, float) else Fraction(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return _bounded(OPERATORS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return Fraction(CONSTANTS[node.id])
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FUNCTIONS
        and not node.keywords
    ):
        return _called(node.func.id, [_value(a) for a in node.args])
    raise ToolError(f"{ast.unparse(node)[:80]!r} is not arithmetic that this tool can do")


def _called(name: str, values: list[Fraction]) -> Fraction:
    if name == "factorial" and values and values[0] > 400:
        raise ToolError("factorial of more than 400 is too large")
    whole = [int(v) if v.denominator == 1 else v for v in values]
    if name in ("abs", "min", "max", "gcd", "factorial", "floor", "ceil", "round"):
        return Fraction(FUNCTIONS[name](*whole))
    return Fraction(FUNCTIONS[name](*map(float, values)))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        value = float(base) ** float(exponent)
        if isinstance(value, complex):
            raise ToolError("a root of a negative number is not real")
        return Fraction(value)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > MOST_BITS:
        raise ToolError("the number is too large")
    return Fraction(base ** int(exponent))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ToolError("the number is too large")
    return value


def _written(value: Fraction) -> str:
    """A whole number as it is, others with 12 significant digits."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.12g}"
