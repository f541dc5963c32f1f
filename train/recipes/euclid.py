"""Euclid: a curriculum in which each task moves to harder figures once it masters the present ones.

Paper:   Euclid: Supercharging Multimodal LLMs with Synthetic High-Fidelity Visual Descriptions. arXiv:2412.08737
Rule:    every N steps score each task at its level c; advance where accuracy > threshold; level k is drawn with weight
         exp(-decay |k - c|); past the last level a task's levels are uniform and its share of the whole falls to 0.4
Where:   training, one stage; the source's `mixture` argument
Differs: an answer counts when all of its tokens are right (no partial credit for subsets of a set)
"""

from __future__ import annotations

from lightning import Callback

from gnomon.train.callbacks.curriculum import Competence, Curriculum
from gnomon.train.recipes.base import Optim, Recipe, Stage


class Euclid(Recipe):
    """Defaults are the paper's: connector and language model train, vision is frozen.

    every    optimizer steps between two scorings
    samples  scored per task and time
    rates    learning rates by glob; what none matches is frozen
    """

    def __init__(
        self,
        *,
        tasks: list[str],
        levels: list[int],
        every: int = 500,
        threshold: float = 0.99,
        decay: float = 1.5,
        finished: float = 0.4,
        samples: int = 200,
        rates: dict[str, float] | None = None,
        optim: Optim | None = None,
    ) -> None:
        self.competence = Competence(tuple(tasks), tuple(levels), threshold=threshold, decay=decay, finished=finished)
        self.every, self.samples = every, samples
        self.rates = {"connector.*": 2e-5, "lm.*": 2e-5} if rates is None else rates
        self.optim = optim or Optim(schedule="constant")

    def stages(self) -> list[Stage]:
        return [Stage("curriculum", self.rates, optim=self.optim, callbacks=self._callbacks)]

    def _callbacks(self) -> list[Callback]:
        return [Curriculum(self.competence, every=self.every, samples=self.samples)]
