"""DataModule: training and validation batches for the Trainer, at any step, on any number of ranks and workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from lightning import LightningDataModule

from gnomon.data.order import Order
from gnomon.data.processor import Overlong, Processor
from gnomon.data.sample import Source
from gnomon.data.stream import Maker, Stream, Windows
from gnomon.vlm.layout import Batch

log = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Micro-batches from sources of samples.

    train, val  where samples come from; `val` is optional
    batch_size  samples of a micro-batch, on one rank
    workers     processes that read and prepare; the batches do not depend on it
    seed        of the order; the order depends on nothing else
    max_length  most tokens of a sample
    overlong    what becomes of longer ones: "error" (counts as bad), "truncate" or "skip"
    pack        pack the samples of a micro-batch into as few rows of this length as they fit; none: a row each
    bad_share   share of bad samples above which the run stops; those below it are passed over and named in the log
    shuffle     off: the source's own order, over and over
    """

    def __init__(
        self,
        train: Source,
        val: Source | None = None,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        max_length: int = 2048,
        overlong: Overlong = "error",
        pack: int | None = None,
        bad_share: float = 0.001,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if pack is not None and pack < max_length:
            raise ValueError(f"pack {pack} is shorter than max_length {max_length}; a packed row must hold any sample")
        self.train_source, self.val_source = train, val
        self.batch_size, self.workers, self.seed, self.shuffle = batch_size, workers, seed, shuffle
        self.max_length, self.overlong, self.pack, self.bad_share = max_length, overlong, pack, bad_share
        self.start_step = 0
        """Global (optimizer) step that the next train_dataloader begins with."""
        self.stream: Stream | None = None
        """The running training stream, with its counters."""

    def attach(
        self,
        processor: Processor,
        *,
        world: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        reduce: Callable[[int], int] | None = None,
    ) -> None:
        """Tell what the model wants and how the run is split; `reduce` adds an int up over the ranks."""
        if world > 1 and reduce is None:
            raise ValueError(f"{world} ranks need a `reduce` that adds up their target tokens; pass an all-reduce")
        self.processor = replace(processor, max_length=self.max_length, overlong=self.overlong)
        self.world, self.rank, self.accumulate, self.reduce = world, rank, accumulate, reduce or int

    @property
    def order(self) -> Order:
        return Order(
            len(self.train_source),
            seed=self.seed,
            batch=self.batch_size,
            accumulate=self.accumulate,
            world=self.world,
            rank=self.rank,
            shuffle=self.shuffle,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless, from `start_step` on; each batch's `targets` is set. To change the source, assign and call again."""
        maker = Maker(self.train_source, self.processor, row=self.pack)
        ids = partial(self.order.stream, self.start_step)
        self.stream = Stream(maker, ids, workers=self.workers, bad_share=self.bad_share)
        return Windows(self.stream, accumulate=self.accumulate, world=self.world, reduce=self.reduce)

    def val_dataloader(self) -> Iterable[Batch]:
        """Every sample once, as many batches on every rank; what fills the last ones up carries no labels."""
        if self.val_source is None:
            return []
        maker = Maker(self.val_source, self.processor, row=self.pack, exact=True)
        order = Order(len(self.val_source), batch=self.batch_size, world=self.world, rank=self.rank, shuffle=False)
        places = [order.places(step) for step in range(order.steps_per_epoch)]
        return Stream(maker, lambda: places, workers=self.workers, bad_share=self.bad_share)

    def state_dict(self) -> dict[str, Any]:
        step = self.trainer.global_step if self.trainer is not None else self.start_step
        return {"step": step, "seed": self.seed, "samples": len(self.train_source)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, now in (("seed", self.seed), ("samples", len(self.train_source))):
            if state_dict[name] != now:
                log.warning("the checkpoint's data had %s %s, now %s: the order differs", name, state_dict[name], now)
        self.start_step = state_dict["step"]
