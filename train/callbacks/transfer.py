"""Transfer: while a stage trains, converted layers answer by softmax and learn from their errors, which are logged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from gnomon.train.callbacks.meter import Columns
from gnomon.vlm.layout import Batch
from gnomon.vlm.lessons import Lessons
from gnomon.vlm.mixers.base import Mimic, imitators, lessons
from gnomon.vlm.model import VLM


class Transfer(Columns):
    """Attention transfer in the place of the language loss, which is still computed and logged: it is the teacher's.

    weight: of the mean error over layers and the samples of a micro-batch.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight
        self.first: list[float] | None = None
        """Each layer's error when the stage was new."""
        self._latest: list[float] = []
        self._lesson = ExitStack()
        self._given = Lessons()
        self._since: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        layers = len(imitators(module.vlm))
        # the loss of a micro-batch is divided by their number on the way to the backward pass; what is tied in is not
        weight = self.weight / layers / trainer.accumulate_grad_batches
        self._given = self._lesson.enter_context(lessons(module.vlm, weight=weight))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._lesson.close()
        self._since.append(torch.stack([error for _, error in sorted(self._given.errors.items())]))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and self._latest:
            pairs = zip(sorted(self._given.errors), self.first, self._latest)
            told = ", ".join(f"{layer}: {first:.3g} -> {last:.3g}" for layer, first, last in pairs)
            print(f"errors by layer: {told}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state["first"]

    def columns(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Means over ranks and micro-batches."""
        mean = trainer.strategy.reduce(torch.stack(self._since).mean(0), reduce_op="mean").tolist()
        self._since, self._latest = [], mean
        self.first = self.first or mean
        by_layer = {f"error/{layer}": error for layer, error in zip(sorted(self._given.errors), mean)}
        return {"error": sum(mean) / len(mean), **by_layer}


def check(vlm: VLM, later: Sequence[str]) -> None:
    """A ValueError for a model that cannot be converted so. later: what the stages that follow are to train."""
    if not vlm.mixers:
        raise ValueError("the model has no mixers to teach; add some, such as those of configs/recipes/lolcats.yaml")
    for mixer in vlm.mixers:
        if not isinstance(mixer, Mimic):
            raise ValueError(
                f"{type(mixer).__name__} cannot mimic softmax attention and learns nothing in attention transfer; "
                "use LoLCATs or Hedgehog in these layers, or train it with the recipe SFT"
            )
    imitators(vlm)
    names = [name for name, _ in vlm.named_parameters(remove_duplicate=False)]
    for pattern in later:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the stage after attention transfer trains {pattern}, which is no parameter of this model; "
                "give the mixers a rank, such as 8, or the recipe other `rates`"
            )
