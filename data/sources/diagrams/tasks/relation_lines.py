"""How two strokes, or a stroke and a circle, lie to each other: parts of the relation task."""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted, one_more
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import foot, gap, meet, turned
from gnomon.data.sources.diagrams.question import Question, made, one_of
from gnomon.data.sources.diagrams.scenes import circle_scene, scene

Room = tuple[float, float]
LINES = ("they are parallel", "they meet at a right angle", "they meet, but not at a right angle",
          "they do not meet and are not parallel")  # fmt: skip
LINE_CIRCLE = ("the line is tangent to the circle", "the line passes through the centre",
                "the line crosses the circle off its centre", "the line does not meet the circle")  # fmt: skip


def line_relation(figure: Figure, i: int, j: int) -> str | None:
    """Which of LINES holds; None where none of them is beyond doubt."""
    if figure.parallel(i, j):
        return LINES[0]
    one, two = figure.lines[i], figure.lines[j]
    at = meet(*one.ends, *two.ends)
    away = max(gap(at, *one.ends), gap(at, *two.ends))
    if away < 1e-9:
        return LINES[1] if figure.perpendicular(i, j) else LINES[2]
    return LINES[3] if away > 0.08 and not figure.perpendicular(i, j) else None


def line_circle_relation(figure: Figure, i: int, j: int) -> str | None:
    """Which of LINE_CIRCLE holds; None for strokes that only enter the circle or end at its centre."""
    line, circle = figure.lines[i], figure.circles[j]
    if ("tangent", i, j) in figure.facts:
        return LINE_CIRCLE[0]
    if gap(circle.centre, *line.ends) > circle.radius + 0.04:
        return LINE_CIRCLE[3]
    if min(abs(end - circle.centre) for end in line.ends) < circle.radius - 1e-9:
        return None
    if circle.middle in line.points:
        return LINE_CIRCLE[1]
    away = abs(foot(circle.centre, *line.ends) - circle.centre)
    return LINE_CIRCLE[2] if 0.05 < away < circle.radius - 0.03 else None


def lines(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(LINES)

    def build() -> Figure:
        if level > 1:
            figure = scene(dice, level, room)
        else:
            figure = Figure(room)
            a, b = (construct.free(figure, p) for p in fitted([-1 + 0j, 1 + 0j], dice, room, 0.5, 0.9))
            construct.segment(figure, a, b)
        if _pairs(figure, wanted):
            return figure
        return one_more(figure, lambda trial: _add_stroke(trial, dice, wanted))

    return made(build, lambda figure: ask_lines(figure, dice, wanted), dice)


def _add_stroke(figure: Figure, dice: Dice, wanted: str) -> None:
    """A stroke that lies as wanted to one that is there."""
    if not figure.lines:
        raise Rejected("no stroke")
    line = dice.integer(0, len(figure.lines) - 1)
    p = dice.spot(figure.room, 0.1)
    q = construct.free(figure, p)
    reach = dice.between(0.25, 0.55) * dice.pick((-1, 1))
    if wanted == LINES[0]:
        construct.parallel_through(figure, q, line, reach)
    elif wanted == LINES[1] and dice.chance(0.5):
        construct.drop_foot(figure, q, line)
    elif wanted == LINES[1]:
        construct.perpendicular_through(figure, q, line, reach)
    else:
        construct.segment(figure, q, construct.free(figure, p + reach * turned(dice.between(0, 360))))
    if not _pairs(figure, wanted):
        raise Rejected("the stroke does not lie as wanted")


def _pairs(figure: Figure, wanted: str | None) -> list[tuple[int, int, str]]:
    """Pairs of strokes with two named points each and their relation, if it is the wanted one."""
    nameable = [k for k, line in enumerate(figure.lines) if len(line.points) > 1]
    found = [(i, j, line_relation(figure, i, j)) for i in nameable for j in nameable if i < j]
    return [each for each in found if each[2] is not None and wanted in (None, each[2])]


def ask_lines(figure: Figure, dice: Dice, wanted: str | None = None) -> Question | None:
    able = _pairs(figure, wanted)
    if not able:
        return None
    i, j, right = dice.pick(able)
    names = ["".join(figure.name(p) for p in dice.sample(figure.lines[k].points, 2)) for k in dice.shuffled((i, j))]
    return one_of(dice, f"How do the drawn lines {names[0]} and {names[1]} lie to each other?", LINES, right)


def line_circle(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(LINE_CIRCLE)

    def build() -> Figure:
        if level > 1:
            figure = circle_scene(dice, level, room)
            rings = [k for k, ring in enumerate(figure.circles) if ring.middle is not None]
            ring = dice.pick(rings)
        else:
            figure = Figure(room)
            radius = dice.between(0.16, 0.28)
            centre = dice.spot(room, radius + 0.09)
            ring = construct.circle(figure, centre, radius, construct.free(figure, centre))
        return one_more(figure, lambda trial: _add_line(trial, dice, ring, wanted))

    return made(build, lambda figure: ask_line_circle(figure, dice, wanted), dice)


def _add_line(figure: Figure, dice: Dice, ring: int, wanted: str) -> None:
    circle = figure.circles[ring]
    way = turned(dice.between(0, 360))
    if wanted == LINE_CIRCLE[0]:
        p = construct.on_circle(figure, ring, dice.between(0, 360))
        construct.tangent_at(figure, p, ring, dice.between(0.12, 0.4), dice.between(0.12, 0.4))
        return
    away = {1: 0.0, 2: dice.between(0.3, 0.85) * circle.radius, 3: circle.radius + dice.between(0.05, 0.2)}
    index = LINE_CIRCLE.index(wanted)
    middle = circle.centre + 1j * way * away[index]
    # Far enough to leave the circle at both ends.
    least = circle.radius + 0.06 if index < 3 else 0.12
    ends = [construct.free(figure, middle + sign * way * dice.between(least, least + 0.2)) for sign in (-1, 1)]
    line = construct.segment(figure, *ends)
    if index == 1:
        construct.put_on_line(figure, circle.middle, line)


def ask_line_circle(figure: Figure, dice: Dice, wanted: str | None = None) -> Question | None:
    able = [
        (i, j, line_circle_relation(figure, i, j))
        for i, line in enumerate(figure.lines) if len(line.points) > 1
        for j, ring in enumerate(figure.circles) if ring.middle is not None
    ]  # fmt: skip
    able = [each for each in able if each[2] is not None and wanted in (None, each[2])]
    if not able:
        return None
    i, j, right = dice.pick(able)
    # Naming the centre itself would give that answer away.
    points = [p for p in figure.lines[i].points if p != figure.circles[j].middle]
    if len(points) < 2:
        return None
    name = "".join(figure.name(p) for p in dice.sample(points, 2))
    text = f"How does the drawn line {name} lie to the circle with centre {figure.name(figure.circles[j].middle)}?"
    return one_of(dice, text, LINE_CIRCLE, right)
