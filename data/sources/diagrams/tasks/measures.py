"""Acute or obtuse, and which line is longer (Geoperception AngleClassification, LineComparison)."""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import angle, turned
from gnomon.data.sources.diagrams.question import Question, Task, made
from gnomon.data.sources.diagrams.scenes import scene

Room = tuple[float, float]
# Degrees well inside each class, and the least ratio between compared lengths.
RANGES = {"acute": (14, 78), "obtuse": (102, 166)}
RATIO = 1.5


def _ask_angle(figure: Figure, dice: Dice, wanted: str) -> Question | None:
    low, high = RANGES[wanted]
    at = figure.points
    able = [ids for ids in figure.corners() if low < angle(*(at[k] for k in ids)) < high]
    if not able:
        return None
    ids = dice.pick(able)
    if dice.chance(0.5):
        ids = ids[::-1]
    name = "".join(figure.name(k) for k in ids)
    meta = {"choices": list(RANGES)}
    return Question(f"Is angle {name} acute or obtuse?", wanted, wanted, "AngleClassification", meta)


def _make_angle(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.pick(tuple(RANGES))

    def build() -> Figure:
        if level > 1:
            return scene(dice, level, room)
        figure = Figure(room)
        sides = [dice.between(0.6, 1.0) * turned(0), dice.between(0.6, 1.0) * turned(dice.between(*RANGES[wanted]))]
        b, a, c = (construct.free(figure, p) for p in fitted([0j, *sides], dice, room, 0.5, 1.0))
        construct.segment(figure, b, a)
        construct.segment(figure, b, c)
        return figure

    return made(build, lambda figure: _ask_angle(figure, dice, wanted), dice)


def _ask_longer(figure: Figure, dice: Dice) -> Question | None:
    length = {pair: abs(figure.points[pair[0]] - figure.points[pair[1]]) for pair in figure.segments()}
    able = [(p, q) for p in length for q in length if length[p] > RATIO * length[q] and set(p) != set(q)]
    if not able:
        return None
    long, short = ("".join(figure.name(k) for k in dice.shuffled(pair)) for pair in dice.pick(able))
    first, second = (long, short) if dice.chance(0.5) else (short, long)
    return Question(
        f"Which line is longer, {first} or {second}?", long, long, "LineComparison", {"choices": [first, second]}
    )


def _make_longer(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    def build() -> Figure:
        if level > 1:
            return scene(dice, level, room)
        figure = Figure(room)
        longest = dice.between(0.45, 0.8)
        for length in (longest, longest / dice.between(RATIO + 0.05, 3)):
            half = length / 2 * turned(dice.between(0, 360))
            x = dice.between(0.08 + abs(half.real), room[0] - 0.08 - abs(half.real))
            y = dice.between(0.08 + abs(half.imag), room[1] - 0.08 - abs(half.imag))
            ends = (construct.free(figure, complex(x, y) - half), construct.free(figure, complex(x, y) + half))
            construct.segment(figure, *ends)
        if figure.open_crossings() and dice.chance(0.7):
            raise Rejected("crossing strokes, but not so often")
        return figure

    return made(build, lambda figure: _ask_longer(figure, dice), dice)


def _ask_some_angle(figure: Figure, dice: Dice) -> Question | None:
    # Only of figures that have both, so that neither answer is the likelier one.
    asked = [_ask_angle(figure, dice, wanted) for wanted in RANGES]
    return None if None in asked else dice.pick(asked)


ANGLE = Task("geoperception", _make_angle, _ask_some_angle)
LONGER = Task("geoperception", _make_longer, _ask_longer)
