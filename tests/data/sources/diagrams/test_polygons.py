"""Named polygons, named again from their side lengths and angles alone."""

import itertools

import pytest

from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import polygon
from gnomon.data.sources.diagrams.figure import Figure
from gnomon.data.sources.diagrams.polygons import QUADRILATERALS, REGULAR, TRIANGLES, corners


def named(points: list[complex]) -> str:
    """The most specific name, from lengths and dot products with a tolerance of one millionth."""
    count = len(points)
    sides = [points[(k + 1) % count] - points[k] for k in range(count)]
    lengths = [abs(side) for side in sides]

    def same(a: float, b: float) -> bool:
        return abs(a - b) < 1e-6

    def right(k: int) -> bool:
        return abs((sides[k] * sides[k - 1].conjugate()).real) < 1e-6

    def parallel(i: int, j: int) -> bool:
        return abs((sides[i] * sides[j].conjugate()).imag) < 1e-6

    if count > 4:
        return {size: name for name, size in REGULAR.items()}[count]
    equal = all(same(length, lengths[0]) for length in lengths)
    if count == 3:
        if equal:
            return "equilateral triangle"
        if any(right(k) for k in range(3)):
            return "right triangle"
        twins = any(same(a, b) for a, b in itertools.combinations(lengths, 2))
        return "isosceles triangle" if twins else "scalene triangle"
    if parallel(0, 2) and parallel(1, 3):
        if right(0):
            return "square" if equal else "rectangle"
        return "rhombus" if equal else "parallelogram"
    if parallel(0, 2) or parallel(1, 3):
        return "trapezoid"
    return (
        "kite"
        if any(same(lengths[k], lengths[k - 1]) and same(lengths[k - 2], lengths[k - 3]) for k in (0, 1))
        else "?"
    )


@pytest.mark.parametrize("kind", [*TRIANGLES, *QUADRILATERALS, *REGULAR])
def test_corners_deserve_their_name(kind):
    for index in range(40):
        dice = Dice(0, 0, index)
        assert named(corners(kind, dice)) == kind
        figure = Figure((1.5, 1.0))
        assert named([figure.points[k] for k in polygon(figure, kind, dice)]) == kind
