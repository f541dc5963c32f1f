"""Budget: train for so many minutes and still end the cosine at its floor.

The first steps are timed until they are steady, the number of steps follows and is written down; from then on the run
is as exact as any.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from lightning import Callback, LightningModule, Trainer

# The first steps pay for warming up (compilation, caches, workers) and are not timed.
_UNTIMED, TIMED = 4, 20

# A mean of so many times the median has stalls in it, as of a busy disk, which say nothing of the rest. They are waited
# out, but not for more than this share of the budget.
_STALLED, _PATIENCE = 1.5, 0.25

ENDLESS = 1 << 40
"""Planned steps of a run that is still being timed."""


class Budget(Callback):
    """Plans a stage of `seconds`; the warm-up of the learning rate is the steps that are timed."""

    def __init__(self, seconds: float, record: Path) -> None:
        if seconds <= 0:
            raise ValueError(f"a budget of {seconds / 60:g} minutes is empty; give more")
        self.seconds, self.record = seconds, record
        self._begun = self._last = 0.0
        self._first = 0
        self._timed: list[float] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begun = self._last = time.monotonic()
        self._first, self._timed = trainer.global_step, []
        planned = json.loads(self.record.read_text())["steps"] if self.record.is_file() else None
        planned = trainer.strategy.broadcast(planned)
        if planned is not None:
            self._plan(trainer, module, planned)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not module.boundary or module.schedule.total != ENDLESS:
            return
        step, now = trainer.global_step, time.monotonic()
        self._timed.append(now - self._last)
        self._last = now
        if step < max(TIMED, self._first + 2 * _UNTIMED):
            return
        timed = self._timed[_UNTIMED:][_UNTIMED - TIMED :]
        left = self.seconds - (now - self._begun)
        steady = mean(timed) <= _STALLED * median(timed) or left < (1 - _PATIENCE) * self.seconds
        planned = trainer.strategy.broadcast(max(step + 1, step + int(left / mean(timed))) if steady else None)
        if planned is None:
            return
        if trainer.is_global_zero:
            record = {"steps": planned, "seconds_per_step": mean(timed), "budget_seconds": self.seconds}
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.record.write_text(json.dumps(record) + "\n")
        self._plan(trainer, module, planned)

    def _plan(self, trainer: Trainer, module: LightningModule, steps: int) -> None:
        module.schedule = replace(module.schedule, total=steps)
        trainer.fit_loop.epoch_loop.max_steps = steps
