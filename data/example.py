"""Example: one sample as tokens, before it is padded or packed into a batch.

Shapes: T tokens, I images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gnomon.vlm.layout import IGNORE


@dataclass
class Example:
    """
    ids     (T,) long      0 at image slots
    labels  (T,) long      IGNORE where not trained, and at the first token, which nothing predicts
    image   (T,) long      which of the sample's images; -1 for text
    cell    (T,2) long     row, column on that image's grid; -1 for text
    pixels  I x (3,H,W)    uint8
    """

    sample: str
    ids: Tensor
    labels: Tensor
    image: Tensor
    cell: Tensor
    pixels: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Example:
        """The first tokens only; an image that does not fit whole goes, with all that follows it."""
        if len(self) <= length:
            return self
        image = int(self.image[length])
        if image >= 0:
            length = int((self.image == image).nonzero()[0])
        kept = int(self.image[:length].max()) + 1 if length else 0
        columns = (column[:length] for column in (self.ids, self.labels, self.image, self.cell))
        return Example(self.sample, *columns, self.pixels[:kept])


@dataclass
class Run:
    """Consecutive tokens of one kind: a piece of text, or an image's slots."""

    ids: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    cell: np.ndarray

    @classmethod
    def text(cls, ids: np.ndarray, labels: np.ndarray) -> Run:
        return cls(ids, labels, np.full(len(ids), -1), np.full((len(ids), 2), -1))

    @classmethod
    def slots(cls, image: int, rows: int, columns: int) -> Run:
        count = rows * columns
        cell = np.stack(np.divmod(np.arange(count), columns), axis=1)
        return cls(np.zeros(count, dtype=np.int64), np.full(count, IGNORE), np.full(count, image), cell)


def join(sample: str, runs: list[Run], pixels: list[Tensor]) -> Example:
    columns = ([getattr(run, name) for run in runs] for name in ("ids", "labels", "image", "cell"))
    example = Example(sample, *(torch.from_numpy(np.concatenate(column)) for column in columns), pixels)
    example.labels[:1] = IGNORE
    return example
