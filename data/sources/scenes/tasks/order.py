"""Three objects in the order of their depth; how much higher one is than another."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Setting
from gnomon.data.sources.scenes.question import Question, choice, metres
from gnomon.data.sources.scenes.tasks.base import Chosen, Task, ranges

RATIO = 1.15
_ORDERS = list(permutations(range(3)))


class DepthOrder(Task):
    family, answers, asked = "order", 6, 3

    def works(self, found: Candidates) -> np.ndarray:
        near, middle, far = (found.distances[:, list(each)] for each in zip(*_ORDERS))
        return (middle > RATIO * near) & (far > RATIO * middle)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        names = chosen.names(3)
        first, second, third = draws.shuffled(names)
        text = (
            f"Put the {first}, the {second} and the {third} in order of their distance from the camera of the first "
            "view, the nearest first."
        )
        return choice(draws, text, [", ".join(names[k] for k in order) for order in _ORDERS], chosen.answer, place)


class Height(Task):
    """Up is up in the first view; the reference is the level plane through the second object."""

    family, asked = "order", 2
    EDGES = np.geomspace(0.3, 1.5, 8)
    answers = len(EDGES) - 1

    def layout(self, draws: Draws, setting: Setting, views: int) -> Layout | None:
        """Only directions that can be all these heights apart, which is cheaper to see here than from candidates."""
        layout = super().layout(draws, setting, views)
        if layout is None:
            return None
        corners = [_height(layout.rays[:2] * np.array(pair)[:, None]) for pair in product(setting.distances, repeat=2)]
        return layout if min(corners) < self.EDGES[1] and max(corners) > self.EDGES[-2] else None

    def works(self, found: Candidates) -> np.ndarray:
        return ranges(_height(found.centres), self.EDGES)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        high, low = chosen.names(2)
        text = (
            f"{chosen.scale}Taking up as it is in the first view, how many metres is the centre of the {high} above "
            f"the level of the centre of the {low}?"
        )
        return metres(text, _height(chosen.centres))


def _height(centres: np.ndarray) -> np.ndarray:
    """Of the first object over the second; y points down."""
    return centres[..., 1, 1] - centres[..., 0, 1]
