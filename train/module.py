"""StageModule: one stage of a recipe as Lightning runs it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from gnomon.train.evaluate import counts
from gnomon.train.feed import Feed
from gnomon.train.schedule import Schedule
from gnomon.train.strategies import shard
from gnomon.vlm.freeze import Group
from gnomon.vlm.freeze import groups as parameter_groups
from gnomon.vlm.layout import Batch
from gnomon.vlm.model import VLM


class StageModule(LightningModule):
    """Trains `vlm` on `feed`, normalised by the target tokens of each whole optimizer step.

    groups    which parameters have which peak learning rate and weight decay
    schedule  may be replaced while training (a time budget finds the number of steps out)
    seed      of dropout and the like: every micro-batch draws from (seed, place, rank), so nothing has to be saved
    """

    def __init__(
        self,
        vlm: VLM,
        feed: Feed,
        *,
        groups: Sequence[Group],
        schedule: Schedule,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.vlm, self.feed = vlm, feed
        self.schedule, self.seed, self.compile_blocks = schedule, seed, compile_blocks
        self.groups, self.betas, self.eps = groups, betas, eps
        self.peaks: list[float] = []
        self.window: list[tuple[Tensor, list[str]]] = []
        """Loss and sample ids of the micro-batches of this optimizer step."""
        self.arrived: Batch | None = None
        """The micro-batch at hand while it was still on the CPU, where counting does not stall a GPU."""
        self.step = 0
        """Optimizer steps done before the one at hand."""
        self.grad_norm: Tensor | None = None
        self.paused = 0.0
        """Seconds spent on evaluations since the module was made."""
        # precision plugins cast whole modules; rotary frequencies and the pixels' mean lose their meaning in bfloat16
        saved = vlm.state_dict().keys()
        self._exact = {
            name: buffer.clone()
            for name, buffer in vlm.named_buffers()
            if buffer.dtype == torch.float32 and name not in saved
        }
        self._configured = False

    @property
    def boundary(self) -> bool:
        """Whether the micro-batch at hand ends an optimizer step."""
        return self.feed.taken % self.feed.data.accumulate == 0

    def train_dataloader(self) -> Feed:
        return self.feed

    def configure_model(self) -> None:
        if self._configured:
            return
        self._configured = True
        if self.compile_blocks:
            for block in blocks(self.vlm):
                block.compile()
        if self.device_mesh is not None:
            shard(self.vlm, self.device_mesh["data_parallel"], blocks(self.vlm), precision=self.trainer.precision)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # only now: sharding has replaced the parameters
        groups = parameter_groups(self.vlm, self.groups)
        self.peaks = [group["lr"] for group in groups]
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=self.device.type == "cuda" or None)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.arrived = batch
        return batch

    def on_fit_start(self) -> None:
        for name, buffer in self._exact.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.vlm.get_submodule(owner), leaf, buffer.to(self.device))

    def on_train_start(self) -> None:
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        _reseed(self.seed, self.feed.taken, self.global_rank)
        self.step = self.global_step
        factor = self.schedule.factor(self.step)
        for group, peak in zip(self.trainer.optimizers[0].param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        if (self.feed.taken - 1) % self.feed.data.accumulate == 0:
            self.window = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, _ = self.vlm.loss(batch)
        loss = total / batch.targets
        self.window.append((loss.detach(), batch.samples))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return counts(self.vlm, batch)


def blocks(vlm: VLM) -> list[nn.Module]:
    """The repeated blocks of the encoder and of the language model: what is sharded and compiled one by one."""
    towers = [
        list(module)
        for module in vlm.encoder.modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(child) for child in module}) == 1
    ]
    return max(towers, key=len, default=[]) + list(vlm.lm.layers)


def _reseed(seed: int, place: int, rank: int) -> None:
    """All random numbers of one micro-batch follow from where it stands."""
    words = np.random.SeedSequence((seed, place, rank)).generate_state(3, np.uint32)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[1]))
    np.random.seed(words[2])
