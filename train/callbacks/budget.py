"""Budget: train for so many minutes and still end the cosine at its floor.

The first steps are timed, the number of steps follows and is written down; from then on the run is as exact as any.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

# The first steps pay for warming up (compilation, caches, workers) and are not timed.
_UNTIMED, TIMED = 4, 20

ENDLESS = 1 << 40
"""Planned steps of a run that is still being timed."""


class Budget(Callback):
    """Plans a stage of `seconds`; the warm-up of the learning rate is the steps that are timed."""

    def __init__(self, seconds: float, record: Path) -> None:
        if seconds <= 0:
            raise ValueError(f"a budget of {seconds / 60:g} minutes is empty; give more")
        self.seconds, self.record = seconds, record
        self._begun = self._from = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begun, self._first = time.monotonic(), trainer.global_step
        planned = json.loads(self.record.read_text())["steps"] if self.record.is_file() else None
        planned = trainer.strategy.broadcast(planned)
        if planned is not None:
            self._plan(trainer, module, planned)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not module.boundary or module.schedule.total != ENDLESS:
            return
        step, now = trainer.global_step, time.monotonic()
        if step <= self._first + _UNTIMED:
            self._from = now
        elif step >= max(TIMED, self._first + 2 * _UNTIMED):
            each = (now - self._from) / (step - self._first - _UNTIMED)
            left = self.seconds - (now - self._begun)
            planned = trainer.strategy.broadcast(max(step + 1, step + int(left / each)))
            if trainer.is_global_zero:
                record = {"steps": planned, "seconds_per_step": each, "budget_seconds": self.seconds}
                self.record.parent.mkdir(parents=True, exist_ok=True)
                self.record.write_text(json.dumps(record) + "\n")
            self._plan(trainer, module, planned)

    def _plan(self, trainer: Trainer, module: LightningModule, steps: int) -> None:
        module.schedule = replace(module.schedule, total=steps)
        trainer.fit_loop.epoch_loop.max_steps = steps
