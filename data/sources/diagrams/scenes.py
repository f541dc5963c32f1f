"""Scenes: compound figures to ask about, a base with more constructions on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gnomon.data.sources.diagrams import construct as make
from gnomon.data.sources.diagrams import polygons
from gnomon.data.sources.diagrams.check import settle
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import diagonals, one_more, polygon, until_accepted
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.grow import grow
from gnomon.data.sources.diagrams.plane import turned


def _triangle(figure: Figure, dice: Dice) -> None:
    a, b, c = polygon(figure, dice.pick(("triangle", "triangle", "right triangle")), dice)
    sort = dice.integer(0, 7)
    base = figure.line_through(b, c)
    if sort == 0:
        make.drop_foot(figure, a, base)
    elif sort == 1:
        make.segment(figure, a, make.midpoint(figure, b, c))
    elif sort == 2:
        p = make.between(figure, a, b, dice.between(0.3, 0.7))
        make.cut_parallel(figure, p, base, figure.line_through(a, c))
    elif sort == 3:
        make.incircle(figure, a, b, c, dice.integer(0, 3))
    elif sort == 4:
        make.circumcircle(figure, a, b, c)
    elif sort == 5:
        make.bisector(figure, a, b, c)
    elif sort == 6:
        d = make.between(figure, b, c, dice.between(0.3, 0.7))
        e = make.between(figure, a, c, dice.between(0.3, 0.7))
        make.crossing(figure, make.segment(figure, a, d), make.segment(figure, b, e))
    else:
        m, n = make.midpoint(figure, a, b), make.midpoint(figure, a, c)
        make.segment(figure, m, n, figure.lines[base].heading)


def _quadrilateral(figure: Figure, dice: Dice) -> None:
    kind = dice.pick(polygons.QUADRILATERALS)
    ids = polygon(figure, kind, dice)
    sort = dice.integer(0, 3)
    if sort == 0:
        diagonals(figure, ids, kind, dice.chance(0.7))
    elif sort == 1:
        make.segment(figure, ids[0], ids[2])
        if dice.chance(0.4):
            make.drop_foot(figure, ids[1], len(figure.lines) - 1)
    elif sort == 2:
        p = make.between(figure, ids[0], ids[1], dice.between(0.25, 0.75))
        make.segment(figure, p, dice.pick(ids[2:]))
    else:
        p = make.between(figure, ids[1], ids[2], dice.between(0.25, 0.75))
        make.cut_parallel(figure, p, figure.line_through(ids[0], ids[1]), figure.line_through(ids[0], ids[3]))


def _round(figure: Figure, dice: Dice) -> None:
    radius = dice.between(0.2, 0.38)
    centre = dice.spot(figure.room, radius + 0.05)
    o = make.free(figure, centre)
    ring = make.circle(figure, centre, radius, o)
    start = dice.between(0, 360)
    sort = dice.integer(0, 5)
    if sort == 0:
        a, b, c = (make.on_circle(figure, ring, start + 120 * k + dice.between(-35, 35)) for k in range(3))
        for pair in ((a, b), (b, c), (c, a)):
            make.segment(figure, *pair)
    elif sort == 1:
        a = make.on_circle(figure, ring, start)
        b = make.opposite(figure, ring, a)
        c = make.on_circle(figure, ring, start + dice.between(50, 130))
        side = make.segment(figure, a, c)
        # Thales: the angle over a diameter is right.
        make.segment(figure, c, b, make.square(figure.lines[side].heading))
    elif sort == 2:
        reach = dice.between(1.5, 2.4)
        p = make.free(figure, centre + radius * reach * turned(start))
        make.tangents_from(figure, p, ring, dice.integer(1, 2), radii=dice.chance(0.6))
    elif sort == 3:
        a, b, c, d = (make.on_circle(figure, ring, start + 90 * k + dice.between(-30, 30)) for k in range(4))
        one, two = make.segment(figure, a, c), make.segment(figure, b, d)
        if dice.chance(0.6):
            make.crossing(figure, one, two)
    elif sort == 4:
        a = make.on_circle(figure, ring, start)
        make.segment(figure, o, a)
        make.tangent_at(figure, a, ring, dice.between(0.15, 0.35), dice.between(0.15, 0.35))
    else:
        a = make.on_circle(figure, ring, start)
        b = make.on_circle(figure, ring, start + dice.between(60, 130))
        chord = make.segment(figure, a, b)
        make.segment(figure, o, a)
        if dice.chance(0.5):
            # From the centre the foot on a chord is its midpoint.
            m = make.drop_foot(figure, o, chord)
            figure.facts.append(("midpoint", m, a, b))


def _rails(figure: Figure, dice: Dice) -> None:
    """Two or three parallels cut by a transversal."""
    way = turned(dice.between(0, 360))
    heading = figure.new_heading()
    middle = dice.spot(figure.room, 0.4)
    count = dice.integer(2, 3)
    rails = []
    for k in range(count):
        across = 1j * way * (k - (count - 1) / 2) * dice.between(0.17, 0.26)
        a = make.free(figure, middle + across - way * dice.between(0.2, 0.36))
        b = make.free(figure, middle + across + way * dice.between(0.2, 0.36))
        rails.append(make.segment(figure, a, b, heading))
    p = make.on_line(figure, rails[0], dice.between(0.25, 0.75))
    q = make.on_line(figure, rails[-1], dice.between(0.25, 0.75))
    cut = make.segment(figure, p, q)
    if count == 3:
        make.crossing(figure, cut, rails[1])


BASES = (_triangle, _triangle, _quadrilateral, _quadrilateral, _round, _round, _rails)


def _overlay(figure: Figure, dice: Dice) -> None:
    """A small figure of its own, laid anywhere over the others."""
    if dice.chance(0.6):
        polygon(figure, dice.pick(("triangle", "right triangle", "parallelogram", "trapezoid")), dice, 0.3, 0.55)
        return
    radius = dice.between(0.13, 0.24)
    centre = dice.spot(figure.room, radius + 0.05)
    o = make.free(figure, centre)
    ring = make.circle(figure, centre, radius, o)
    make.segment(figure, o, make.on_circle(figure, ring, dice.between(0, 360)))


def scene(dice: Dice, level: int, room: tuple[float, float], bases: tuple = BASES) -> Figure:
    """Level 2: one compound; level 3: several figures, overlapping, with more constructions on them."""
    figure = until_accepted(lambda: _based(Figure(room), dice, dice.pick(bases)))
    if level == 2:
        return grow(figure, dice, dice.integer(0, 2))
    with suppress(Rejected):
        figure = one_more(figure, lambda trial: _overlay(trial, dice))
    return grow(figure, dice, dice.integer(3, 5))


def circle_scene(dice: Dice, level: int, room: tuple[float, float]) -> Figure:
    """A scene with at least one circle in it."""
    return scene(dice, level, room, (_round,))


def _based(figure: Figure, dice: Dice, base: Callable[[Figure, Dice], None]) -> Figure:
    since = figure.size
    base(figure, dice)
    settle(figure, since)
    return figure
