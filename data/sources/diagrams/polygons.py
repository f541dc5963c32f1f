"""Named polygons: corners that deserve the name and, by a clear margin, no narrower or other one."""

from __future__ import annotations

import math
from itertools import pairwise

from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.plane import angle, turned

TRIANGLES = ("equilateral triangle", "isosceles triangle", "right triangle", "scalene triangle")
QUADRILATERALS = ("square", "rectangle", "rhombus", "parallelogram", "trapezoid", "kite")
REGULAR = {"pentagon": 5, "hexagon": 6, "heptagon": 7, "octagon": 8}

# Symbolic directions of the sides in order: (family letter, quarter); a letter seen once is a family of its own.
SIDES = {
    "square": (("a", 0), ("a", 1), ("a", 0), ("a", 1)),
    "rectangle": (("a", 0), ("a", 1), ("a", 0), ("a", 1)),
    "rhombus": (("a", 0), ("b", 0), ("a", 0), ("b", 0)),
    "parallelogram": (("a", 0), ("b", 0), ("a", 0), ("b", 0)),
    "trapezoid": (("a", 0), ("b", 0), ("a", 0), ("c", 0)),
    "right triangle": (("a", 0), ("a", 1), ("b", 0)),
}
CROSSED_SQUARELY = ("square", "rhombus", "kite")


def corners(kind: str, dice: Dice) -> list[complex]:
    """Corners about the origin, of size about 1, in a fixed pose."""
    return _about_origin(_CORNERS[kind](dice) if kind in _CORNERS else _regular(REGULAR[kind]))


def _about_origin(points: list[complex]) -> list[complex]:
    x = [p.real for p in points]
    y = [p.imag for p in points]
    middle = complex(min(x) + max(x), min(y) + max(y)) / 2
    scale = max(max(x) - min(x), max(y) - min(y))
    return [(p - middle) / scale for p in points]


def _regular(count: int) -> list[complex]:
    return [turned(360 * k / count - 90) for k in range(count)]


def _isosceles(dice: Dice) -> list[complex]:
    # Apex angles far from 60 (equilateral) and from 90 (right).
    apex = dice.between(28, 44) if dice.chance(0.5) else dice.between(104, 122)
    return [turned(90 - apex / 2), 0j, turned(90 + apex / 2)]


def _right(dice: Dice) -> list[complex]:
    ratio = dice.between(1.35, 2.2)
    return [complex(ratio, 0), 0j, 1j] if dice.chance(0.5) else [1 + 0j, 0j, complex(0, ratio)]


def _scalene(dice: Dice) -> list[complex]:
    while True:
        first, second = dice.between(25, 110), dice.between(25, 110)
        angles = sorted((first, second, 180 - first - second))
        distinct = angles[0] > 24 and all(b - a > 17 for a, b in pairwise(angles))
        if distinct and all(abs(a - 90) > 11 for a in angles):
            break
    # Sine rule, with the side between the two angles of length 1.
    a, b = math.radians(angles[0]), math.radians(angles[1])
    side = math.sin(b) / math.sin(a + b)
    points = [0j, 1 + 0j, side * turned(angles[0])]
    return dice.shuffled(points)


def _trapezoid(dice: Dice) -> list[complex]:
    while True:
        top, shift, height = dice.between(0.35, 0.65), dice.between(0.02, 0.4), dice.between(0.4, 0.7)
        points = [0j, 1 + 0j, complex(shift + top, height), complex(shift, height)]
        if all(abs(angle(points[k - 1], points[k], points[k - 3]) - 90) > 12 for k in range(4)):
            return points


def _kite(dice: Dice) -> list[complex]:
    wide, low = dice.between(0.28, 0.42), dice.between(0.5, 0.75)
    return [-0.25j - 0j, complex(wide, 0), complex(0, low), complex(-wide, 0)]


_CORNERS = {
    "triangle": _scalene,
    "equilateral triangle": lambda dice: _regular(3),
    "isosceles triangle": _isosceles,
    "right triangle": _right,
    "scalene triangle": _scalene,
    "square": lambda dice: [0j, 1 + 0j, 1 + 1j, 1j],
    "rectangle": lambda dice: _box(dice.between(1.45, 2.3)),
    "rhombus": lambda dice: _slanted(dice.between(48, 68), 1.0),
    "parallelogram": lambda dice: _slanted(dice.between(48, 68) + 62 * dice.integer(0, 1), dice.between(1.45, 2.1)),
    "trapezoid": _trapezoid,
    "kite": _kite,
}


def _box(ratio: float) -> list[complex]:
    return [0j, complex(ratio, 0), complex(ratio, 1), 1j]


def _slanted(degrees: float, ratio: float) -> list[complex]:
    side = turned(degrees)
    return [0j, ratio + 0j, ratio + side, side]
