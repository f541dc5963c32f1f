"""How many letters, triangles, circles, line segments? (Tangram; the question says which convention counts)"""

from __future__ import annotations

from contextlib import suppress

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.check import settle
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted, one_more, polygon
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.grow import grow
from gnomon.data.sources.diagrams.question import Question, Task, made

Room = tuple[float, float]
_CONVENTION = {
    "letters": "",
    "triangles": " Count every three labelled points that are joined in pairs by drawn lines and not in line.",
    "circles": "",
    "line segments": " Count every two labelled points that lie on the same drawn line.",
}
# Counts drawn uniformly, per level.
_RANGES = {
    "letters": {1: (2, 7), 2: (4, 9), 3: (6, 11)},
    "triangles": {1: (0, 2), 2: (1, 5), 3: (3, 9)},
    "circles": {1: (0, 2), 2: (0, 3), 3: (0, 4)},
    "line segments": {1: (1, 8), 2: (4, 13), 3: (8, 19)},
}

# What each separate piece of level 1 adds.
_PIECES = {
    "segment": {"letters": 2, "triangles": 0, "circles": 0, "line segments": 1},
    "triangle": {"letters": 3, "triangles": 1, "circles": 0, "line segments": 3},
    "quadrilateral": {"letters": 4, "triangles": 0, "circles": 0, "line segments": 4},
    "circle": {"letters": 0, "triangles": 0, "circles": 1, "line segments": 0},
    "circle with centre": {"letters": 1, "triangles": 0, "circles": 1, "line segments": 0},
}


def counts(figure: Figure) -> dict[str, int]:
    return {
        "letters": len(figure.points),
        "triangles": len(figure.triangles()),
        "circles": len(figure.circles),
        "line segments": len(figure.segments()),
    }


def _question(figure: Figure, element: str) -> Question:
    found = counts(figure)
    text = (
        f"How many {element} are there in the image?{_CONVENTION[element]} "
        "Answer the question using a single integer number."
    )
    # The other convention for segments: whole strokes.
    meta = {"counts": found, "strokes": len(figure.lines)}
    return Question(text, str(found[element]), found[element], element, meta)


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    element = dice.pick(tuple(_RANGES))
    wanted = dice.integer(*_RANGES[element][level])

    def build() -> Figure:
        if level == 1:
            return _apart(dice, room, element, wanted)
        return _until(_compound(dice, room, level), dice, element, wanted)

    return made(build, lambda figure: _question(figure, element), dice)


def _apart(dice: Dice, room: Room, element: str, wanted: int) -> Figure:
    """One to three separate pieces that add up to what is wanted."""
    figure, left = Figure(room), wanted
    while left or not (figure.lines or figure.circles):
        # At least half of what is left each time, so that the pieces stay few and large.
        able = [name for name, adds in _PIECES.items() if adds[element] <= left and 2 * adds[element] >= left]
        name = dice.pick(able)
        figure = one_more(figure, lambda trial, name=name: _piece(trial, dice, name))
        left -= _PIECES[name][element]
    return figure


def _piece(figure: Figure, dice: Dice, name: str) -> None:
    """A separate piece that crosses no stroke."""
    if name == "segment":
        a, b = (construct.free(figure, p) for p in fitted([-1 + 0j, 1 + 0j], dice, figure.room, 0.3, 0.6))
        construct.segment(figure, a, b)
    elif name == "triangle":
        polygon(figure, dice.pick(("triangle", "right triangle")), dice, 0.35, 0.6)
    elif name == "quadrilateral":
        polygon(figure, dice.pick(("rectangle", "parallelogram", "trapezoid")), dice, 0.35, 0.6)
    else:
        _free_circle(figure, dice, with_centre=name == "circle with centre")
    if figure.open_crossings():
        raise Rejected("the pieces cross")


def _free_circle(figure: Figure, dice: Dice, with_centre: bool) -> None:
    radius = dice.between(0.1, 0.25)
    centre = dice.spot(figure.room, radius + 0.03)
    construct.circle(figure, centre, radius, construct.free(figure, centre) if with_centre else None)


def _compound(dice: Dice, room: Room, level: int) -> Figure:
    figure = Figure(room)
    polygon(figure, dice.pick(("triangle", "right triangle", "parallelogram", "trapezoid", "rectangle")), dice)
    settle(figure)
    if level == 3:
        figure = _crossings_named(grow(figure, dice, dice.integer(1, 2), most_points=9))
    return figure


def _until(figure: Figure, dice: Dice, element: str, wanted: int) -> Figure:
    """Add to the figure until it has as many as wanted, taking back what goes beyond."""
    for _ in range(20):
        have = counts(figure)[element]
        if have == wanted:
            return figure
        if have > wanted:
            break
        with suppress(Rejected):
            trial = _crossings_named(one_more(figure, lambda trial: _add(trial, dice, element), tries=3))
            if counts(trial)[element] <= wanted:
                figure = trial
    raise Rejected("not the wanted count")


def _add(figure: Figure, dice: Dice, element: str) -> None:
    if element == "circles":
        _add_circle(figure, dice)
    elif element == "letters" and dice.chance(0.6):
        construct.on_line(figure, dice.integer(0, len(figure.lines) - 1), dice.between(0.15, 0.85))
    else:
        a, b = dice.sample(range(len(figure.points)), 2)
        if dice.chance(0.5):
            b = construct.between(figure, *_neighbours(figure, dice), dice.between(0.25, 0.75))
        construct.join(figure, a, b)


def _neighbours(figure: Figure, dice: Dice) -> tuple[int, int]:
    order = figure.along(dice.pick(figure.lines))
    k = dice.integer(0, len(order) - 2)
    return order[k], order[k + 1]


def _add_circle(figure: Figure, dice: Dice) -> None:
    sort = dice.integer(0, 2)
    triangles = figure.triangles()
    if sort == 0 and triangles:
        construct.incircle(figure, *dice.pick(triangles))
    elif sort == 1 and triangles:
        construct.circumcircle(figure, *dice.pick(triangles), with_centre=dice.chance(0.5))
    else:
        _free_circle(figure, dice, with_centre=dice.chance(0.5))


def _crossings_named(figure: Figure) -> Figure:
    """Make a point of every crossing, so that what is seen and what is counted agree."""
    found = figure.open_crossings()
    if not found:
        return figure
    since, figure = figure.size, figure.copy()
    for i, j in found:
        construct.crossing(figure, i, j)
    settle(figure, since)
    return figure


def _ask(figure: Figure, dice: Dice) -> Question | None:
    # Letters are counted on every figure of points; the rest only where every crossing is a point.
    if figure.shapes or not figure.points or figure.notes:
        return None
    element = "letters" if figure.open_crossings() else dice.pick(tuple(_RANGES))
    # Few figures have circles or triangles; asked each time, the answer would mostly be none.
    return _question(figure, element) if counts(figure)[element] or dice.chance(0.2) else None


TANGRAM = Task("tangram", _make, _ask)
