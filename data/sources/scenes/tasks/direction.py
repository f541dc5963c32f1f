"""Where is an object for someone who stands at another and faces a third?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task, one_hot

WAYS = ("ahead", "right", "behind", "left")
# Degrees off the exact direction, and least distance on the ground from where one stands.
_TOLERANCE, _APART = 25, 0.5


class Direction(Task):
    """On the ground plan of the first view: up is up in it, and heights do not matter."""

    family, answers, asked = "direction", 4, 3

    def works(self, found: Candidates) -> np.ndarray:
        # seen from above: x to the right, z ahead of the first camera
        stand, face, other = (found.centres[:, k][:, [0, 2]] for k in range(3))
        heading, target = face - stand, other - stand
        ahead = (heading * target).sum(axis=1)
        right = heading[:, 1] * target[:, 0] - heading[:, 0] * target[:, 1]
        turn = np.degrees(np.arctan2(right, ahead))
        quarter = np.rint(turn / 90)
        near = np.minimum(np.linalg.norm(heading, axis=1), np.linalg.norm(target, axis=1)) < _APART
        unclear = near | (np.abs(turn - 90 * quarter) > _TOLERANCE)
        return one_hot(np.where(unclear, -1, quarter % 4), 4)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        stand, face, other = chosen.names(3)
        text = (
            f"Imagine standing at the {stand} and facing the {face}, upright as in the first view. On the ground plan, "
            f"is the {other} ahead, right, behind or left?"
        )
        return choice(draws, text, WAYS, chosen.answer, place)
