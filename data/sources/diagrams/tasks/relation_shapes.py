"""How circles and triangles lie to each other, and what a segment is in a triangle: parts of the relation task."""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import one_more, polygon
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.grow import grow
from gnomon.data.sources.diagrams.plane import foot, turned
from gnomon.data.sources.diagrams.question import Question, made, one_of

Room = tuple[float, float]
_CIRCLES = ("they touch from outside", "they touch from inside", "they cross at two points",
            "one lies inside the other without touching", "they lie apart without touching")  # fmt: skip
_CEVIAN = ("an altitude", "a median", "an angle bisector", "none of these")
_TRIANGLE_CIRCLE = ("the triangle is inscribed in the circle", "the circle is inscribed in the triangle",
                    "the circle passes through exactly two corners of the triangle",
                    "the circle passes through no corner and touches no side")  # fmt: skip


def circles_relation(figure: Figure, i: int, j: int) -> str:
    one, two = figure.circles[i], figure.circles[j]
    apart = abs(one.centre - two.centre)
    outside = apart > max(one.radius, two.radius)
    if ("circles tangent", i, j) in figure.facts:
        return _CIRCLES[0] if outside else _CIRCLES[1]
    if apart > one.radius + two.radius:
        return _CIRCLES[4]
    return _CIRCLES[3] if apart < abs(one.radius - two.radius) else _CIRCLES[2]


def circles(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(_CIRCLES)

    def build() -> Figure:
        figure = Figure(room)
        nested = wanted in (_CIRCLES[1], _CIRCLES[3])
        big = dice.between(0.3, 0.38) if nested else dice.between(0.18, 0.28)
        small = dice.between(0.105, 0.13) if nested else dice.between(0.11, 0.2)
        apart = {
            0: big + small,
            1: big - small,
            2: big + small * dice.between(-0.55, 0.55),
            3: dice.between(min(small + 0.042, big - small - 0.045), big - small - 0.042),
            4: big + small + dice.between(0.05, 0.2),
        }[_CIRCLES.index(wanted)]
        o = construct.free(figure, dice.spot(room, big + 0.03))
        q = construct.free(figure, figure.points[o] + apart * turned(dice.between(0, 360)))
        for middle, radius in ((o, big), (q, small)):
            construct.circle(figure, figure.points[middle], radius, middle)
        if wanted in _CIRCLES[:2]:
            figure.facts.append(("circles tangent", 0, 1))
        for _ in range(level - 1):
            figure = one_more(figure, lambda trial: _add_spoke(trial, dice))
        return grow(figure, dice, level - 1)

    return made(build, lambda figure: ask_circles(figure, dice, (0, 1)), dice)


def ask_circles(figure: Figure, dice: Dice, pair: tuple[int, int]) -> Question | None:
    i, j = pair
    middles = [figure.circles[k].middle for k in dice.shuffled(pair)]
    if None in middles or middles[0] == middles[1]:
        return None
    first, second = (figure.name(middle) for middle in middles)
    text = f"How do the circles with centres {first} and {second} lie to each other?"
    return one_of(dice, text, _CIRCLES, circles_relation(figure, i, j))


def _add_spoke(figure: Figure, dice: Dice) -> None:
    """A stroke from any point to a new one."""
    new = construct.free(figure, dice.spot(figure.room, 0.1))
    construct.segment(figure, new, dice.integer(0, new - 1))


def cevian(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(_CEVIAN)

    def build() -> Figure:
        figure = Figure(room)
        a, b, c = polygon(figure, "triangle", dice, 0.7, 1.0)
        p, q, r = (figure.points[k] for k in (a, b, c))
        if wanted == _CEVIAN[0]:
            construct.drop_foot(figure, a, figure.line_through(b, c))
        elif wanted == _CEVIAN[1]:
            construct.segment(figure, a, construct.midpoint(figure, b, c))
        elif wanted == _CEVIAN[2]:
            construct.bisector(figure, b, a, c)
        else:
            construct.segment(figure, a, construct.between(figure, b, c, dice.between(0.2, 0.8)))
        at = figure.points[3]
        special = (foot(p, q, r), (q + r) / 2, q + (r - q) * abs(q - p) / (abs(q - p) + abs(r - p)))
        if sum(abs(at - s) < 0.05 for s in special) != (wanted != _CEVIAN[3]):
            raise Rejected("too near another cevian")
        return grow(figure, dice, level - 1, most_points=8) if level > 1 else figure

    def ask(figure: Figure) -> Question:
        a, b, c, d = (figure.name(k) for k in range(4))
        corners = "".join(dice.shuffled((a, b, c)))
        return one_of(dice, f"What is segment {a}{d} in triangle {corners}?", _CEVIAN, wanted)

    return made(build, ask, dice)


def triangle_circle(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(_TRIANGLE_CIRCLE)

    def build() -> Figure:
        figure = Figure(room)
        a, b, c = polygon(figure, "triangle", dice, 0.5, 0.9)
        p, q = figure.points[a], figure.points[b]
        if wanted == _TRIANGLE_CIRCLE[0]:
            construct.circumcircle(figure, a, b, c)
        elif wanted == _TRIANGLE_CIRCLE[1]:
            construct.incircle(figure, a, b, c)
        elif wanted == _TRIANGLE_CIRCLE[2]:
            o = construct.free(figure, (p + q) / 2 + 1j * (q - p) * dice.between(-0.8, 0.8))
            construct.put_on_circle(figure, b, construct.circle_around(figure, o, a))
        else:
            at = dice.spot(room, 0.2)
            construct.circle(figure, at, dice.between(0.12, 0.3), construct.free(figure, at))
        return grow(figure, dice, level - 1, most_points=8) if level > 1 else figure

    def ask(figure: Figure) -> Question:
        corners = "".join(dice.shuffled(figure.name(k) for k in range(3)))
        centre = figure.name(figure.circles[0].middle)
        text = f"How do triangle {corners} and the circle with centre {centre} lie to each other?"
        return one_of(dice, text, _TRIANGLE_CIRCLE, wanted)

    return made(build, ask, dice)
