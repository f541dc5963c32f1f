"""Validate: loss and exact answers on held-out samples, every so many steps and at the end."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from gnomon.train.evaluate import evaluate


class Validate(Callback):
    """every: optimizer steps between two passes over data.val."""

    def __init__(self, *, every: int) -> None:
        if every < 1:
            raise ValueError(
                f"validation every {every} steps is not possible; set trainer.val_check_interval to 1 or more"
            )
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not module.boundary or (step % self.every and step != module.schedule.total):
            return
        score = evaluate(trainer, module, module.feed.data.val_dataloader())
        for logger in trainer.loggers:
            logger.log_metrics({"val_loss": score.loss, "val_accuracy": score.accuracy}, step=step)
