"""How do two things lie to each other? (MATHGLANCE relations)"""

from __future__ import annotations

from collections.abc import Callable

from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.figure import Figure
from gnomon.data.sources.diagrams.question import Question, Task
from gnomon.data.sources.diagrams.tasks.relation_lines import (
    LINE_CIRCLE,
    LINES,
    ask_line_circle,
    ask_lines,
    line_circle,
    lines,
)
from gnomon.data.sources.diagrams.tasks.relation_shapes import ask_circles, cevian, circles, triangle_circle

Room = tuple[float, float]


def _make(dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    return dice.pick((lines, line_circle, circles, cevian, triangle_circle))(dice, level, room)


def _ask(figure: Figure, dice: Dice) -> Question | None:
    """Any two lines, a line and a circle, or two circles of the figure."""
    sorts: list[Callable[[], Question | None]] = [
        lambda: ask_lines(figure, dice, dice.pick(LINES)),
        lambda: ask_line_circle(figure, dice, dice.pick(LINE_CIRCLE)),
    ]
    if len(figure.circles) > 1:
        sorts.append(lambda: ask_circles(figure, dice, tuple(sorted(dice.sample(range(len(figure.circles)), 2)))))
    return dice.pick(sorts)()


RELATION = Task("mathglance", _make, _ask)
