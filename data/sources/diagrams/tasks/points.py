"""Which points lie on a line, or on a circle (Geoperception PointLiesOnLine, PointLiesOnCircle)."""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted, one_more
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import turned
from gnomon.data.sources.diagrams.question import Question, Task, made
from gnomon.data.sources.diagrams.scenes import circle_scene, scene

Room = tuple[float, float]


def _ask_line(figure: Figure, dice: Dice, line: int) -> Question:
    names = [figure.name(p) for p in figure.lines[line].points]
    mention = dice.sample(names, 2)
    text = f"What is the point lying on line {''.join(mention)}?"
    return _listing(text, set(names) - set(mention), "PointLiesOnLine")


def _ask_circle(figure: Figure, circle: int) -> Question:
    ring = figure.circles[circle]
    names = {figure.name(p) for p in ring.points}
    return _listing(f"What are the point lying on circle {figure.name(ring.middle)}?", names, "PointLiesOnCircle")


def _listing(text: str, names: set[str], predicate: str) -> Question:
    reply = ", ".join(sorted(names))
    return Question(text, reply, reply, predicate, {"points": sorted(names)})


def _make_line(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.integer(1, 3)

    def build() -> Figure:
        figure = _one_line(dice, room) if level == 1 else scene(dice, level, room)
        if not figure.lines:
            raise Rejected("no stroke")
        line = 0 if level == 1 else dice.integer(0, len(figure.lines) - 1)
        chosen.append(line)
        for _ in range(wanted + 2 - len(figure.lines[line].points)):
            figure = one_more(figure, lambda trial: construct.on_line(trial, line, dice.between(0.1, 0.9)))
        if len(figure.lines[line].points) != wanted + 2:
            raise Rejected("more points than wanted")
        return figure

    chosen: list[int] = []
    return made(build, lambda figure: _ask_line(figure, dice, chosen[-1]), dice)


def _one_line(dice: Dice, room: Room) -> Figure:
    figure = Figure(room)
    a, b = fitted([-1 + 0j, 1 + 0j], dice, room, 0.7, 1.0)
    line = construct.segment(figure, construct.free(figure, a), construct.free(figure, b))
    others = [construct.free(figure, dice.spot(room, 0.08)) for _ in range(dice.integer(1, 2))]
    if len(others) == 2 and dice.chance(0.5):
        construct.segment(figure, *others)
    if dice.chance(0.4):
        # The named points need not be the ends of the stroke.
        construct.extended(figure, line, dice.between(0, 0.05), dice.between(0, 0.05))
    return figure


def _make_circle(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.integer(1, 4)

    def build() -> Figure:
        figure = _one_circle(dice, room) if level == 1 else circle_scene(dice, level, room)
        with_middle = [k for k, ring in enumerate(figure.circles) if ring.middle is not None]
        if not with_middle:
            raise Rejected("no circle with a centre")
        ring = dice.pick(with_middle)
        chosen.append(ring)
        for _ in range(wanted - len(figure.circles[ring].points)):
            figure = one_more(figure, lambda trial: construct.on_circle(trial, ring, dice.between(0, 360)))
        if len(figure.circles[ring].points) != wanted:
            raise Rejected("more points than wanted")
        return figure

    chosen: list[int] = []
    return made(build, lambda figure: _ask_circle(figure, chosen[-1]), dice)


def _one_circle(dice: Dice, room: Room) -> Figure:
    figure = Figure(room)
    radius = dice.between(0.22, 0.38)
    centre = dice.spot(room, radius + 0.08)
    middle = construct.free(figure, centre)
    construct.circle(figure, centre, radius, middle)
    for _ in range(dice.integer(1, 2)):
        # Points inside or just outside, so that not every letter is an answer.
        share = dice.pick((dice.between(0.4, 0.75), dice.between(1.25, 1.6)))
        construct.free(figure, centre + radius * share * turned(dice.between(0, 360)))
    return figure


def _ask_some_line(figure: Figure, dice: Dice) -> Question | None:
    able = [k for k, line in enumerate(figure.lines) if len(line.points) > 2]
    return _ask_line(figure, dice, dice.pick(able)) if able else None


def _ask_some_circle(figure: Figure, dice: Dice) -> Question | None:
    able = [k for k, ring in enumerate(figure.circles) if ring.middle is not None and ring.points]
    return _ask_circle(figure, dice.pick(able)) if able else None


POINT_ON_LINE = Task("geoperception", _make_line, _ask_some_line)
POINT_ON_CIRCLE = Task("geoperception", _make_circle, _ask_some_circle)
