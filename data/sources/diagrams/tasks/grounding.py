"""Where is it? A bounding box for what a sentence describes (MATHGLANCE grounding)."""

from __future__ import annotations

from gnomon.data.sources.diagrams import polygons, shapes
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.figure import Figure
from gnomon.data.sources.diagrams.question import LETTERS, Question, Task, made
from gnomon.data.sources.diagrams.scenes import scene
from gnomon.data.sources.diagrams.tiles import tiles

Room = tuple[float, float]
Box = tuple[float, float, float, float]
GRID = 999
_KINDS = {
    "plane_geometry": ("circle", "ellipse", "semicircle", "scalene triangle", "square", "pentagon"),
    "solid_geometry": shapes.SOLIDS,
    "graphs": shapes.GRAPHS,
}
_SAID = {"scalene triangle": "triangle"}
_LEAST = 0.15


def on_grid(box: Box, room: Room) -> list[int]:
    """Corners as integers from 0 to GRID across the whole image, whatever its size."""
    return [round(value / side * GRID) for value, side in zip(box, (*room, *room))]


def _question(figure: Figure, phrase: str, box: Box, source: str) -> Question:
    answer = on_grid(box, figure.room)
    text = (
        f"Please provide the bounding box coordinate of the region this sentence describes: {phrase}. Answer with four "
        f"integers [x1, y1, x2, y2] from 0 to {GRID}, where (0, 0) is the top left corner of the image."
    )
    return Question(text, str(answer), answer, "task_grd", {"source": source, "grid": GRID})


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    if level == 3:
        return made(lambda: scene(dice, 3, room), lambda figure: _ask_points(figure, dice), dice)
    figure = Figure(room)
    count = 1 if level == 1 else dice.integer(2, 4)
    source = dice.pick(("plane_geometry", "plane_geometry", "solid_geometry", "graphs"))
    names = dice.sample(LETTERS, count) if level == 2 and dice.chance(0.5) else [None] * count
    low, high = (0.3, 0.9) if level == 1 else (0.6, 0.85)
    kinds = dice.sample(_KINDS[source], count)
    for name, kind, (centre, side) in zip(names, kinds, tiles(dice, count, room, low, high)):
        figure.shapes.append(shapes.shape(kind, dice, centre, side, name))
    return figure, _ask_shapes(figure, dice)


def _ask_shapes(figure: Figure, dice: Dice) -> Question | None:
    kinds = [shape.kind for shape in figure.shapes]
    able = [s for s in figure.shapes if s.name or (kinds.count(s.kind) == 1 and _unmistakable(s.kind, kinds))]
    if not able:
        return None
    shape = dice.pick(able)
    source = next((name for name, group in _KINDS.items() if shape.kind in group), "plane_geometry")
    phrase = f"the figure labelled {shape.name}" if shape.name else f"the {_SAID.get(shape.kind, shape.kind)}"
    return _question(figure, phrase, shape.box, source)


def _unmistakable(kind: str, kinds: list[str]) -> bool:
    """Whether no other shape of the figure could go by the same word: a square is also a rectangle and a rhombus."""
    families = (polygons.TRIANGLES, polygons.QUADRILATERALS)
    return not any(kind in family and sum(other in family for other in kinds) > 1 for family in families)


def _ask_points(figure: Figure, dice: Dice) -> Question | None:
    """A circle by its centre or a triangle by its corners."""
    at = figure.points
    found: list[tuple[str, Box]] = []
    for ring in figure.circles:
        if ring.middle is not None:
            x, y, r = ring.centre.real, ring.centre.imag, ring.radius
            found.append((f"the circle with centre {figure.name(ring.middle)}", (x - r, y - r, x + r, y + r)))
    for corners in dice.sample(figure.triangles(), min(2, len(figure.triangles()))):
        x, y = [at[k].real for k in corners], [at[k].imag for k in corners]
        box = (min(x), min(y), max(x), max(y))
        if box[2] - box[0] > _LEAST and box[3] - box[1] > _LEAST:
            found.append((f"triangle {''.join(figure.name(k) for k in dice.shuffled(corners))}", box))
    return _question(figure, *dice.pick(found), "plane_geometry") if found else None


def _ask(figure: Figure, dice: Dice) -> Question | None:
    return _ask_shapes(figure, dice) or _ask_points(figure, dice)


GROUNDING = Task("mathglance", _make, _ask)
