"""Which lines are parallel, or perpendicular, to a line (Geoperception Parallel, Perpendicular)."""

from __future__ import annotations

from itertools import combinations, permutations

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import fitted, one_more
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.question import Question, Task, made
from gnomon.data.sources.diagrams.scenes import scene

Room = tuple[float, float]


def _partners(figure: Figure, word: str, line: int) -> list[int]:
    holds = figure.parallel if word == "parallel" else figure.perpendicular
    return [k for k in range(len(figure.lines)) if holds(line, k)]


def _ask(figure: Figure, dice: Dice, word: str, line: int) -> Question:
    groups = [sorted(figure.name(p) for p in figure.lines[k].points) for k in _partners(figure, word, line)]
    mention = "".join(figure.name(p) for p in dice.sample(figure.lines[line].points, 2))
    # The reference holds every name of every such line; the reply says each name once.
    names = sorted("".join(pair) for group in groups for pair in permutations(group, 2))
    reply = ", ".join(sorted("".join(pair) for group in groups for pair in combinations(group, 2)))
    text = f"What is the line {word} to line {mention}?"
    return Question(text, reply, ", ".join(names), word.capitalize(), {"lines": sorted(groups)})


def _make(word: str, dice: Dice, level: int, room: Room) -> tuple[Figure, Question]:
    wanted = dice.integer(1, 2 if level == 1 else 3)

    def build() -> Figure:
        figure = _strokes(dice, room) if level == 1 else scene(dice, level, room)
        if not figure.lines:
            raise Rejected("no stroke")
        able = [k for k in range(len(figure.lines)) if len(_partners(figure, word, k)) <= wanted]
        if not able:
            raise Rejected("more partners than wanted")
        chosen.append(dice.pick(able))
        for _ in range(wanted - len(_partners(figure, word, chosen[-1]))):
            figure = _with_partner(figure, dice, word, chosen[-1], apart=level == 1)
        return figure

    chosen: list[int] = []
    return made(build, lambda figure: _ask(figure, dice, word, chosen[-1]), dice)


def _strokes(dice: Dice, room: Room) -> Figure:
    """One or two strokes that are neither parallel nor perpendicular."""
    figure = Figure(room)
    for _ in range(dice.integer(1, 2)):
        a, b = (construct.free(figure, p) for p in fitted([-1 + 0j, 1 + 0j], dice, room, 0.35, 0.8))
        construct.segment(figure, a, b)
    return figure


def _with_partner(figure: Figure, dice: Dice, word: str, line: int, apart: bool) -> Figure:
    """The figure with one more stroke that has the direction asked for."""
    draw = construct.parallel_through if word == "parallel" else construct.perpendicular_through

    def add(trial: Figure) -> None:
        if apart or dice.chance(0.4):
            p = construct.free(trial, dice.spot(figure.room, 0.1))
        else:
            p = dice.integer(0, len(figure.points) - 1)
        draw(trial, p, line, dice.between(0.22, 0.5) * dice.pick((-1, 1)))

    return one_more(figure, add, tries=12)


def _ask_some(word: str, figure: Figure, dice: Dice) -> Question | None:
    able = [k for k in range(len(figure.lines)) if _partners(figure, word, k)]
    return _ask(figure, dice, word, dice.pick(able)) if able else None


def _task(word: str) -> Task:
    return Task(
        "geoperception",
        lambda dice, level, room: _make(word, dice, level, room),
        lambda figure, dice: _ask_some(word, figure, dice),
    )


PARALLEL = _task("parallel")
PERPENDICULAR = _task("perpendicular")
