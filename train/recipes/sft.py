"""SFT: one stage of supervised fine-tuning.

Paper:   Visual Instruction Tuning. arXiv:2304.08485
Rule:    cross entropy on the assistant's tokens, divided by all target tokens of the global batch
Where:   training, one stage
Differs: the whole model is trained, vision included, unless `rates` names parts
"""

from __future__ import annotations

from gnomon.train.recipes.base import Optim, Recipe, Stage


class SFT(Recipe):
    """lr: of everything. rates: instead, learning rates by glob (`connector.*`, `lm.*`, ...); the rest is frozen."""

    def __init__(self, lr: float = 1e-3, *, rates: dict[str, float] | None = None, optim: Optim | None = None) -> None:
        self.rates = {"*": lr} if rates is None else rates
        self.optim = optim or Optim()

    def stages(self) -> list[Stage]:
        return [Stage("sft", self.rates, optim=self.optim)]
