"""Separate shapes: plane figures, wire-frame solids and small graphs, each laid into a square."""

from __future__ import annotations

import math
from collections.abc import Callable

from gnomon.data.sources.diagrams import polygons
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.figure import Shape
from gnomon.data.sources.diagrams.plane import turned

ROUND = ("circle", "ellipse", "semicircle", "quarter circle")
SOLIDS = ("cube", "cylinder", "cone", "square pyramid", "triangular prism", "sphere")
GRAPHS = ("bar chart", "line chart", "pie chart", "parabola", "sine curve")
Path = tuple[complex, ...]
# Drawn, dashed (hidden) and filled paths.
Outlines = tuple[list[Path], list[Path], list[Path]]


def shape(kind: str, dice: Dice, centre: complex, side: float, name: str | None = None) -> Shape:
    """A shape of this kind in the square of this centre and side; plane figures are turned at random."""
    if kind == "circle":
        box = (centre.real - side / 2, centre.imag - side / 2, centre.real + side / 2, centre.imag + side / 2)
        return Shape(kind, box, circle=(centre, side / 2), name=name, seat=centre)
    return _laid(kind, _OUTLINES[kind](dice) if kind in _OUTLINES else _polygon(kind, dice), centre, side, name)


def bar_chart(dice: Dice, centre: complex, side: float, count: int) -> Shape:
    return _laid("bar chart", _bars(dice, count), centre, side, None)


def _laid(kind: str, outlines: Outlines, centre: complex, side: float, name: str | None) -> Shape:
    solid, hidden, filled = outlines
    corners = [p for path in (*solid, *hidden, *filled) for p in path]
    left, top = min(p.real for p in corners), min(p.imag for p in corners)
    wide, tall = max(p.real for p in corners) - left, max(p.imag for p in corners) - top
    scale = side / max(wide, tall)
    origin = complex(left + wide / 2, top + tall / 2)

    def placed(paths: list[Path]) -> tuple[Path, ...]:
        return tuple(tuple(centre + scale * (p - origin) for p in path) for path in paths)

    half_wide, half_tall = scale * wide / 2, scale * tall / 2
    box = (centre.real - half_wide, centre.imag - half_tall, centre.real + half_wide, centre.imag + half_tall)
    # A name fits inside a polygon, at its centroid; in solids and graphs it would cross strokes.
    seat = None
    if kind not in SOLIDS and kind not in GRAPHS:
        ring = placed(solid)[0][:-1]
        seat = sum(ring) / len(ring)
    return Shape(kind, box, placed(solid), placed(hidden), placed(filled), name=name, seat=seat)


def _ring(points: list[complex]) -> Path:
    return (*points, points[0])


def _polygon(kind: str, dice: Dice) -> Outlines:
    turn = turned(dice.between(0, 360))
    return [_ring([p * turn for p in polygons.corners(kind, dice)])], [], []


def _oval(centre: complex, a: float, b: float, start: float = 0, stop: float = 360) -> Path:
    count = max(8, round(abs(stop - start) / 9))
    angles = (math.radians(start + (stop - start) * k / count) for k in range(count + 1))
    return tuple(centre + complex(a * math.cos(t), b * math.sin(t)) for t in angles)


def _ellipse(dice: Dice) -> Outlines:
    turn = turned(dice.between(0, 360))
    return [tuple(p * turn for p in _oval(0j, 1, dice.between(0.45, 0.68)))], [], []


def _sector(degrees: float) -> Callable[[Dice], Outlines]:
    def draw(dice: Dice) -> Outlines:
        turn = turned(dice.between(0, 360))
        arc = _oval(0j, 1, 1, 0, degrees)
        ring = (*arc, arc[0]) if degrees == 180 else (*arc, 0j, arc[0])
        return [tuple(p * turn for p in ring)], [], []

    return draw


def _cube(dice: Dice) -> Outlines:
    depth = complex(dice.between(0.3, 0.5) * dice.pick((-1, 1)), -dice.between(0.3, 0.45))
    front = [0j, 1 + 0j, 1 + 1j, 1j]
    back = [p + depth for p in front]
    # The back corner behind the front face is hidden with its three edges.
    hidden = 3 if depth.real > 0 else 2
    solid = [_ring(front)] + [(front[k], back[k]) for k in range(4) if k != hidden]
    solid += [(back[k], back[(k + 1) % 4]) for k in range(4) if hidden not in (k, (k + 1) % 4)]
    dashed = [(front[hidden], back[hidden])] + [(back[hidden], back[(hidden + s) % 4]) for s in (1, -1)]
    return solid, dashed, []


def _cylinder(dice: Dice) -> Outlines:
    height, flat = dice.between(1.2, 2.2), dice.between(0.22, 0.36)
    low = complex(0, height)
    solid = [_oval(0j, 1, flat), (-1 + 0j, -1 + low), (1 + 0j, 1 + low), _oval(low, 1, flat, 0, 180)]
    return solid, [_oval(low, 1, flat, 180, 360)], []


def _cone(dice: Dice) -> Outlines:
    height, flat = dice.between(1.5, 2.3), dice.between(0.22, 0.36)
    # The slanted edges touch the base ellipse where its tangent passes through the apex.
    lift = math.degrees(math.asin(flat / height))
    touch = [complex(s * math.cos(math.radians(lift)), -flat * math.sin(math.radians(lift))) for s in (1, -1)]
    apex = complex(0, -height)
    solid = [_oval(0j, 1, flat, -lift, 180 + lift), (touch[0], apex, touch[1])]
    return solid, [_oval(0j, 1, flat, 180 + lift, 360 - lift)], []


def _pyramid(dice: Dice) -> Outlines:
    depth = complex(dice.between(0.35, 0.6), -dice.between(0.3, 0.42))
    a, b, c, d = 0j, 1.2 + 0j, 1.2 + depth, depth
    apex = (a + c) / 2 - 1j * dice.between(1.1, 1.5)
    return [(a, b, c, apex, a), (b, apex)], [(a, d, c), (d, apex)], []


def _prism(dice: Dice) -> Outlines:
    away = complex(dice.between(1.1, 1.8), -dice.between(0.25, 0.5))
    a, b, top = 0j, 1 + 0j, complex(dice.between(0.35, 0.6), -0.9)
    return [(a, b, top, a), (b, b + away, top + away, top)], [(a, a + away, b + away), (a + away, top + away)], []


def _sphere(dice: Dice) -> Outlines:
    flat = dice.between(0.25, 0.4)
    return [_oval(0j, 1, 1), _oval(0j, 1, flat, 0, 180)], [_oval(0j, 1, flat, 180, 360)], []


def _bars(dice: Dice, count: int) -> Outlines:
    width = 1.15 / max(count, 1)
    filled = []
    for k in range(count):
        left, right, high = width * (k + 0.2), width * (k + 0.85), -1j * dice.between(0.2, 1.0)
        filled.append((left + 0j, left + high, right + high, right + 0j, left + 0j))
    return _axes(), [], filled


def _axes() -> list[Path]:
    return [(-1.1j, 0j, 1.25 + 0j)]


def _line_chart(dice: Dice) -> Outlines:
    count = dice.integer(4, 6)
    heights = [dice.between(0.15, 1.0) for _ in range(count)]
    return [*_axes(), tuple(complex(0.1 + k / (count - 1), -h) for k, h in enumerate(heights))], [], []


def _pie(dice: Dice) -> Outlines:
    start, count = dice.between(0, 360), dice.integer(3, 5)
    cuts = [(0j, turned(start + 360 * (k + dice.between(-0.2, 0.2)) / count)) for k in range(count)]
    return [_oval(0j, 1, 1), *cuts], [], []


def _crossed_axes() -> list[Path]:
    return [(-1 + 0j, 1 + 0j), (1j, -1j)]


def _parabola(dice: Dice) -> Outlines:
    sign, shift, low = dice.pick((-1, 1)), dice.between(-0.2, 0.2), dice.between(-0.7, -0.1)
    x = [0.75 * (k / 12 - 1) for k in range(25)]
    return [*_crossed_axes(), tuple(complex(t + shift, -sign * (low + 2.6 * t * t)) for t in x)], [], []


def _sine(dice: Dice) -> Outlines:
    waves, phase, high = dice.between(1.3, 2.2), dice.between(0, 6), dice.between(0.35, 0.7)
    x = [k / 20 - 1 for k in range(41)]
    return [*_crossed_axes(), tuple(complex(t, -high * math.sin(math.pi * waves * t + phase)) for t in x)], [], []


_OUTLINES: dict[str, Callable[[Dice], Outlines]] = {
    "ellipse": _ellipse,
    "semicircle": _sector(180),
    "quarter circle": _sector(90),
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "square pyramid": _pyramid,
    "triangular prism": _prism,
    "sphere": _sphere,
    "bar chart": lambda dice: _bars(dice, dice.integer(3, 6)),
    "line chart": _line_chart,
    "pie chart": _pie,
    "parabola": _parabola,
    "sine curve": _sine,
}
