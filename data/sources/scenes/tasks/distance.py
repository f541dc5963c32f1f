"""How far two objects are apart; which of three is closest to a fourth."""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.question import Question, choice, metres
from gnomon.data.sources.scenes.tasks.base import Chosen, Task, or_list, ranges


class Distance(Task):
    family, asked = "distance", 2
    EDGES = np.geomspace(1.0, 5.0, 9)
    answers = len(EDGES) - 1

    def works(self, found: Candidates) -> np.ndarray:
        return ranges(np.linalg.norm(found.centres[:, 0] - found.centres[:, 1], axis=-1), self.EDGES)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        one, two = chosen.names(2)
        text = f"{chosen.scale}How many metres are the centres of the {one} and the {two} apart?"
        return metres(text, np.linalg.norm(chosen.centres[0] - chosen.centres[1]))


class Closest(Task):
    """The fourth object is the one that the others are compared with."""

    family, answers, asked = "closest", 3, 4
    RATIO = 1.25

    def works(self, found: Candidates) -> np.ndarray:
        apart = np.linalg.norm(found.centres[:, :3] - found.centres[:, 3:4], axis=-1)
        others = np.stack([np.delete(apart, k, axis=1).min(axis=1) for k in range(3)], axis=1)
        return others > self.RATIO * apart

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        names = chosen.names(3)
        closest = or_list(draws.shuffled(names))
        text = f"Whose centre is closest to the centre of the {chosen.looks[3].name} in space, {closest}?"
        return choice(draws, text, names, chosen.answer, place)
