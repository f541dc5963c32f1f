"""Does an object lie on the straight line between two others?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes import candidates
from gnomon.data.sources.scenes.candidates import ROWS, Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Setting, arrange, objects
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task

# A miss passes the middle at this many radii, and this many metres.
_CLEAR, _FAR = 2.0, 0.5


class Between(Task):
    """In the picture the second object is always between the others; whether it is so in space is up to its depth."""

    family, answers, asked = "between", 2, 3

    def layout(self, draws: Draws, setting: Setting, views: int) -> Layout | None:
        count = max(self.asked, draws.integer(*setting.objects))
        return arrange(draws, setting, objects(draws, count), views=views, in_line=True)

    def candidates(self, draws: Draws, layout: Layout, setting: Setting) -> Candidates:
        cameras = candidates.rigs(draws, layout, setting, wander=self.wander)
        distances = draws.spread(*setting.distances, ROWS, len(layout.rays))
        # along a straight line of the picture, 1/z of a line in space is affine
        z = layout.rays[:, 2]
        flat = layout.rays[:3, :2] / z[:3, None]
        share = np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[2] - flat[0])
        inverse = (1 - share) / (distances[:, 0] * z[0]) + share / (distances[:, 2] * z[2])
        # in every other candidate
        distances[::2, 1] = 1 / (inverse[::2] * z[1])
        return candidates.at(layout, distances, cameras)

    def works(self, found: Candidates) -> np.ndarray:
        start, middle, end = (found.centres[:, k] for k in range(3))
        along = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
        offset = middle - start
        off = np.linalg.norm(offset - (offset * along).sum(axis=1, keepdims=True) * along, axis=1)
        return np.stack([off < 1e-6, (off > _CLEAR * found.radii[:, 1]) & (off > _FAR)], axis=1)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        one, middle, two = chosen.names(3)
        start, end = draws.shuffled([one, two])
        text = (
            f"In space, does the straight line from the centre of the {start} to the centre of the {end} pass through "
            f"the centre of the {middle}, yes or no?"
        )
        return choice(draws, text, ("yes", "no"), chosen.answer, place)
