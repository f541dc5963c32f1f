"""Growing a figure by random constructions, as many as find a place."""

from __future__ import annotations

from contextlib import suppress

from gnomon.data.sources.diagrams import construct as make
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import one_more
from gnomon.data.sources.diagrams.figure import Figure, Rejected


def grow(figure: Figure, dice: Dice, steps: int, most_points: int = 12) -> Figure:
    """Up to `steps` random constructions; one that would make an unintended coincidence is left out."""
    for _ in range(steps):
        if len(figure.points) >= most_points:
            break
        with suppress(Rejected):
            figure = one_more(figure, lambda trial: dice.pick(_STEPS)(trial, dice), tries=4)
    return figure


def _point(figure: Figure, dice: Dice) -> int:
    return dice.integer(0, len(figure.points) - 1)


def _side(figure: Figure, dice: Dice) -> tuple[int, int]:
    """Two neighbouring points of a stroke."""
    if not figure.lines:
        raise Rejected("no stroke yet")
    order = figure.along(dice.pick(figure.lines))
    k = dice.integer(0, len(order) - 2)
    return order[k], order[k + 1]


def _grow_midpoint(figure: Figure, dice: Dice) -> None:
    make.midpoint(figure, *_side(figure, dice))


def _grow_cevian(figure: Figure, dice: Dice) -> None:
    make.join(figure, make.between(figure, *_side(figure, dice), dice.between(0.25, 0.75)), _other(figure, dice))


def _other(figure: Figure, dice: Dice) -> int:
    """Any point but the newest."""
    return dice.integer(0, len(figure.points) - 2)


def _grow_join(figure: Figure, dice: Dice) -> None:
    make.join(figure, *dice.sample(range(len(figure.points)), 2))


def _grow_foot(figure: Figure, dice: Dice) -> None:
    _side(figure, dice)
    make.drop_foot(figure, _point(figure, dice), dice.integer(0, len(figure.lines) - 1))


def _grow_parallel(figure: Figure, dice: Dice) -> None:
    _side(figure, dice)
    reach = dice.between(0.25, 0.5) * dice.pick((-1, 1))
    make.parallel_through(figure, _point(figure, dice), dice.integer(0, len(figure.lines) - 1), reach)


def _grow_perpendicular(figure: Figure, dice: Dice) -> None:
    line = figure.line_through(*_side(figure, dice))
    reach = dice.between(0.2, 0.4) * dice.pick((-1, 1))
    make.perpendicular_through(figure, dice.pick(figure.lines[line].points), line, reach)


def _grow_crossing(figure: Figure, dice: Dice) -> None:
    pairs = figure.open_crossings()
    if not pairs:
        raise Rejected("no crossing without a point")
    make.crossing(figure, *dice.pick(pairs))


def _grow_circle(figure: Figure, dice: Dice) -> None:
    make.circle_around(figure, *dice.sample(range(len(figure.points)), 2))


def _grow_on_circle(figure: Figure, dice: Dice) -> None:
    if not figure.circles:
        raise Rejected("no circle")
    point = make.on_circle(figure, dice.integer(0, len(figure.circles) - 1), dice.between(0, 360))
    make.join(figure, point, _other(figure, dice))


_STEPS = (
    _grow_midpoint, _grow_cevian, _grow_cevian, _grow_join, _grow_foot, _grow_foot, _grow_parallel, _grow_perpendicular,
    _grow_crossing, _grow_circle, _grow_on_circle,
)  # fmt: skip
