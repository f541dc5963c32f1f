"""Which shape is it? (MATHGLANCE shape classification)"""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct, polygons, shapes
from gnomon.data.sources.diagrams.check import settle
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import diagonals, polygon
from gnomon.data.sources.diagrams.figure import Figure
from gnomon.data.sources.diagrams.grow import grow
from gnomon.data.sources.diagrams.plane import turned
from gnomon.data.sources.diagrams.question import LETTERS, Question, Task, made, multiple_choice
from gnomon.data.sources.diagrams.tiles import tiles

Room = tuple[float, float]
# Options come from one group. At level 1 they differ in kind, later most are near misses of one another.
_APART = ("scalene triangle", "square", "pentagon", "circle", "ellipse", "parallelogram")
GROUPS = {
    "plane_geometry": (
        polygons.TRIANGLES, polygons.QUADRILATERALS, tuple(polygons.REGULAR), shapes.ROUND, _APART,
    ),
    "solid_geometry": (shapes.SOLIDS,),
    "graphs": (shapes.GRAPHS,),
}  # fmt: skip
_LEAST_SIDE = 0.24


def _question(text: str, options: list[str], kind: str, source: str) -> Question:
    return multiple_choice(f"{text} Choose the most specific name.", options, kind, "task_cls", source)


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    # The options first and the answer uniformly among them: the text then says nothing about the answer.
    source = dice.pick(("plane_geometry", "plane_geometry", "plane_geometry", "solid_geometry", "graphs"))
    compound = level == 2 and source == "plane_geometry"
    groups = GROUPS[source]
    if source == "plane_geometry":
        groups = {1: groups[3:], 2: groups[:2]}.get(level, groups)
    group = dice.pick(groups)
    options = dice.sample(group, 4)
    kind = dice.pick(options)
    if compound:
        return _compound(dice, room, options, kind)
    if level == 1:
        figure = Figure(room)
        centre, side = tiles(dice, 1, room, 0.4, 0.85)[0]
        figure.shapes.append(shapes.shape(kind, dice, centre, side))
        return figure, _question("What shape is shown in the image?", options, kind, source)
    count = 2 if level == 2 else dice.integer(3, 4)
    figure = Figure(room)
    others = [dice.pick(dice.pick(GROUPS[source])) for _ in range(count - 1)]
    for name, other, (centre, side) in zip(
        dice.sample(LETTERS, count), [kind, *others], _named_tiles(dice, count, room)
    ):
        figure.shapes.append(shapes.shape(other, dice, centre, side, name))
    for _ in range(dice.integer(0, 2) if level == 3 else 0):
        # Strokes across everything, as distractors; a stroke has no name to be mistaken.
        middle, half = dice.spot(room, 0.3), dice.between(0.15, 0.27) * turned(dice.between(0, 360))
        construct.stroke(figure, (middle - half, middle + half))
    return figure, _question(f"What shape is the figure labelled {figure.shapes[0].name}?", options, kind, source)


def _named_tiles(dice: Dice, count: int, room: Room) -> list[tuple[complex, float]]:
    """Tiles that leave room for a name beside or inside the shape."""
    return [(centre, max(_LEAST_SIDE, side)) for centre, side in tiles(dice, count, room, 0.68, 0.82)]


def _compound(dice: Dice, room: Room, options: list[str], kind: str) -> tuple[Figure, Question]:
    """A labelled polygon with further constructions on it; its corners are the figure's first points."""

    def build() -> Figure:
        figure = Figure(room)
        ids = polygon(figure, kind, dice, 0.7, 1.0)
        if len(ids) == 4 and dice.chance(0.3):
            diagonals(figure, ids, kind, dice.chance(0.5))
        settle(figure)
        return grow(figure, dice, dice.integer(1, 2), most_points=7)

    def ask(figure: Figure) -> Question:
        sort, count = ("triangle", 3) if kind in polygons.TRIANGLES else ("quadrilateral", 4)
        name = "".join(figure.names[:count])
        return _question(f"What shape is {sort} {name}?", options, kind, "plane_geometry")

    return made(build, ask, dice)


def _ask(figure: Figure, dice: Dice) -> Question | None:
    named = [shape for shape in figure.shapes if shape.name]
    able = [
        (shape, source, group)
        for shape in named for source, groups in GROUPS.items() for group in groups if shape.kind in group
    ]  # fmt: skip
    if not able:
        return None
    shape, source, group = dice.pick(able)
    others = dice.sample([kind for kind in group if kind != shape.kind], 3)
    options = dice.shuffled([shape.kind, *others])
    return _question(f"What shape is the figure labelled {shape.name}?", options, shape.kind, source)


SHAPE = Task("mathglance", _make, _ask)
