"""Charts: round ticks, points where they belong, and markup that an XML parser takes."""

import re
from xml.etree import ElementTree

import pytest

from gnomon.eval.page.svg import WIDTH, Bar, Curve, interval_chart, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 3000, [0, 1000, 2000, 3000]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (7, 7, [7]),
        (0, 3e-4, [0, 1e-4, 2e-4, 3e-4]),
    ],
)
def test_ticks(low, high, expected):
    assert ticks(low, high, about=4 if high == 3000 else 5) == pytest.approx(expected)


def test_curves_reach_from_edge_to_edge():
    chart = line_chart([Curve("a", [0, 50, 100], [1, 3, 2])], x_label="step", y_label="loss", height=200)
    ElementTree.fromstring(chart)
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', chart)[1].split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x3 == WIDTH - 16 and x2 == pytest.approx((x1 + x3) / 2, abs=0.1)
    # larger is higher, and the middle value is half way
    assert y2 < y3 < y1 and y3 == pytest.approx((y1 + y2) / 2, abs=0.1)


def test_a_log_axis_spaces_decades_evenly():
    chart = line_chart([Curve("a", [0, 1, 2], [1, 0.1, 0.01])], x_label="x", y_label="y", log=True)
    ys = [float(pair.split(",")[1]) for pair in re.search(r'points="([^"]+)"', chart)[1].split()]
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.11)


def test_bars():
    bars = [Bar("mean <of> all", 0.5, 0.4, 0.6, 0.25, 0.5, strong=True), Bar("task", 1, 1, 1, 0)]
    root = ElementTree.fromstring(interval_chart(bars))
    dots = [float(c.get("cx")) for c in root.iter("circle") if c.get("class") == "dot"]
    span = next(r for r in root.iter("rect") if r.get("class") == "span")
    # the dot of 50 % is in the middle of its interval from 40 to 60 %, and 100 % ends the axis
    assert dots[0] == pytest.approx(float(span.get("x")) + float(span.get("width")) / 2, abs=0.1)
    assert dots[1] == WIDTH - 62
    assert sum(c.get("class") == "chance" for c in root.iter("circle")) == 1
    assert "mean <of> all" in [t.text for t in root.iter("text")]
