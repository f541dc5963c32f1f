"""Gauge: what a fusion does to visual tokens, what auxiliary losses are, and whether either can learn at all."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from gnomon.train.callbacks.meter import Columns
from gnomon.vlm.layout import Batch
from gnomon.vlm.model import VLM
from gnomon.vlm.tally import Tally


class Gauge(Columns):
    """Says in a line each, once, what keeps the fusion from learning.

    Its columns are for the meter. Gradients are looked at in the first step that has scenes, and in no other.
    """

    def __init__(self) -> None:
        self._trained: list[nn.Parameter] = []
        self._hooks: list[Any] = []
        self._scenes, self._felt = 0, False
        self._silent: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        vlm: VLM = module.vlm
        if vlm.scenery is None:
            return
        vlm.scenery.tally = Tally()
        self._trained = [p for p in vlm.fusion.parameters() if p.requires_grad]
        # DeepSpeed takes gradients away before anybody could look
        self._hooks = [p.register_hook(self._feel) for p in self._trained]
        if trainer.is_global_zero:
            for line in faults(vlm):
                print(line, file=sys.stderr)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._scenes += len(batch.views)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if not (self._hooks and module.boundary):
            return
        # sharded parameters have their gradient by now, which went past the hooks
        felt = self._felt or any(p.grad is not None and bool(_local(p.grad).any()) for p in self._trained)
        found = torch.tensor([self._scenes, felt], dtype=torch.float32, device=module.device)
        scenes, felt = trainer.strategy.reduce(found, reduce_op="sum").tolist()
        if not scenes:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if not felt and trainer.is_global_zero:
            name = type(module.vlm.fusion).__name__
            print(
                f"warning: no parameter of the fusion {name} gets a gradient at step {module.step}, the first with "
                "scenes, so it will not learn; of a gate and the layer behind it only one may begin at zero",
                file=sys.stderr,
            )

    def columns(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """The auxiliary losses, and Tally.shares, of all ranks together; collective."""
        found = {}
        for number, loss in enumerate(module.vlm.aux):
            name = f"aux/{number}/{type(loss).__name__}"
            found[name] = float(trainer.strategy.reduce(loss.take(module.device), reduce_op="mean"))
            silent = self._silent.get(name, 0)
            self._silent[name] = silent + 1 if silent >= 0 and not found[name] else -1
            # the first time is the first step alone
            if self._silent[name] == 2 and trainer.is_global_zero:
                print(
                    f"warning: the auxiliary loss {type(loss).__name__} is 0 up to step {module.step}: no image so far "
                    "has what it is to tell, such as the depth of a scene; give it data that have, or an encoder",
                    file=sys.stderr,
                )
        scenery = module.vlm.scenery
        if scenery is None or scenery.tally is None:
            return found
        return found | Tally.shares(trainer.strategy.reduce(scenery.tally.take(module.device), reduce_op="sum"))

    def _feel(self, gradient: Tensor) -> None:
        self._felt = self._felt or bool(gradient.any())


def faults(vlm: VLM) -> list[str]:
    """What is wrong with the choice of what is trained, a line each."""
    lines, fusion = [], vlm.fusion
    every = list(fusion.parameters())
    if every and not any(p.requires_grad for p in every):
        lines.append(
            f"warning: the recipe's rates name none of the fusion's {len(every)} tensors, so {type(fusion).__name__} "
            "stays as it is; add fusion.* to them to train it"
        )
    return lines


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
