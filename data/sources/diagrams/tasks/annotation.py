"""The text written at an angle or a line (Geoperception Equals)."""

from __future__ import annotations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted, polygon
from gnomon.data.sources.diagrams.figure import Figure, Note, Rejected
from gnomon.data.sources.diagrams.plane import angle, cross
from gnomon.data.sources.diagrams.question import Question, Task, made
from gnomon.data.sources.diagrams.scenes import scene

Room = tuple[float, float]
_VARIABLES = "abcxyz"
# Least angle, in degrees, for a text of so many characters.
_WIDE = {1: 36, 2: 52}


def note_text(dice: Dice) -> str:
    """A number, a letter or an expression."""
    sort = dice.integer(0, 3)
    x = dice.pick(_VARIABLES)
    if sort < 2:
        return str(dice.integer(2, 99))
    if sort == 2:
        return x
    return f"{dice.integer(2, 9)}{x}{dice.pick('+-')}{dice.integer(1, 9)}"


def add_notes(figure: Figure, dice: Dice, count: int) -> None:
    """Write on some segments and in some angles, no text twice and no place twice."""
    segments, angles = _plain_segments(figure), _plain_angles(figure)
    texts: list[str] = []
    taken: set[tuple[int, ...]] = set()
    for _ in range(3 * count):
        text = note_text(dice)
        # Only a wide angle takes more than one character, and none an expression.
        wide = [ids for ids, degrees in angles if degrees > _WIDE[len(text)]] if len(text) in _WIDE else []
        able = [ids for ids in (segments if dice.chance(0.5) or not wide else wide) if ids not in taken]
        if able and text not in texts and len(texts) < count:
            ids = dice.pick(able)
            texts.append(text)
            taken.add(ids)
            figure.notes.append(Note(text, ids))


def _plain_segments(figure: Figure) -> list[tuple[int, ...]]:
    """Whole strokes without a point between their named ends, long enough to write on."""
    whole = (line.points for line in figure.lines if len(line.points) == 2)
    return [(a, b) for a, b in whole if abs(figure.points[a] - figure.points[b]) > 0.22]


def _plain_angles(figure: Figure) -> list[tuple[tuple[int, ...], float]]:
    """Angles with their degrees, without a third stroke or a sign inside."""
    at = figure.points
    signed = {mark.ids[1] for mark in figure.marks if len(mark.ids) == 3}
    found = []
    for a, b, c in figure.corners():
        degrees = angle(at[a], at[b], at[c])
        if b in signed or not _WIDE[1] < degrees < 140 or min(abs(at[a] - at[b]), abs(at[c] - at[b])) < 0.22:
            continue
        rays = [at[p] - at[b] for line in figure.lines if b in line.points for p in line.points if p != b]
        if not any(_strictly_within(ray, at[a] - at[b], at[c] - at[b]) for ray in rays):
            found.append(((a, b, c), degrees))
    return found


def _strictly_within(ray: complex, first: complex, second: complex) -> bool:
    sense = cross(first, second)
    return cross(first, ray) * sense > 1e-9 and cross(ray, second) * sense > 1e-9


def _ask(figure: Figure, dice: Dice) -> Question | None:
    if not figure.notes:
        return None
    note = dice.pick(figure.notes)
    ids = note.ids if dice.chance(0.5) else note.ids[::-1]
    name = "".join(figure.name(k) for k in ids)
    what = f"length of line {name}" if len(ids) == 2 else f"measure of angle {name}"
    return Question(f"What is the {what} as annotated?", note.text, note.text, "Equals")


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    def build() -> Figure:
        if level == 1:
            figure = Figure(room)
            if dice.chance(0.5):
                a, b = (construct.free(figure, p) for p in fitted([-1 + 0j, 1 + 0j], dice, room, 0.5, 0.95))
                construct.segment(figure, a, b)
            else:
                polygon(figure, "triangle", dice, 0.7, 1.0)
            add_notes(figure, dice, 1)
        else:
            figure = scene(dice, level, room)
            add_notes(figure, dice, dice.integer(1, 2) if level == 2 else dice.integer(2, 3))
        if not figure.notes:
            raise Rejected("nowhere to write")
        return figure

    return made(build, lambda figure: _ask(figure, dice), dice)


ANNOTATION = Task("geoperception", _make, _ask)
