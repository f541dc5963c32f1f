"""Feed: one stage's micro-batches as Lightning takes them, resumable and able to change its source on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from gnomon.data.module import DataModule
from gnomon.data.sample import Source
from gnomon.vlm.layout import Batch

# Stands for "no end": the number of steps of a budgeted run is found while it trains.
_ENDLESS = 1 << 40


class Feed:
    """Sized, so that Lightning asks for a batch only when it needs it: nothing is in flight between two steps.

    Its state is the number of steps taken; Lightning stores it in checkpoints and hands it back on resume.
    """

    def __init__(self, data: DataModule) -> None:
        self.data = data
        self.taken = 0
        """Micro-batches handed out since the stage began, those before a resume included."""
        self.waited = 0.0
        """Seconds spent waiting for data since the feed was made."""
        self._reopen = False

    def __len__(self) -> int:
        return _ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            assert self.taken % self.data.accumulate == 0, "a feed is opened between optimizer steps only"
            self.data.start_step = self.taken // self.data.accumulate
            self._reopen = False
            batches = iter(self.data.train_dataloader())
            while not self._reopen:
                begun = time.perf_counter()
                batch = next(batches)
                self.waited += time.perf_counter() - begun
                self.taken += 1
                yield batch

    def use(self, source: Source) -> None:
        """Take the samples of the next step from this source; the workers' read-ahead is dropped."""
        self.data.train_source = source
        self._reopen = True

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.taken // self.data.accumulate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["step"] * self.data.accumulate
