"""Teacher-forced validation, the same under every strategy: loss, and answers right in every token.

Where each token of an answer is the model's first choice given those before it, greedy decoding writes just that
answer; so no generation is needed, and a sharded model runs one ordinary forward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.layout import IGNORE, Batch
from gnomon.vlm.model import VLM


@dataclass(frozen=True)
class Score:
    loss: float
    accuracy: float
    samples: int


def counts(vlm: VLM, batch: Batch) -> Tensor:
    """[loss sum, target tokens, rows right in every token, rows]; rows without labels do not count."""
    at = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))
    output = vlm(batch, at=at)
    loss = F.cross_entropy(output.logits.float(), output.labels, reduction="sum")
    wrong = (output.logits.argmax(-1) != output.labels).long()
    misses = wrong.new_zeros(len(at)).index_add(0, at.nonzero()[:, 0], wrong)
    rows = at.any(1)
    values = [loss, at.sum(), ((misses == 0) & rows).sum(), rows.sum()]
    return torch.stack([value.double() for value in values])


@torch.no_grad()
def evaluate(trainer: Trainer, module: LightningModule, batches: Iterable[Batch]) -> Score:
    """Over the batches of all ranks, which must be as many on each. Training modes are restored."""
    begun = time.perf_counter()
    training = [part for part in module.modules() if part.training]
    module.eval()
    total = torch.zeros(4, dtype=torch.float64, device=module.device)
    for batch in batches:
        batch = trainer.precision_plugin.convert_input(batch).to(module.device)
        total += trainer.strategy.validation_step(batch, 0)
    for part in training:
        part.training = True
    loss, tokens, right, rows = trainer.strategy.reduce(total, reduce_op="sum").tolist()
    module.paused += time.perf_counter() - begun
    if not rows:
        return Score(math.nan, math.nan, 0)
    return Score(loss / tokens, right / rows, int(rows))
