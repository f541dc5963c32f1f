"""Meter: what a step cost and gave, for the loggers and the progress line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gnomon.train.throughput import Flops, peak
from gnomon.vlm.layout import Batch

_COUNTS = ("loss", "tokens", "targets", "places", "samples", "images", "flops", "wait")


class Columns(Callback):
    """A callback that has something of its own to log."""

    def columns(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Of the steps since the last call; collective."""
        raise NotImplementedError


class Meter(Callback):
    """Adds up the micro-batches of a step over all ranks; logs every `every` steps what the steps since then were.

    beside: what else is logged with them; they come before this one in the trainer's list.
    latest: the last step's metrics. tokens: non-padding tokens seen since the stage began.
    """

    def __init__(self, flops: Flops, *, every: int = 10, beside: Sequence[Columns] = ()) -> None:
        if every is None or every < 1:
            raise ValueError(f"a log every {every} steps is not possible; set trainer.log_every_n_steps to 1 or more")
        self.flops, self.every, self.beside = flops, every, beside
        self.latest: dict[str, float] = {}
        self.tokens = 0
        self._sums, self._since = _zeros(), _zeros()
        self._steps, self._begun, self._waited, self._paused = 0, 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begun, self._waited = time.perf_counter(), module.feed.waited

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._sums += self._count(module, module.arrived)
        if not module.boundary:
            return
        self._sums[0] = float(torch.stack([loss for loss, _ in module.window]).sum())
        sums = trainer.strategy.reduce(self._sums.to(module.device), reduce_op="sum").cpu()
        sums[0] /= trainer.world_size * module.feed.data.accumulate
        self._since, self._sums, self._steps = self._since + sums, _zeros(), self._steps + 1
        self.tokens += int(sums[1])
        if trainer.global_step % self.every == 0 or trainer.global_step in (1, module.schedule.total):
            self._log(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens = state["tokens"]

    def _count(self, module: LightningModule, batch: Batch) -> Tensor:
        waited = module.feed.waited - self._waited
        self._waited = module.feed.waited
        counts = (
            0.0,
            int(batch.layout.visible.sum()),
            batch.supervised,
            batch.ids.numel(),
            len(batch.samples),
            len(batch.pixels),
            self.flops(batch),
            waited,
        )
        return torch.tensor(counts, dtype=torch.float64)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        now = time.perf_counter()
        seconds = now - self._begun - (module.paused - self._paused)
        total = dict(zip(_COUNTS, self._since.tolist()))
        speed = peak(module.device, trainer.precision)
        self.latest = {
            "loss": total["loss"] / self._steps,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "grad_norm": float(module.grad_norm),
            "tokens": self.tokens,
            "tokens_per_s": total["tokens"] / seconds,
            "samples_per_s": total["samples"] / seconds,
            "images_per_s": total["images"] / seconds,
            "step_s": seconds / self._steps,
            "padding": 1 - total["tokens"] / total["places"],
            "data_wait": total["wait"] / trainer.world_size / seconds,
            "flops_per_s": total["flops"] / seconds,
        }
        if speed is not None:
            self.latest["mfu"] = total["flops"] / seconds / (trainer.world_size * speed)
        if module.device.type == "cuda":
            self.latest["memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        for other in self.beside:
            self.latest |= other.columns(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step)
        self._since, self._steps, self._begun, self._paused = _zeros(), 0, now, module.paused


def _zeros() -> Tensor:
    return torch.zeros(len(_COUNTS), dtype=torch.float64)
