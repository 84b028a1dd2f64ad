"""Curves: what is drawn is what was measured."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from rlkit.looking.charts import COLOURS, DASHES, Chart, Line, figure, labels, number, sparkline, stack, thinned, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 0.92, [0.2, 0.4, 0.6, 0.8]),
        (-3, 12, [0, 5, 10]),
        (0, 2.5e-6, [0, 5e-7, 1e-6, 1.5e-6, 2e-6, 2.5e-6]),
        (7, 7, [7]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.0, 12345.0, 0.123456, 1e-7, 3)] == ["0", "12,345", "0.1235", "1e-07", "3"]
    assert labels([1.0, 1.0000001]) == ["1", "1.0000001"] and labels([0.5, 1.0]) == ["0.5", "1"]


def test_a_long_curve_is_averaged_and_keeps_its_mean() -> None:
    points = [(float(k), math.sin(k)) for k in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100 and few[0] == pytest.approx((4.5, sum(y for _, y in points[:10]) / 10))
    assert sum(y for _, y in few) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thinned(points[:50], 100) == points[:50]


def test_stacked_lines_end_at_their_sum() -> None:
    below, above = stack([Line("a", [(1, 1.0), (2, 2.0)]), Line("b", [(2, 3.0), (3, 4.0)])])
    assert below.points == [(1, 1.0), (2, 2.0), (3, 0.0)]
    assert above.points == [(1, 1.0), (2, 5.0), (3, 4.0)] and above.band == [
        (1, 1.0, 1.0),
        (2, 2.0, 5.0),
        (3, 0.0, 4.0),
    ]


def drawn(text: str) -> ET.Element:
    """The picture of a figure, read by a parser of XML."""
    picture = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    for e in picture.iter():
        e.tag = e.tag.rpartition("}")[2]
    return picture


def test_a_line_can_be_read_back_through_its_scale() -> None:
    points = [(1.0, 0.5), (2.0, -1.0), (10.0, 3.0)]
    picture = drawn(figure(Chart("t", "u", [Line("a <b>", points)])))
    x0, x1, y0, y1 = map(float, picture.attrib["data-scale"].split())
    (axis,) = (e.attrib["d"] for e in picture.iter("path") if e.attrib["class"] == "axis")
    left, top, bottom, right = (float(x) for x in axis.replace("M", " ").replace("V", " ").replace("H", " ").split())
    (line,) = picture.iter("polyline")
    assert line.attrib["data-label"] == "a <b>"
    for place, (x, y) in zip(line.attrib["points"].split(), points, strict=True):
        px, py = map(float, place.split(","))
        assert x0 + (px - left) / (right - left) * (x1 - x0) == pytest.approx(x, abs=0.02)
        assert y0 + (bottom - py) / (bottom - top) * (y1 - y0) == pytest.approx(y, abs=0.02)


def test_lines_differ_by_more_than_their_colour() -> None:
    lines = [Line(f"l{k}", [(0, k), (1, k)], k) for k in range(8)]
    picture = drawn(figure(Chart("t", "u", lines)))
    found = [(e.attrib["stroke"], e.attrib.get("stroke-dasharray", "")) for e in picture.iter("polyline")]
    assert [dash for _, dash in found] == list(DASHES) and [colour for colour, _ in found] == list(COLOURS)
    assert len(set(DASHES)) == len(set(COLOURS)) == 8


def test_what_has_no_points_is_no_picture() -> None:
    assert figure(Chart("t", "u", [Line("a", [])])) == "" and sparkline([(1, 1.0)]) == ""
    assert len(list(drawn(figure(Chart("t", "u", [Line("a", [(3, 2.0)])]))).iter("circle"))) == 1, "one point is a mark"
