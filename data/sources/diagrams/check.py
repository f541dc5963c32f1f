"""Numbers against symbols: what a figure claims must hold to 1e-9, and what it does not claim must be clearly false."""

from __future__ import annotations

import math

from gnomon.data.sources.diagrams.figure import Figure, Line, Rejected
from gnomon.data.sources.diagrams.plane import cross, dot, foot, gap, unit

EXACT = 1e-9
SPACING = 0.1
OFF_STROKE = 0.045
OFF_CIRCLE = 0.04
# Sine of the least angle between strokes that are neither parallel nor perpendicular, or short of a right angle.
SLANT = math.sin(math.radians(6))
BORDER = 0.07


def settle(figure: Figure, since: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Raise Rejected if something newer than `since` (a Figure.size) makes a coincidence that no symbol tells of."""
    points, lines, circles = since
    _points(figure, points)
    _incidences(figure, points, lines, circles)
    _directions(figure, lines)
    _circles(figure, lines, circles)


def confirm(figure: Figure) -> None:
    """Assert every claim of the figure numerically; a failure is an error of a construction, not of a draw."""
    at = figure.points
    for line in figure.lines:
        start, stop = line.ends
        for p in line.points:
            assert abs(cross(at[p] - start, unit(stop - start))) < EXACT, f"point {p} is not on its line"
    for circle in figure.circles:
        for p in circle.points:
            assert abs(abs(at[p] - circle.centre) - circle.radius) < EXACT, f"point {p} is not on its circle"
        assert circle.middle is None or abs(at[circle.middle] - circle.centre) < EXACT
    for fact in figure.facts:
        assert fact_error(figure, fact) < EXACT, f"{fact} does not hold"


def fact_error(figure: Figure, fact: tuple) -> float:
    """How far a fact is from holding, as a length in units of the shorter side."""
    at = figure.points
    kind, *ids = fact
    if kind == "midpoint":
        middle, a, b = ids
        return abs(at[middle] - (at[a] + at[b]) / 2)
    if kind == "foot":
        f, p, line = ids
        return abs(at[f] - foot(at[p], *figure.lines[line].ends))
    if kind == "bisector":
        a, b, c, foot_point = ids
        u, v, w = unit(at[a] - at[b]), unit(at[c] - at[b]), unit(at[foot_point] - at[b])
        return abs(dot(u, w) - dot(v, w))
    if kind == "tangent":
        line, circle = figure.lines[ids[0]], figure.circles[ids[1]]
        return abs(abs(foot(circle.centre, *line.ends) - circle.centre) - circle.radius)
    if kind == "circles tangent":
        one, two = figure.circles[ids[0]], figure.circles[ids[1]]
        apart = abs(one.centre - two.centre)
        return min(abs(apart - one.radius - two.radius), abs(apart - abs(one.radius - two.radius)))
    raise AssertionError(f"no check for the fact {kind}")


def _points(figure: Figure, since: int) -> None:
    at, (width, height) = figure.points, figure.room
    for i in range(since, len(at)):
        p = at[i]
        if not (BORDER < p.real < width - BORDER and BORDER < p.imag < height - BORDER):
            raise Rejected("a point outside")
        for j in range(i):
            if abs(p - at[j]) < SPACING:
                raise Rejected("two points too near")


def _incidences(figure: Figure, points: int, lines: int, circles: int) -> None:
    at = figure.points
    for index, line in enumerate(figure.lines):
        start, stop = line.ends
        # A little beyond its ends too, so that nothing seems to lie on the stroke prolonged.
        reach = 0.06 * unit(stop - start)
        start, stop = start - reach, stop + reach
        for p in range(points if index < lines else 0, len(at)):
            if p not in line.points and gap(at[p], start, stop) < OFF_STROKE:
                raise Rejected("a point nearly on a line")
    for index, circle in enumerate(figure.circles):
        for p in range(points if index < circles else 0, len(at)):
            if p not in circle.points and abs(abs(at[p] - circle.centre) - circle.radius) < OFF_CIRCLE:
                raise Rejected("a point nearly on a circle")


def _directions(figure: Figure, since: int) -> None:
    directions = [unit(line.ends[1] - line.ends[0]) for line in figure.lines]
    for j in range(since, len(figure.lines)):
        for i in range(j):
            sine, cosine = abs(cross(directions[i], directions[j])), abs(dot(directions[i], directions[j]))
            if figure.parallel(i, j):
                assert sine < EXACT, f"lines {i} and {j} are not parallel"
                if _apart(figure.lines[i], figure.lines[j]) < SPACING * 0.8:
                    raise Rejected("parallels too near")
            elif figure.perpendicular(i, j):
                assert cosine < EXACT, f"lines {i} and {j} are not perpendicular"
            elif sine < SLANT or cosine < SLANT:
                raise Rejected("a direction too near another or its normal")


def _apart(one: Line, two: Line) -> float:
    return abs(cross(two.ends[0] - one.ends[0], unit(one.ends[1] - one.ends[0])))


def _circles(figure: Figure, lines: int, circles: int) -> None:
    width, height = figure.room
    tangent = {fact[1:] for fact in figure.facts if fact[0] == "tangent"}
    touching = {fact[1:] for fact in figure.facts if fact[0] == "circles tangent"}
    for j, circle in enumerate(figure.circles):
        x, y, r = circle.centre.real, circle.centre.imag, circle.radius
        if j >= circles and not (r + 0.02 < x < width - r - 0.02 and r + 0.02 < y < height - r - 0.02):
            raise Rejected("a circle outside")
        if j >= circles and r < SPACING:
            raise Rejected("a circle too small")
        for i in range(lines if j < circles else 0, len(figure.lines)):
            if (i, j) not in tangent and abs(gap(circle.centre, *figure.lines[i].ends) - r) < OFF_CIRCLE * 0.75:
                # A stroke that ends on the circle comes near it without touching it sideways.
                nearest = foot(circle.centre, *figure.lines[i].ends)
                if abs(abs(nearest - circle.centre) - r) < OFF_CIRCLE * 0.75:
                    raise Rejected("a line nearly tangent to a circle")
        for i in range(j if j >= circles else 0):
            if (i, j) in touching:
                continue
            other = figure.circles[i]
            apart = abs(circle.centre - other.centre)
            near = min(abs(apart - r - other.radius), abs(apart - abs(r - other.radius)))
            if near < OFF_CIRCLE or EXACT < apart < OFF_CIRCLE:
                raise Rejected("two circles nearly tangent or nearly concentric")
