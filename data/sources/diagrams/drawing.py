"""Drawing in the room of a figure: trying until nothing collides, and laying named polygons into it."""

from __future__ import annotations

from collections.abc import Callable

from gnomon.data.sources.diagrams import construct as make
from gnomon.data.sources.diagrams import polygons
from gnomon.data.sources.diagrams.check import settle
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.plane import turned

_TRIES = 2000
_MARGIN = 0.1


def until_accepted(draw: Callable[[], Figure]) -> Figure:
    """Draw again until nothing is rejected."""
    for _ in range(_TRIES):
        try:
            return draw()
        except Rejected:
            continue
    raise AssertionError(f"{_TRIES} draws in a row were rejected")


def one_more(figure: Figure, add: Callable[[Figure], object], tries: int = 10) -> Figure:
    """The figure with one construction more; `add` draws it anew until it makes no unintended coincidence."""
    for _ in range(tries):
        trial = figure.copy()
        try:
            add(trial)
            settle(trial, figure.size)
        except Rejected:
            continue
        return trial
    raise Rejected("no room for another construction")


def fitted(points: list[complex], dice: Dice, room: tuple[float, float], low: float, high: float) -> list[complex]:
    """Turn the points at random and lay them into the room, filling low to high of it, at a random place."""
    turn = turned(dice.between(0, 360))
    points = [p * turn for p in points]
    left, top = min(p.real for p in points), min(p.imag for p in points)
    wide, tall = max(p.real for p in points) - left, max(p.imag for p in points) - top
    free = (room[0] - 2 * _MARGIN, room[1] - 2 * _MARGIN)
    scale = dice.between(low, high) * min(free[0] / wide, free[1] / tall)
    x = _MARGIN + dice.unit() * (free[0] - scale * wide)
    y = _MARGIN + dice.unit() * (free[1] - scale * tall)
    return [complex(x + scale * (p.real - left), y + scale * (p.imag - top)) for p in points]


def polygon(figure: Figure, kind: str, dice: Dice, low: float = 0.6, high: float = 1.0) -> list[int]:
    """A named polygon, with the directions that its name implies."""
    ids = [make.free(figure, p) for p in fitted(polygons.corners(kind, dice), dice, figure.room, low, high)]
    families: dict[str, int] = {}
    letters = polygons.SIDES.get(kind) or [(str(k), 0) for k in range(len(ids))]
    for k, (letter, quarter) in enumerate(letters):
        if letter not in families:
            families[letter] = figure.new_heading()[0]
        make.segment(figure, ids[k], ids[(k + 1) % len(ids)], (families[letter], quarter))
    return ids


def diagonals(figure: Figure, ids: list[int], kind: str, named_crossing: bool) -> None:
    a, b, c, d = ids
    first = make.segment(figure, a, c)
    heading = make.square(figure.lines[first].heading) if kind in polygons.CROSSED_SQUARELY else None
    second = make.segment(figure, b, d, heading)
    if named_crossing:
        make.crossing(figure, first, second)
