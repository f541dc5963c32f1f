"""Stream: micro-batches in the order's order, made in worker processes, with bad samples passed over and counted."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from gnomon.data.collate import collate, collate_rows
from gnomon.data.errors import BadSample, TooLong
from gnomon.data.example import Example
from gnomon.data.packing import pack
from gnomon.data.processor import Processor
from gnomon.data.sample import Source
from gnomon.vlm.layout import IGNORE, Batch

log = logging.getLogger(__name__)

# A source with this many unusable samples in a row is not worth searching on.
_LONGEST_SEARCH = 1000


@dataclass
class Made:
    """A micro-batch and what was passed over to make it; None when no usable sample was found."""

    batch: Batch | None
    bad: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def pin_memory(self) -> Made:
        return Made(self.batch and self.batch.pin_memory(), self.bad, self.skipped)

    # Every tensor that a worker sends costs a file descriptor, of which a process has 1024 or so: the images go as one.
    def __getstate__(self) -> tuple[dict[str, Any], list[torch.Size]]:
        pixels = self.batch.pixels if self.batch else []
        state = dict(self.__dict__)
        if pixels:
            state["batch"] = replace(self.batch, pixels=[torch.cat([image.flatten() for image in pixels])])
        return state, [image.shape for image in pixels]

    def __setstate__(self, packed: tuple[dict[str, Any], list[torch.Size]]) -> None:
        state, shapes = packed
        self.__dict__.update(state)
        if shapes:
            flat = self.batch.pixels[0].split([shape.numel() for shape in shapes])
            self.batch.pixels = [part.view(shape) for part, shape in zip(flat, shapes)]


class Maker:
    """Item `ids` is the micro-batch of these samples; runs in the workers.

    A sample that cannot be used gives way to the next usable id, so that the batch keeps its size. With `exact`
    (validation) neither such a stand-in nor an id past the end carries labels: no sample counts twice.
    """

    def __init__(self, source: Source, processor: Processor, *, row: int | None = None, exact: bool = False) -> None:
        self.source, self.processor, self.row, self.exact = source, processor, row, exact

    def __getitem__(self, ids: Sequence[int]) -> Made:
        made, examples = Made(None), []
        for index in ids:
            example = self._example(index, made)
            if example is None:
                return made
            examples.append(example)
        pad_id = self.processor.pad_id
        if self.row is None:
            made.batch = collate(examples, pad_id=pad_id)
        else:
            made.batch = collate_rows(pack(examples, self.row), pad_id=pad_id)
        return made

    def _example(self, index: int, made: Made) -> Example | None:
        count = len(self.source)
        for nth in range(min(count, _LONGEST_SEARCH)):
            try:
                example = self.processor.example(self.source[(index + nth) % count], train=True)
            except BadSample as error:
                passed = isinstance(error, TooLong) and self.processor.overlong == "skip"
                (made.skipped if passed else made.bad).append(str(error))
                continue
            if self.exact and (nth or index >= count):
                example.labels.fill_(IGNORE)
            return example
        return None


class Stream:
    """Iterates over the batches of the id lists that `order()` yields, from the start each time; counts as it goes.

    Stops the run with one line when more than `bad_share` of the samples (of 1000, while fewer were seen) are bad.
    """

    def __init__(
        self,
        maker: Maker,
        order: Callable[[], Iterable[Sequence[int]]],
        *,
        workers: int = 0,
        bad_share: float = 0.001,
    ) -> None:
        self.maker, self.order, self.workers, self.bad_share = maker, order, workers, bad_share
        self.seen = self.skipped = self.tokens = self.places = 0
        self.bad: list[str] = []

    @property
    def utilisation(self) -> float:
        """Share of the places of all batches so far that held a token."""
        return self.tokens / max(1, self.places)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.maker,
            batch_size=None,
            sampler=self.order(),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=deaf,
            # the loader draws a seed for its workers; from the run's own generator that would change the run
            generator=torch.Generator(),
        )
        for made in loader:
            self._count(made)
            yield made.batch

    def _count(self, made: Made) -> None:
        for message in made.bad:
            log.warning("passed over: %s", message)
        for message in made.skipped:
            log.info("skipped: %s", message)
        self.bad += made.bad
        self.skipped += len(made.skipped)
        self.seen += len(made.bad) + (len(made.batch.samples) if made.batch else 0)
        if made.batch is None or len(self.bad) > self.bad_share * max(self.seen, 1000):
            raise ValueError(
                f"{len(self.bad)} bad and {self.skipped} skipped of {self.seen + self.skipped} samples, bad_share is "
                f"{self.bad_share:g}; repair the data or raise it; first: "
                + " | ".join(self.bad[:3] or made.skipped[:3])
            )
        self.tokens += int(made.batch.layout.visible.sum())
        self.places += made.batch.ids.numel()


class Windows:
    """Sets every batch's `targets` so that the loss is normalised by the tokens of the whole optimizer step.

    Takes `accumulate` micro-batches at a time, sums their supervised tokens, lets `reduce` add up the ranks, and puts
    total / (world * accumulate) in each. The mean over ranks and micro-batches of loss sum / targets is then the step's
    loss sum over its number of tokens, however it was split.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        accumulate: int = 1,
        world: int = 1,
        reduce: Callable[[int], int] = int,
    ) -> None:
        self.batches, self.accumulate, self.world, self.reduce = batches, accumulate, world, reduce

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while window := list(islice(batches, self.accumulate)):
            total = self.reduce(sum(batch.supervised for batch in window))
            for batch in window:
                batch.targets = total / (self.world * self.accumulate)
                yield batch


def deaf(worker: int) -> None:
    """Signals reach all processes of a run; when it ends is for the one that trains to say."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
