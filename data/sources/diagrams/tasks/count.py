"""How many are there? (MATHGLANCE counting)"""

from __future__ import annotations

from contextlib import suppress

from gnomon.data.sources.diagrams import construct, shapes
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import one_more
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import turned
from gnomon.data.sources.diagrams.question import Question, Task, made, multiple_choice, window
from gnomon.data.sources.diagrams.tiles import tiles

Room = tuple[float, float]
_PLURAL = {
    "circle": "circles", "scalene triangle": "triangles", "square": "squares", "pentagon": "pentagons",
    "ellipse": "ellipses", "cube": "cubes", "cone": "cones", "cylinder": "cylinders",
}  # fmt: skip
_PLANE = ("circle", "scalene triangle", "square", "pentagon", "ellipse")
_SOLID = ("cube", "cone", "cylinder")
# What a level counts up to.
_MOST = {1: 5, 2: 7, 3: 9}


def _question(text: str, count: int, options: list[str], source: str) -> Question:
    return multiple_choice(text, options, str(count), "task_cnt", source)


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    # Four consecutive numbers first, then the count uniformly among them.
    first = dice.integer(0 if level > 1 else 1, _MOST[level] - 3)
    options = [str(first + k) for k in range(4)]
    count = first + dice.integer(0, 3)
    sort = dice.weighted((6, 1, 1, 1))
    if sort == 0:
        return _of_a_kind(dice, level, room, count, options)
    if sort == 1:
        return _bars(dice, room, count, options)
    if sort == 2:
        return _strokes(dice, room, count, options)
    return _points_on_circle(dice, room, count, options)


def _of_a_kind(dice: Dice, level: int, room: Room, count: int, options: list[str]) -> tuple[Figure, Question]:
    """Shapes of the kind among others; how many there are in all does not depend on the count."""
    solid = dice.chance(0.25)
    kinds = _SOLID if solid else _PLANE
    kind = dice.pick(kinds)
    total = dice.integer(_MOST[level], _MOST[level] + (0 if level == 1 else 2))
    others = [other for other in kinds if other != kind]
    figure = Figure(room)
    laid = [kind] * count + [dice.pick(others) for _ in range(total - count)]
    for each, (centre, side) in zip(laid, tiles(dice, total, room, 0.55 if level < 3 else 0.7, 1.0)):
        figure.shapes.append(shapes.shape(each, dice, centre, side))
    text = f"How many {_PLURAL[kind]} are there in the image?"
    return figure, _question(text, count, options, "solid_geometry" if solid else "plane_geometry")


def _bars(dice: Dice, room: Room, count: int, options: list[str]) -> tuple[Figure, Question]:
    figure = Figure(room)
    centre, side = tiles(dice, 1, room, 0.6, 1.0)[0]
    figure.shapes.append(shapes.bar_chart(dice, centre, side, count))
    return figure, _question("How many bars are there in the chart?", count, options, "graphs")


def _strokes(dice: Dice, room: Room, count: int, options: list[str]) -> tuple[Figure, Question]:
    """Separate strokes, some crossing circles."""
    figure = Figure(room)
    for centre, side in tiles(dice, 9, room, 0.75, 1.0)[:count]:
        half = side / 2 * turned(dice.between(0, 360))
        construct.stroke(figure, (centre - half, centre + half))
    for _ in range(dice.integer(1, 3)):
        centre, side = tiles(dice, 1, room, 0.3, 0.9)[0]
        figure.shapes.append(shapes.shape("circle", dice, centre, side))
    return figure, _question("How many line segments are there in the image?", count, options, "plane_geometry")


def _points_on_circle(dice: Dice, room: Room, count: int, options: list[str]) -> tuple[Figure, Question]:
    def build() -> Figure:
        figure = Figure(room)
        radius = dice.between(0.26, 0.36)
        centre = dice.spot(room, radius + 0.1)
        ring = construct.circle(figure, centre, radius, construct.free(figure, centre))
        for _ in range(count):
            figure = one_more(figure, lambda trial: construct.on_circle(trial, ring, dice.between(0, 360)), tries=30)
        with suppress(Rejected):
            for _ in range(dice.integer(0, 3)):
                figure = one_more(figure, lambda trial: construct.free(trial, dice.spot(room, 0.1)))
        return figure

    def ask(figure: Figure) -> Question:
        text = f"How many labelled points lie on the circle with centre {figure.name(0)}?"
        return _question(text, count, options, "plane_geometry")

    return made(build, ask, dice)


def _ask(figure: Figure, dice: Dice) -> Question | None:
    """Count the circles of any figure, or one kind of its separate shapes."""
    if figure.shapes and all(shape.kind in _PLURAL for shape in figure.shapes):
        kind = dice.pick(figure.shapes).kind
        return _counted(dice, _PLURAL[kind], sum(shape.kind == kind for shape in figure.shapes))
    # Most figures have no circle; asked each time, the answer would mostly be none.
    if figure.shapes or not (figure.circles or dice.chance(0.2)):
        return None
    return _counted(dice, "circles", len(figure.circles))


def _counted(dice: Dice, plural: str, count: int) -> Question:
    options = dice.shuffled(window(dice, count, max(_MOST[3], count)))
    return _question(f"How many {plural} are there in the image?", count, options, "plane_geometry")


COUNT = Task("mathglance", _make, _ask)
