"""Sets of real numbers as unions of intervals: joined, cut, turned inside out."""

from __future__ import annotations

import math

from rlkit.verifier.algebra import INFINITY, Expr, symbol
from rlkit.verifier.numeric import real
from rlkit.verifier.values import Items, Region, Scalar, Span, Value


def as_region(v: Value) -> Region | None:
    """A region, a pair in brackets or a set of numbers as a region; None if it is something else."""
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


def merged(spans: tuple[Span, ...]) -> Region:
    """The same set with its intervals sorted and touching ones joined; as it is if an end is not a number."""
    ends = [(-math.inf if s[0] is None else real(s[0]), math.inf if s[2] is None else real(s[2])) for s in spans]
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
            lows = [(-math.inf if s[0] is None else real(s[0]), s) for s in (x, y)]
            highs = [(math.inf if s[2] is None else real(s[2]), s) for s in (x, y)]
            if any(v is None for v, _ in lows + highs):
                return None
            low = max(lows, key=lambda p: (p[0], not p[1][1]))[1]  # type: ignore[arg-type, return-value, unused-ignore]
            high = min(highs, key=lambda p: (p[0], p[1][3]))[1]  # type: ignore[arg-type, return-value, unused-ignore]
            out.append((low[0], low[1], high[2], high[3]))
    return merged(tuple(out))
