"""Charts as inline SVG: curves over steps, scores with intervals, scores over costs. The page's CSS has the colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860


@dataclass(frozen=True)
class Curve:
    """Points in order of x, all of them finite; `faint` is drawn thin, behind the others."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Bar:
    """A score with its interval, all in [0, 1]. `strong` marks the mean of the bars below it."""

    name: str
    value: float
    low: float
    high: float
    majority: float
    chance: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Point:
    """A cost and a score in [0, 1]. `first` marks what the others are compared with."""

    name: str
    x: float
    y: float
    first: bool = False


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, height: int = 300, log: bool = False) -> str:
    """Curves over one x axis, from the smallest to the largest value there is; `log` for a logarithmic y axis."""
    left, right, top, base = 70, WIDTH - 16, 14, height - 44
    scale: Callable[[float], float] = math.log10 if log else float
    xs = [x for curve in curves for x in curve.x]
    ys = [scale(y) for curve in curves for y in curve.y]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    margin = 0.04 * (y_high - y_low) or 0.5
    y_low, y_high = (0 if y_low == 0 and not log else y_low - margin), y_high + margin

    def px(x: float) -> float:
        return left + (x - x_low) / ((x_high - x_low) or 1) * (right - left)

    def py(y: float) -> float:
        return top + (y_high - scale(y)) / (y_high - y_low) * (base - top)

    parts = []
    for value in _log_ticks(y_low, y_high) if log else ticks(y_low, y_high):
        y = py(value)
        parts.append(line("grid", left, y, right, y))
        parts.append(text("tick", left - 9, y + 4, number(value), anchor="end"))
    parts += [text("tick", px(value), base + 20, number(value)) for value in ticks(x_low, x_high, about=8)]
    parts.append(line("axis", left, base, right, base))
    parts.append(text("label", (left + right) / 2, height - 6, x_label))
    parts.append(f'<g transform="translate(14 {(top + base) / 2}) rotate(-90)">{text("label", 0, 0, y_label)}</g>')
    for curve in sorted(curves, key=lambda c: not c.faint):
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(curve.x, curve.y))
        style = "curve faint" if curve.faint else "curve"
        parts.append(f'<polyline class="{style}" points="{points}"><title>{escape(curve.name)}</title></polyline>')
    return drawing(height, parts, f"{y_label} over {x_label}")


def interval_chart(bars: Sequence[Bar]) -> str:
    """One line per task: the score as a dot on its interval, the majority baseline as a tick, chance as a ring."""
    left, right, top, row, gap = 230, WIDTH - 62, 26, 25, 12
    groups = [sum(bar.strong for bar in bars[1 : index + 1]) for index in range(len(bars))]
    height = top + row * len(bars) + gap * max(groups, default=0) + 12

    def px(value: float) -> float:
        return left + value * (right - left)

    parts = []
    for percent in range(0, 101, 20):
        parts.append(line("grid", px(percent / 100), top - 6, px(percent / 100), height - 8))
        parts.append(text("tick", px(percent / 100), top - 12, f"{percent}%"))
    for index, bar in enumerate(bars):
        y = top + row * (index + 0.5) + gap * groups[index]
        tip = f"{bar.name}: {bar.value:.1%} [{bar.low:.1%}, {bar.high:.1%}], majority {bar.majority:.1%}"
        tip += f", chance {bar.chance:.1%}" if bar.chance is not None else ""
        marks = [
            _rect("hover", 0, y - row / 2, WIDTH, row),
            text("name", left - 14, y + 4.5, bar.name, anchor="end"),
            _rect("span", px(bar.low), y - 4, max(1.0, px(bar.high) - px(bar.low)), 8),
            "" if bar.chance is None else _circle("chance", px(bar.chance), y, 4.5),
            line("majority", px(bar.majority), y - 8, px(bar.majority), y + 8),
            _circle("dot", px(bar.value), y, 5),
            text("value", WIDTH - 4, y + 4.5, f"{100 * bar.value:.1f}", anchor="end"),
        ]
        style = "bar strong" if bar.strong else "bar"
        parts.append(f'<g class="{style}"><title>{escape(tip)}</title>{"".join(marks)}</g>')
    return drawing(height, parts, "Scores with 95 % intervals, majority baselines and chance")


def scatter_chart(points: Sequence[Point], *, x_label: str, y_label: str, height: int = 380) -> str:
    """Cost to the right, score upwards; a line through the points that no other beats in both."""
    left, right, top, base = 70, WIDTH - 150, 14, height - 44
    x_high = max(p.x for p in points) * 1.06 or 1.0
    lows, highs = min(p.y for p in points), max(p.y for p in points)
    margin = 0.08 * (highs - lows) or 0.05
    y_low, y_high = max(0.0, lows - margin), min(1.0, highs + margin)

    def px(x: float) -> float:
        return left + x / x_high * (right - left)

    def py(y: float) -> float:
        return top + (y_high - y) / (y_high - y_low) * (base - top)

    parts = []
    for value in ticks(y_low, y_high):
        parts.append(line("grid", left, py(value), right, py(value)))
        parts.append(text("tick", left - 9, py(value) + 4, f"{100 * value:g}%", anchor="end"))
    parts += [text("tick", px(value), base + 20, number(value)) for value in ticks(0.0, x_high, about=8)]
    parts.append(line("axis", left, base, right, base))
    parts.append(text("label", (left + right) / 2, height - 6, x_label))
    parts.append(f'<g transform="translate(14 {(top + base) / 2}) rotate(-90)">{text("label", 0, 0, y_label)}</g>')
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    joined = " ".join(f"{px(p.x):.1f},{py(p.y):.1f}" for p in front)
    parts.append(f'<polyline class="curve faint" points="{joined}"/>')
    taken: list[float] = []
    for point in sorted(points, key=lambda p: -p.y):
        # labels of neighbouring points are moved apart
        y = py(point.y)
        while any(abs(y - other) < 15 for other in taken):
            y += 15
        taken.append(y)
        style = "strong" if point.first else "bar"
        tip = f"{point.name}: {point.y:.1%} at {point.x:.2f}"
        dot = _circle("dot", px(point.x), py(point.y), 6 if point.first else 5)
        lead = line("grid", px(point.x) + 7, py(point.y), px(point.x) + 12, y)
        label = text("name", px(point.x) + 14, y + 4.5, point.name, anchor="start")
        parts.append(f'<g class="{style}"><title>{escape(tip)}</title>{lead}{dot}{label}</g>')
    return drawing(height, parts, f"{y_label} over {x_label}")


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    # rounding: 3 * 0.1 would be written with all its digits
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, digits) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, given an axis in exponents; only the powers when there are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low <= math.log10(f * 10.0**p) <= high]


def number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def drawing(height: int, parts: Sequence[str], title: str, *, width: int = WIDTH) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(style: str, x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rect(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4"/>'


def _circle(style: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
