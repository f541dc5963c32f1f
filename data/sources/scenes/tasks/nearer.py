"""Which of two objects is nearer?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task, one_hot, or_list

# More than an object's own depth: the order of the surfaces is that of the middles.
RATIO = 1.2


class Nearer(Task):
    family, answers, asked = "nearer", 2, 2

    def works(self, found: Candidates) -> np.ndarray:
        ratio = found.distances[:, 0] / found.distances[:, 1]
        return one_hot(np.select([ratio < 1 / RATIO, ratio > RATIO], [0, 1], -1), 2)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        names = chosen.names(2)
        text = f"Which is nearer to the camera of the first view, {or_list(draws.shuffled(names))}?"
        return choice(draws, text, names, chosen.answer, place)
