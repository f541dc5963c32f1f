"""Question: what is asked about a scene, in words, with the exact answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from gnomon.data.sources.scenes.draws import Draws


@dataclass(frozen=True)
class Question:
    """One of some choices, by its position, or (no choices) a number. The text alone is enough to answer in words."""

    text: str
    answer: int | float
    choices: tuple[str, ...] = ()

    @property
    def predicate(self) -> str:
        return "choice" if self.choices else "number"

    @property
    def words(self) -> str:
        """The answer as text."""
        if self.choices:
            return self.choices[self.answer]
        return str(self.answer) if isinstance(self.answer, int) else f"{self.answer:.2f}"

    @property
    def letter(self) -> str:
        return ascii_uppercase[self.answer]

    def listed(self) -> str:
        """The text, followed by the choices with their letters."""
        lines = [f"{ascii_uppercase[k]}:{choice}" for k, choice in enumerate(self.choices)]
        return "\n".join([self.text, "Choices:", *lines]) if lines else self.text


def choice(draws: Draws, text: str, choices: Sequence[str], right: int, place: int) -> Question:
    """The right choice at a place of its own, the others around it in random order."""
    order = draws.shuffled(k for k in range(len(choices)) if k != right)
    order.insert(place, right)
    return Question(text, place, tuple(choices[k] for k in order))


def metres(text: str, value: float) -> Question:
    return Question(text, round(float(value), 2))
