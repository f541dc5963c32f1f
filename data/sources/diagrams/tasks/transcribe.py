"""Redraw the figure as coordinates, line by line (Slow Perception).

The axes run from -10 to 10 over the central square of an image, x to the right and y up.
"""

from __future__ import annotations

import math

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import until_accepted
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import cross, gap, segments_cross, unit
from gnomon.data.sources.diagrams.question import Question, Task

Room = tuple[float, float]
_STROKES = {1: (3, 5), 2: (6, 10), 3: (11, 20)}
_REACH = 9.0
_SHORTEST = 2.0
_TEXT = (
    "Transcribe the drawing. The origin is the centre of the image; its shorter side runs from -10 to 10, x to the "
    'right and y up. Write "Line:" and then each segment on its own line as (x1, y1) -- (x2, y2), from left to right; '
    'if there are circles, write "Circle:" and then each as (cx, cy, r).'
)


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    strokes, rings = dice.integer(*_STROKES[level]), dice.integer(0, 1 if level == 1 else 2)
    figure = until_accepted(lambda: _drawn(dice, room, strokes, rings))
    return figure, _ask(figure, dice)


def _drawn(dice: Dice, room: Room, strokes: int, rings: int) -> Figure:
    """Strokes between points of a grid of tenths, many of them sharing ends."""
    figure = Figure(room)
    corners: list[complex] = []
    ends: list[tuple[complex, complex]] = []
    for _ in range(40 * strokes):
        if len(ends) == strokes:
            break
        start = dice.pick(corners) if corners and dice.chance(0.65) else _snapped(dice)
        stop = dice.pick(corners) if len(corners) > 3 and dice.chance(0.35) else _snapped(dice)
        if _fits(start, stop, corners, ends):
            ends.append((start, stop))
            corners += [p for p in (start, stop) if p not in corners]
    else:
        raise Rejected("no room for another stroke")
    for start, stop in ends:
        construct.stroke(figure, (_in_room(start, room), _in_room(stop, room)))
    for _ in range(rings):
        radius = round(dice.between(1.5, 4.5), 1)
        centre = complex(*(round(dice.between(radius - 9.5, 9.5 - radius), 1) for _ in range(2)))
        construct.circle(figure, _in_room(centre, room), radius / 20)
    return figure


def _snapped(dice: Dice) -> complex:
    return complex(round(dice.between(-_REACH, _REACH), 1), round(dice.between(-_REACH, _REACH), 1))


def _fits(start: complex, stop: complex, corners: list[complex], ends: list[tuple[complex, complex]]) -> bool:
    """Long enough, its ends clear of other corners and strokes, at most one crossing, not along another stroke."""
    if abs(stop - start) < _SHORTEST:
        return False
    if any(0 < abs(p - q) < 0.9 for p in (start, stop) for q in corners):
        return False
    if sum(segments_cross(start, stop, a, b) for a, b in ends) > 1:
        return False
    for a, b in ends:
        near = [p for p in (start, stop) if gap(p, a, b) < 0.6]
        if any(p not in (a, b) for p in near):
            return False
        if any(q not in (start, stop) and gap(q, start, stop) < 0.6 for q in (a, b)):
            return False
        if near and abs(cross(unit(stop - start), unit(b - a))) < math.sin(math.radians(8)):
            return False
    return True


def _in_room(p: complex, room: Room) -> complex:
    return complex(room[0] / 2 + p.real / 20, room[1] / 2 - p.imag / 20)


def from_room(p: complex, room: Room) -> tuple[float, float]:
    """Axis coordinates of a place in the image, in tenths."""
    x, y = round((p.real - room[0] / 2) * 20, 1), round((room[1] / 2 - p.imag) * 20, 1)
    # Adding zero turns -0.0 into 0.0.
    return x + 0.0, y + 0.0


def _ask(figure: Figure, dice: Dice) -> Question | None:
    """Only figures of bare strokes and circles: letters and marks have no place in the transcript."""
    if figure.shapes or figure.points or figure.notes:
        return None
    lines = sorted((*min(pair), *max(pair)) for pair in ((from_room(a, figure.room), from_room(b, figure.room))
                   for a, b in (line.ends for line in figure.lines)))  # fmt: skip
    circles = sorted((*from_room(c.centre, figure.room), round(20 * c.radius, 1)) for c in figure.circles)
    answer = {"lines": [list(line) for line in lines], "circles": [list(circle) for circle in circles]}
    return Question(_TEXT, transcript(answer), answer, "transcription", {})


def transcript(answer: dict[str, list[list[float]]], ruler: float | None = None) -> str:
    """The text for an answer; with a ruler, a line is followed in steps of that length (the paper's best: 4)."""
    rows = ["Line:"] + [" -- ".join(f"({x}, {y})" for x, y in gazes(line, ruler)) for line in answer["lines"]]
    if answer["circles"]:
        rows += ["Circle:"] + [f"({x}, {y}, {r})" for x, y, r in answer["circles"]]
    return "\n".join(rows)


def gazes(line: list[float], ruler: float | None) -> list[tuple[float, float]]:
    """The ends of a segment and, between them, a point after every `ruler` units."""
    start, stop = complex(*line[:2]), complex(*line[2:])
    # A point within a tenth of the end would be written as the end itself.
    steps = 0 if ruler is None else math.ceil((abs(stop - start) - 0.1) / ruler) - 1
    between = [start + k * ruler * unit(stop - start) for k in range(1, steps + 1)]
    return [(round(p.real, 1) + 0.0, round(p.imag, 1) + 0.0) for p in (start, *between, stop)]


TRANSCRIBE = Task("slow_perception", _make, _ask)
