"""Progress: one line with loss or error, speed and time left; rewritten in a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from gnomon.train.callbacks.meter import Meter


class Progress(Callback):
    """every: seconds between lines where the output is not a terminal."""

    def __init__(self, meter: Meter, stage: str, *, every: float = 30.0) -> None:
        self.meter, self.stage, self.every = meter, stage, every
        self._begun = self._shown = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begun, self._first = time.monotonic(), trainer.global_step
        self._shown = 0.0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not (trainer.is_global_zero and module.boundary and self.meter.latest):
            return
        now = time.monotonic()
        last = trainer.global_step >= module.schedule.total
        if now - self._shown < (0.5 if sys.stderr.isatty() else self.every) and not last:
            return
        self._shown = now
        self._write(trainer.global_step, module.schedule.total, now, end=last)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            print(file=sys.stderr)

    def _write(self, step: int, total: int, now: float, *, end: bool) -> None:
        latest = self.meter.latest
        rate = (step - self._first) / max(1e-9, now - self._begun)
        known = total < 1 << 32
        learned = f"error {latest['error']:.3g}" if "error" in latest else f"loss {latest['loss']:.4f}"
        left = clock((total - step) / rate) if known and rate else "measuring"
        line = (
            f"{self.stage} step {step}{f'/{total}' if known else ''}  {learned}  "
            f"lr {latest['lr']:.2e}  {latest['tokens_per_s']:,.0f} tokens/s  "
            + (f"took {clock(now - self._begun)}" if end else f"left {left}")
        )
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
