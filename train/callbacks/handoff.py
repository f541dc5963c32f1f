"""HandOff: when the last step is done, one loadable model directory, gathered from however many ranks."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from gnomon.train.callbacks.meter import Meter
from gnomon.train.rundir import RunDir
from gnomon.train.strategies import full_state
from gnomon.vlm.save import save


class HandOff(Callback):
    """While the ranks still hold their shards: gather, save, and only then mark the stage as finished."""

    def __init__(self, run: RunDir, stage: str, target: Path, meter: Meter) -> None:
        self.run, self.stage, self.target, self.meter = run, stage, target, meter

    # not on_train_end: that is left out when a resumed stage has no step left
    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step < module.schedule.total:
            return
        state = full_state(trainer.strategy, module.vlm)
        if trainer.is_global_zero:
            report = {
                "stage": self.stage,
                "steps": trainer.global_step,
                **self.meter.latest,
                "tokens": self.meter.tokens,
            }
            save(module.vlm, self.target, state=state, meta={"run": self.run.path.name, "training": report})
            self.run.finish(self.stage, {**report, "model": str(self.target)})
        trainer.strategy.barrier("hand-off")
