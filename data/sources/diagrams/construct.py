"""Constructions: each adds points, strokes or circles to a figure together with the facts that make them so.

They work on point, line and circle numbers and return the numbers of what they added. Whether the result collides
with the rest is for check.settle; a construction that cannot be carried out raises Rejected.
"""

from __future__ import annotations

import math

from gnomon.data.sources.diagrams.figure import Circle, Figure, Heading, Line, Mark, Rejected
from gnomon.data.sources.diagrams.plane import circumcentre, cross, dot, foot, incentre, meet, turned, unit


def free(figure: Figure, at: complex) -> int:
    figure.points.append(at)
    return len(figure.points) - 1


def segment(figure: Figure, a: int, b: int, heading: Heading | None = None) -> int:
    """The stroke from point a to point b."""
    return stroke(figure, (figure.points[a], figure.points[b]), (a, b), heading)


def stroke(
    figure: Figure, ends: tuple[complex, complex], points: tuple[int, ...] = (), heading: Heading | None = None
) -> int:
    figure.lines.append(Line(ends, points, heading or figure.new_heading()))
    return len(figure.lines) - 1


def join(figure: Figure, a: int, b: int) -> int:
    """The stroke from a to b, unless there is one."""
    if figure.line_through(a, b) is not None:
        raise Rejected("the points are joined already")
    return segment(figure, a, b)


def extended(figure: Figure, line: int, before: float, after: float) -> None:
    """Let a stroke run past its ends by these lengths."""
    old = figure.lines[line]
    start, stop = old.ends
    along = unit(stop - start)
    figure.lines[line] = Line((start - before * along, stop + after * along), old.points, old.heading)


def put_on_line(figure: Figure, point: int, line: int) -> None:
    figure.lines[line] = figure.lines[line].with_point(point)


def put_on_circle(figure: Figure, point: int, circle: int) -> None:
    figure.circles[circle] = figure.circles[circle].with_point(point)


def on_line(figure: Figure, line: int, t: float) -> int:
    """A point on a stroke, t of the way from its start to its end."""
    start, stop = figure.lines[line].ends
    point = free(figure, start + t * (stop - start))
    put_on_line(figure, point, line)
    return point


def between(figure: Figure, a: int, b: int, t: float) -> int:
    """A point on the stroke through a and b, t of the way from a to b."""
    line = figure.line_through(a, b)
    if line is None:
        raise Rejected("no stroke joins the points")
    point = free(figure, figure.points[a] + t * (figure.points[b] - figure.points[a]))
    put_on_line(figure, point, line)
    return point


def midpoint(figure: Figure, a: int, b: int) -> int:
    point = between(figure, a, b, 0.5)
    figure.facts.append(("midpoint", point, a, b))
    count = 1 + sum(mark.kind == "ticks" for mark in figure.marks) // 2
    figure.marks += [Mark("ticks", (a, point), count), Mark("ticks", (point, b), count)]
    return point


def crossing(figure: Figure, i: int, j: int) -> int:
    """The point where strokes i and j cross."""
    one, two = figure.lines[i], figure.lines[j]
    at = meet(*one.ends, *two.ends)
    if at is None or not (_inside(at, one) and _inside(at, two)) or set(one.points) & set(two.points):
        raise Rejected("the strokes do not cross, or their crossing is a point already")
    point = free(figure, at)
    put_on_line(figure, point, i)
    put_on_line(figure, point, j)
    return point


def drop_foot(figure: Figure, p: int, line: int) -> int:
    """The foot of the perpendicular from p on a stroke, with the stroke that leads there."""
    target = figure.lines[line]
    at = foot(figure.points[p], *target.ends)
    if p in target.points or not _inside(at, target):
        raise Rejected("the foot falls outside the stroke")
    point = free(figure, at)
    put_on_line(figure, point, line)
    segment(figure, p, point, square(target.heading))
    figure.facts.append(("foot", point, p, line))
    figure.marks.append(Mark("square", (p, point, figure.lines[line].points[0])))
    return point


def square(heading: Heading) -> Heading:
    """The heading at right angles to this one."""
    return heading[0], 1 - heading[1]


def parallel_through(figure: Figure, p: int, line: int, reach: float) -> int:
    """A stroke from p to a new point, parallel to a given stroke; the sign of reach is its sense."""
    return _directed(figure, p, line, reach, 1 + 0j, figure.lines[line].heading)


def perpendicular_through(figure: Figure, p: int, line: int, reach: float) -> int:
    made = _directed(figure, p, line, reach, 1j, square(figure.lines[line].heading))
    if p in figure.lines[line].points:
        other = next(q for q in figure.lines[line].points if q != p)
        figure.marks.append(Mark("square", (len(figure.points) - 1, p, other)))
    return made


def _directed(figure: Figure, p: int, line: int, reach: float, turn: complex, heading: Heading) -> int:
    start, stop = figure.lines[line].ends
    if any(p in other.points and other.heading == heading for other in figure.lines):
        raise Rejected("such a stroke is there already")
    end = free(figure, figure.points[p] + reach * turn * unit(stop - start))
    return segment(figure, p, end, heading)


def cut_parallel(figure: Figure, p: int, line: int, other: int) -> int:
    """The stroke from p, parallel to `line`, up to the point where it meets the stroke `other`; returns that point."""
    start, stop = figure.lines[line].ends
    at = meet(figure.points[p], figure.points[p] + stop - start, *figure.lines[other].ends)
    if p in figure.lines[line].points or at is None or not _inside(at, figure.lines[other]):
        raise Rejected("the parallel misses the stroke")
    point = free(figure, at)
    put_on_line(figure, point, other)
    segment(figure, p, point, figure.lines[line].heading)
    return point


def bisector(figure: Figure, a: int, b: int, c: int) -> int:
    """The stroke that halves angle abc, up to the stroke ac; returns its end."""
    line = figure.line_through(a, c)
    if line is None:
        raise Rejected("no stroke joins the points")
    p, q, r = (figure.points[k] for k in (a, b, c))
    point = between(figure, a, c, abs(p - q) / (abs(p - q) + abs(r - q)))
    segment(figure, b, point)
    figure.facts.append(("bisector", a, b, c, point))
    figure.marks += [Mark("arc", (a, b, point)), Mark("arc", (point, b, c))]
    return point


def circle(figure: Figure, centre: complex, radius: float, middle: int | None = None) -> int:
    figure.circles.append(Circle(centre, radius, (), middle))
    return len(figure.circles) - 1


def circle_around(figure: Figure, middle: int, through: int) -> int:
    centre = figure.points[middle]
    made = circle(figure, centre, abs(figure.points[through] - centre), middle)
    put_on_circle(figure, through, made)
    return made


def circumcircle(figure: Figure, a: int, b: int, c: int, with_centre: bool = True) -> int:
    p, q, r = (figure.points[k] for k in (a, b, c))
    if abs(cross(q - p, r - p)) < 1e-3:
        raise Rejected("the points are nearly in line")
    centre = circumcentre(p, q, r)
    made = circle(figure, centre, abs(centre - p), free(figure, centre) if with_centre else None)
    for point in (a, b, c):
        put_on_circle(figure, point, made)
    return made


def incircle(figure: Figure, a: int, b: int, c: int, touch_points: int = 0) -> int:
    """The circle that touches the three sides, all drawn; with its centre and the first few touch points."""
    sides = [figure.line_through(*pair) for pair in ((a, b), (b, c), (c, a))]
    if None in sides:
        raise Rejected("a side is not drawn")
    centre = incentre(*(figure.points[k] for k in (a, b, c)))
    radius = abs(foot(centre, *figure.lines[sides[0]].ends) - centre)
    made = circle(figure, centre, radius, free(figure, centre))
    for index, side in enumerate(sides):
        figure.facts.append(("tangent", side, made))
        if index < touch_points:
            point = free(figure, foot(centre, *figure.lines[side].ends))
            put_on_line(figure, point, side)
            put_on_circle(figure, point, made)
    return made


def on_circle(figure: Figure, circle: int, degrees: float) -> int:
    target = figure.circles[circle]
    point = free(figure, target.centre + target.radius * turned(degrees))
    put_on_circle(figure, point, circle)
    return point


def opposite(figure: Figure, circle: int, p: int) -> int:
    """The other end of the diameter from p, with the diameter drawn; the centre lies on it if it is a point."""
    target = figure.circles[circle]
    point = free(figure, 2 * target.centre - figure.points[p])
    put_on_circle(figure, point, circle)
    line = segment(figure, p, point)
    if target.middle is not None:
        put_on_line(figure, target.middle, line)
    return point


def tangent_at(figure: Figure, p: int, circle: int, before: float, after: float) -> int:
    """The tangent stroke at a point of the circle, reaching this far to both sides, with points at its ends."""
    target = figure.circles[circle]
    radius = figure.points[p] - target.centre
    along = 1j * unit(radius)
    heading = _heading_of(figure, target.middle, p)
    ends = [free(figure, figure.points[p] - before * along), free(figure, figure.points[p] + after * along)]
    line = stroke(
        figure, (figure.points[ends[0]], figure.points[ends[1]]), (ends[0], p, ends[1]), heading and square(heading)
    )
    figure.facts.append(("tangent", line, circle))
    if heading:
        figure.marks.append(Mark("square", (target.middle, p, ends[1])))
    return line


def tangents_from(figure: Figure, p: int, circle: int, count: int = 2, radii: bool = False) -> list[int]:
    """The strokes from an outer point that touch the circle; returns the touch points."""
    target = figure.circles[circle]
    away = target.centre - figure.points[p]
    if abs(away) < 1.3 * target.radius:
        raise Rejected("the point is not well outside the circle")
    half = math.acos(target.radius / abs(away))
    touches = []
    for sign in (1, -1)[:count]:
        point = free(figure, target.centre - unit(away) * turned(math.degrees(sign * half)) * target.radius)
        line = segment(figure, p, point)
        put_on_circle(figure, point, circle)
        figure.facts.append(("tangent", line, circle))
        touches.append(point)
        if radii and target.middle is not None:
            segment(figure, target.middle, point, square(figure.lines[line].heading))
            figure.marks.append(Mark("square", (target.middle, point, p)))
    return touches


def _heading_of(figure: Figure, a: int | None, b: int) -> Heading | None:
    line = None if a is None else figure.line_through(a, b)
    return None if line is None else figure.lines[line].heading


def _inside(at: complex, line: Line) -> bool:
    start, stop = line.ends
    return 0 < dot(at - start, stop - start) < abs(stop - start) ** 2
