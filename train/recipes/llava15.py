"""LLaVA15: align the connector on captions, then tune connector and language model on instructions.

Paper:   Improved Baselines with Visual Instruction Tuning. arXiv:2310.03744
Rule:    stage 1 trains the connector alone on image-caption pairs, stage 2 connector and language model; vision frozen
Where:   training, two stages
Differs: batches are random, not grouped by modality and length; a stage's steps may be a share of a given total; a
         fusion with geometry, where the model has one, is trained as the connector is
"""

from __future__ import annotations

from gnomon.data.sample import Source
from gnomon.train.recipes.base import Optim, Recipe, Stage


class LLaVA15(Recipe):
    """Defaults are the paper's: one epoch each, cosine, 3 % warm-up, no weight decay, 1e-3 and 2e-5.

    align_data      image-caption pairs of the first stage; without them it sees data.train
    align_template  how they are written: `plain` is the image, then the caption, without a question
    align_share     the first stage's part when the number of steps or minutes is given
    """

    def __init__(
        self,
        *,
        align_data: Source | None = None,
        align_template: str = "plain",
        align_share: float = 0.3,
        align_lr: float = 1e-3,
        align_batch_size: int | None = None,
        sft_lr: float = 2e-5,
        connector_lr: float | None = None,
        optim: Optim | None = None,
    ) -> None:
        if not 0 < align_share < 1:
            raise ValueError(f"align_share {align_share} leaves a stage without steps; use a number between 0 and 1")
        self.align_data, self.align_template, self.align_share = align_data, align_template, align_share
        self.align_lr, self.align_batch_size = align_lr, align_batch_size
        self.sft_lr, self.connector_lr = sft_lr, sft_lr if connector_lr is None else connector_lr
        self.optim = optim or Optim()

    def stages(self) -> list[Stage]:
        align = Stage(
            "align",
            {"connector.*": self.align_lr},
            share=self.align_share,
            batch_size=self.align_batch_size,
            data=self.align_data,
            template=self.align_template,
            optim=self.optim,
            beside={"fusion.*": self.align_lr},
        )
        rates = {"connector.*": self.connector_lr, "lm.*": self.sft_lr}
        beside = {"fusion.*": self.connector_lr}
        return [align, Stage("sft", rates, share=1 - self.align_share, optim=self.optim, beside=beside)]
