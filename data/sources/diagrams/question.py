"""Question: one task put to a figure, with the text a model should reply and the answer a scorer compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnomon.data.sources.diagrams.check import confirm, settle
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.drawing import until_accepted
from gnomon.data.sources.diagrams.figure import Figure, Rejected

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    text: str
    reply: str
    answer: Any
    predicate: str
    # For scorers: options, acceptable names, what a constant answer would be compared with.
    meta: dict[str, Any] = field(default_factory=dict)


def multiple_choice(
    text: str, options: Sequence[str], right: str, predicate: str, source: str = "plane_geometry"
) -> Question:
    """The question with its options inline, in the order given."""
    letter = LETTERS[list(options).index(right)]
    inline = "\n".join(f"{LETTERS[k]}:{option}" for k, option in enumerate(options))
    meta = {"choices": list(options), "source": source}
    return Question(f"{text}\nChoices:\n{inline}", letter, letter, predicate, meta)


def in_words(question: Question) -> tuple[str, str]:
    """Text and reply without the options of a multiple choice."""
    text, listed, _ = question.text.partition("\nChoices:\n")
    return (text, question.meta["choices"][LETTERS.index(question.reply)]) if listed else (text, question.reply)


def one_of(dice: Dice, text: str, kinds: Sequence[str], right: str) -> Question:
    """A relation among three others of its kind, in random order."""
    others = dice.sample([kind for kind in kinds if kind != right], 3)
    return multiple_choice(text, dice.shuffled([right, *others]), right, "task_rlat")


def window(dice: Dice, count: int, most: int) -> list[str]:
    """Four consecutive numbers from 0 to most that hold `count`, anywhere among them."""
    first = dice.integer(max(0, count - 3), min(count, most - 3))
    return [str(first + k) for k in range(4)]


@dataclass(frozen=True)
class Task:
    """`make` draws a figure for a level and asks about it; `ask` asks it of any figure, None if it cannot."""

    family: str
    make: Callable[[Dice, int, tuple[float, float]], tuple[Figure, Question]]
    ask: Callable[[Figure, Dice], Question | None]


def name_points(figure: Figure, dice: Dice) -> None:
    figure.names = dice.sample(LETTERS, len(figure.points))


def made(build: Callable[[], Figure], ask: Callable[[Figure], Question | None], dice: Dice) -> tuple[Figure, Question]:
    """Build figures until one is free of coincidences and can be asked about."""
    found: list[Question] = []

    def draw() -> Figure:
        figure = build()
        name_points(figure, dice)
        question = ask(figure)
        if question is None:
            raise Rejected("nothing to ask")
        settle(figure)
        confirm(figure)
        found.append(question)
        return figure

    return until_accepted(draw), found[-1]
