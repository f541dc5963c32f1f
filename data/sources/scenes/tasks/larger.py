"""Which of two objects is physically larger?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task, one_hot, or_list

RATIO = 1.3


class Larger(Task):
    """A pair of apparent sizes is used only if either object can be the larger: size in the picture says nothing."""

    family, answers, asked = "larger", 2, 2

    def works(self, found: Candidates) -> np.ndarray:
        ratio = found.radii[:, 0] / found.radii[:, 1]
        return one_hot(np.select([ratio > RATIO, ratio < 1 / RATIO], [0, 1], -1), 2)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        names = chosen.names(2)
        text = f"Which is larger in reality, measured where it is longest, {or_list(draws.shuffled(names))}?"
        return choice(draws, text, names, chosen.answer, place)
