"""Guard: a loss or gradient that is not finite ends the run before it can touch the weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from gnomon.train.callbacks.checkpoint import Checkpoint
from gnomon.train.errors import Stopped
from gnomon.train.strategies import Zero


class Guard(Callback):
    """Checks each optimizer step; on failure saves the state of the step before and names the samples.

    DeepSpeed knows its gradient only inside its step, which applies nothing when the norm is not finite; there the
    check comes after. First of the callbacks, because it sets the module's `grad_norm`.
    """

    def __init__(self, checkpoint: Checkpoint, record: Path) -> None:
        self.checkpoint, self.record = checkpoint, record
        self._progress: dict[str, Any] | None = None
        self._failing = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._progress = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if not module.boundary:
            return
        finite = bool(torch.stack([loss for loss, _ in module.window]).isfinite().all())
        if not isinstance(trainer.strategy, Zero):
            module.grad_norm = _norm(module)
            finite = finite and bool(module.grad_norm.isfinite())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._stop(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not module.boundary:
            return
        if isinstance(trainer.strategy, Zero):
            engine = trainer.strategy.deepspeed_engine
            module.grad_norm = torch.as_tensor(float(engine.get_global_grad_norm()))
            if not engine.was_step_applied():
                self._stop(trainer, module)
        self._progress = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._failing:
            # the failed step's micro-batches are undone: whoever resumes takes them again
            checkpoint["loops"]["fit_loop"] = self._progress

    def _stop(self, trainer: Trainer, module: LightningModule) -> None:
        culprits = _culprits(module)
        self._failing = True
        path = self.checkpoint.save(trainer, step=module.step)
        if trainer.is_global_zero:
            failure = {"step": module.step, "checkpoint": str(path), "batches": culprits}
            self.record.write_text(json.dumps(failure, indent=2) + "\n")
        samples = [sample for batch in culprits for sample in batch["samples"]]
        named = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        raise Stopped(
            f"loss or gradient is not finite at step {module.step}, samples {named} (all in {self.record}); the state "
            f"before it is in {path}; drop the samples or lower the learning rate, then run with --resume"
        )


def _norm(module: LightningModule) -> Tensor:
    norm = torch.nn.utils.get_total_norm(p.grad for p in module.parameters() if p.grad is not None)
    # a norm of sharded gradients is itself spread over the ranks
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _culprits(module: LightningModule) -> list[dict[str, Any]]:
    """The micro-batches, on all ranks, whose loss is not finite; all of them when only the gradient is not."""
    mine = [{"rank": module.global_rank, "loss": float(loss), "samples": samples} for loss, samples in module.window]
    if distributed.is_initialized():
        gathered: list[list[dict[str, Any]]] = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(gathered, mine)
        mine = [batch for batches in gathered for batch in batches]
    bad = [batch for batch in mine if not torch.isfinite(torch.tensor(batch["loss"]))]
    return [{**batch, "loss": str(batch["loss"])} for batch in bad or mine]
