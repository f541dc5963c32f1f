"""LoLCATs: convert softmax attention to linear attention; its stand-ins first learn to answer like it, then the task.

Paper:   LoLCATs: On Low-Rank Linearizing of Large Language Models. arXiv:2410.10254
Rule:    stage 1, attention transfer: layers answer by softmax, feature maps phi alone are trained on
         1000 mean_l |o_l(phi) - o_l|^2, o_l the heads' answers; stage 2: low-rank changes of W_q, W_k, W_v, W_o on the
         language loss of the converted model
Where:   training, two stages; the model's mixers say which layers, and are those that mimic (LoLCATs, Hedgehog)
Differs: a cosine and as many steps as are given, where the code lowers the rate on plateaus and keeps the best epoch;
         samples of a micro-batch count the same in stage 1; all parts have one model, no blocks of layers are trained
         apart
"""

from __future__ import annotations

from gnomon.train.callbacks.transfer import Transfer, check
from gnomon.train.recipes.base import Optim, Recipe, Stage


class LoLCATs(Recipe):
    """Defaults are the paper's: 1e-2 for the feature maps, then 1e-4 for changes of the mixers' `rank`.

    transfer_share  the first stage's part when the number of steps or minutes is given
    weight          of the errors, which only matters beside gradient clipping
    lr              of the low-rank changes in the second stage
    rates           instead, its learning rates by glob; {"lm.*": 1e-5} is full fine-tuning
    """

    def __init__(
        self,
        *,
        transfer_lr: float = 1e-2,
        transfer_share: float = 0.5,
        weight: float = 1000.0,
        lr: float = 1e-4,
        rates: dict[str, float] | None = None,
        optim: Optim | None = None,
    ) -> None:
        if not 0 < transfer_share < 1:
            raise ValueError(
                f"transfer_share {transfer_share} leaves a stage without steps; use a number between 0 and 1"
            )
        if weight <= 0:
            raise ValueError(f"weight {weight} of the errors teaches nothing; use a positive one, such as 1000")
        self.transfer_lr, self.transfer_share, self.weight = transfer_lr, transfer_share, weight
        self.optim = optim or Optim()
        self.rates = {"lm.*.mixer.low_*": lr} if rates is None else rates

    def stages(self) -> list[Stage]:
        transfer = Stage(
            "transfer",
            {"lm.*.mixer.learned_*": self.transfer_lr},
            share=self.transfer_share,
            optim=self.optim,
            callbacks=lambda: [Transfer(weight=self.weight)],
            check=lambda vlm: check(vlm, list(self.rates)),
        )
        return [transfer, Stage("tune", self.rates, share=1 - self.transfer_share, optim=self.optim)]
