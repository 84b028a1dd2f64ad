"""Curves as SVG text, made here: no library is needed to write them, and nothing but a browser or a printer to show them.

Lines differ in colour (Okabe and Ito's palette, which colour-blind people tell apart), in their dashes and in the marks at their ends, so
that a copy in grey still says which is which.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlkit.record.plots import Style

COLOURS = (*Style.COLOURS, "#999999")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "4 2 1 2", "1 2", "12 2 4 2")
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 36
MOST = 300  # points of a line; more are averaged

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve. ``band``: (x, low, high) around it. ``style``: its colour and dash. ``faint``: one of several that a bold one sums up."""

    label: str
    points: Sequence[Point]
    style: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    kind: Literal["line", "dots", "path"] = "line"
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """What a picture shows. ``floor``: a value that the vertical axis reaches down to. ``stacked``: lines lie on top of each other."""

    title: str
    unit: str
    lines: Sequence[Line]
    xlabel: str = "step"
    floor: float | None = None
    stacked: bool = False
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(x: float) -> str:
    """As a table shows it."""
    if x == 0:
        return "0"
    return f"{x:,.0f}" if abs(x) >= 1000 and x == round(x) else f"{x:.4g}"


def labels(values: Sequence[float]) -> list[str]:
    """Numbers of an axis, with as many digits as tell them apart."""
    few = [number(x) for x in values]
    return few if len(set(few)) == len(few) else [f"{x:.9g}" for x in values]


def thinned(points: Sequence[tuple[float, ...]], most: int = MOST) -> list[tuple[float, ...]]:
    """At most ``most`` points: means of equally many neighbours."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    buckets = [points[k : k + size] for k in range(0, len(points), size)]
    return [tuple(math.fsum(column) / len(bucket) for column in zip(*bucket, strict=True)) for bucket in buckets]


def stack(lines: Sequence[Line]) -> list[Line]:
    """Lines on top of each other, each with a band down to the one below it; an ``x`` that a line lacks adds nothing there."""
    xs = sorted({x for line in lines for x, _ in line.points})
    base, out = dict.fromkeys(xs, 0.0), list[Line]()
    for line in lines:
        values = dict(line.points)
        top = {x: base[x] + values.get(x, 0.0) for x in xs}
        band = [(x, base[x], top[x]) for x in xs]
        out.append(Line(line.label, list(top.items()), line.style, band))
        base = top
    return out


@dataclass(frozen=True)
class _Scale:
    """Data to places in the picture."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, x: float) -> float:
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Iterable[Sequence[float]]) -> str:
        return " ".join(f"{self.x(p[0]):.1f},{self.y(p[1]):.1f}" for p in points)


def _scale(chart: Chart, lines: Sequence[Line]) -> _Scale:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    ys += [] if chart.floor is None else [chart.floor]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if x0 == x1:
        x0, x1 = x0 - 1, x1 + 1
    room = 0.05 * (y1 - y0) or 0.1 * abs(y1) or 1.0
    return _Scale(x0, x1, y0 if y0 == chart.floor else y0 - room, y1 + room)


def _axes(chart: Chart, at: _Scale) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    out = []
    rows = ticks(at.y0, at.y1)
    for y, label in zip(rows, labels(rows), strict=True):
        out.append(f'<path class="grid" d="M{LEFT} {at.y(y):.1f}H{right}"/>')
        out.append(f'<text class="tick" x="{LEFT - 6}" y="{at.y(y) + 3.5:.1f}" text-anchor="end">{label}</text>')
    for x in ticks(at.x0, at.x1, 6):
        out.append(f'<path class="grid" d="M{at.x(x):.1f} {bottom}v4"/>')
        out.append(f'<text class="tick" x="{at.x(x):.1f}" y="{bottom + 15}" text-anchor="middle">{number(x)}</text>')
    out.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    out.append(
        f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(chart.xlabel)}</text>'
    )
    return out


def _mark(style: int, x: float, y: float, size: float = 3.2) -> str:
    """A mark of a line's own shape: circle, square, triangle, diamond, in turn."""
    colour = COLOURS[style % len(COLOURS)]
    if style % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.2), (1.2, 1), (-1.2, 1)),
        3: ((0, -1.4), (1.2, 0), (0, 1.4), (-1.2, 0)),
    }[style % 4]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def _line(line: Line, at: _Scale, filled: bool) -> list[str]:
    colour, dash = COLOURS[line.style % len(COLOURS)], DASHES[line.style % len(DASHES)]
    points = [(x, y) for x, y in thinned(line.points)] if line.kind == "line" else list(line.points)
    band, out = thinned(line.band), list[str]()
    if band:
        ends = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
        out.append(f'<polygon points="{at.path(ends)}" fill="{colour}" fill-opacity="{0.45 if filled else 0.16}"/>')
    if line.kind != "dots" and len(points) > 1:
        more = f' stroke-dasharray="{dash}"' if dash else ""
        faint = ' class="faint"' if line.faint else f' data-label="{html.escape(line.label)}"'
        out.append(f'<polyline points="{at.path(points)}" fill="none" stroke="{colour}"{more}{faint}/>')
    if not line.faint:
        marked = points if line.kind == "dots" or len(points) == 1 else points[-1:]
        out += [_mark(line.style, at.x(x), at.y(y)) for x, y in marked]
    return out


def _legend(lines: Sequence[Line]) -> str:
    """A sample of each line beside its name."""
    entries = []
    for line in {line.label: line for line in lines if line.label and not line.faint}.values():
        colour, dash = COLOURS[line.style % len(COLOURS)], DASHES[line.style % len(DASHES)]
        more = f' stroke-dasharray="{dash}"' if dash else ""
        rule = "" if line.kind == "dots" else f'<path d="M1 6H25" stroke="{colour}"{more}/>'
        entries.append(
            f'<span><svg width="28" height="12" viewBox="0 0 28 12">{rule}{_mark(line.style, 22, 6)}</svg>{html.escape(line.label)}</span>'
        )
    return f'<div class="legend">{"".join(entries)}</div>' if len(entries) > 1 else ""


def figure(chart: Chart) -> str:
    """A chart as a ``figure`` element; the empty text where no line has a point."""
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return ""
    lines = stack(lines) if chart.stacked else lines
    at = _scale(chart, lines)
    shapes = [shape for line in lines for shape in _line(line, at, chart.stacked)]
    title = html.escape(chart.title)
    picture = (
        f'<svg class="chart" role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" '
        f'data-scale="{at.x0:.6g} {at.x1:.6g} {at.y0:.6g} {at.y1:.6g}">{"".join([*_axes(chart, at), *shapes])}</svg>'
    )
    note = f'<p class="note">{html.escape(chart.note)}</p>' if chart.note else ""
    return f"<figure><figcaption>{title} <small>{html.escape(chart.unit)}</small></figcaption>{picture}{_legend(lines)}{note}</figure>"


def sparkline(points: Sequence[Point], width: int = 120, height: int = 22) -> str:
    """A curve of the height of a line of text."""
    if len(points) < 2:
        return ""
    thin = thinned(points, width)
    ys = [y for _, y in thin]
    low, span = min(ys), (max(ys) - min(ys)) or 1.0
    x0, wide = thin[0][0], (thin[-1][0] - thin[0][0]) or 1.0
    path = " ".join(
        f"{1 + (x - x0) / wide * (width - 2):.1f},{height - 2 - (y - low) / span * (height - 4):.1f}" for x, y in thin
    )
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="spark" {box}><polyline points="{path}" fill="none"/></svg>'
