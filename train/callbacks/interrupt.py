"""Interrupt: Ctrl-C, a scheduler's SIGTERM and a time limit end the run between two steps, after saving."""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from gnomon.train.callbacks.checkpoint import Checkpoint

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(Callback):
    """A first signal asks for an end, a second one forces it.

    reason: why the run was ended: None, "signal" or "time".
    """

    def __init__(self, checkpoint: Checkpoint, *, deadline: float | None = None) -> None:
        self.checkpoint, self.deadline = checkpoint, deadline
        self.reason: str | None = None
        self._asked = False
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # after Lightning's own, whose SIGTERM handler communicates from inside the handler
        self._former = {number: signal.signal(number, self._ask) for number in _SIGNALS}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not module.boundary:
            return
        late = self.deadline is not None and time.monotonic() > self.deadline
        mine = torch.tensor(2 if self._asked else int(late), device=module.device)
        self.reason = (None, "time", "signal")[int(trainer.strategy.reduce(mine, reduce_op="max"))]
        if self.reason is not None:
            self.checkpoint.save(trainer)
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
