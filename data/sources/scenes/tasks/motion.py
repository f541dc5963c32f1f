"""How did the camera move, and how far did it turn, from the first view to the second?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task

WAYS = ("right", "left", "down", "up", "forward", "backward")
_TOLERANCE = 30
# Degrees, with a gap between neighbours.
TURNS = ((0, 4), (6, 10), (12, 16))


class MotionDirection(Task):
    family, answers, asked, views = "motion", 6, 0, 2

    def works(self, found: Candidates) -> np.ndarray:
        rotation, shift = found.cameras[:, 1, :, :3], found.cameras[:, 1, :, 3]
        eye = -np.einsum("mij,mi->mj", rotation, shift)
        eye /= np.linalg.norm(eye, axis=1, keepdims=True)
        # to each side of x, y and z in turn
        along = np.stack([eye, -eye], axis=-1).reshape(-1, 6)
        return along > np.cos(np.radians(_TOLERANCE))

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        text = (
            "From the first view to the second, did the camera mainly move left, right, up, down, forward or backward, "
            "as seen in the first view?"
        )
        return choice(draws, text, WAYS, chosen.answer, place)


class MotionAngle(Task):
    family, answers, asked, views = "motion", len(TURNS), 0, 2
    wander = 0.8

    def works(self, found: Candidates) -> np.ndarray:
        trace = np.einsum("mii->m", found.cameras[:, 1, :, :3])
        angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))[:, None]
        low, high = np.array(TURNS).T
        return (angle >= low) & (angle <= high)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        ways = ("less than 5 degrees", "5 to 11 degrees", "more than 11 degrees")
        text = (
            f"By what angle did the camera turn from the first view to the second, {', '.join(ways[:2])} or {ways[2]}?"
        )
        return choice(draws, text, ways, chosen.answer, place)
