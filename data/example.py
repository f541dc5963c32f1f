"""Example: one sample as tokens, before it is padded or packed into a batch.

Shapes: T tokens, I images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gnomon.data.errors import TooLong
from gnomon.vlm.layout import IGNORE, Views

GEOMETRY = -2


@dataclass
class Example:
    """
    ids     (T,) long      0 at image slots
    labels  (T,) long      IGNORE where not trained, and at the first token, which nothing predicts
    image     (T,) long      which of `pixels`; -1 for text, GEOMETRY for what stands for a whole scene
    cell      (T,2) long     row, column on that image's grid; -1 for text and the ends of rows
    pixels    I x (3,H,W)    uint8: the sample's images, or the crops of each of them
    begins    I              where in `ids` the sample's image begins that each of `pixels` is of
    position  (3,T) long     ids on the axes time, row and column; None: tokens are counted
    views                    of the sample's scene, if the model takes them
    """

    sample: str
    ids: Tensor
    labels: Tensor
    image: Tensor
    cell: Tensor
    pixels: list[Tensor] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    position: Tensor | None = None
    views: Views | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Example:
        """The first tokens only; an image that does not fit whole goes, with all that follows it."""
        if len(self) <= length:
            return self
        image = int(self.image[length])
        if image >= 0:
            length = self.begins[image]
        kept = int(self.image[:length].max()) + 1 if length else 0
        columns = (column[:length] for column in (self.ids, self.labels, self.image, self.cell))
        position = None if self.position is None else self.position[:, :length]
        views = self.views
        if views is not None:
            if (self.image == GEOMETRY).sum() != (self.image[:length] == GEOMETRY).sum():
                raise TooLong(
                    f"{self.sample} would lose part of its scene's tokens at {length} tokens; raise max_length"
                )
            views = replace(views, image=[image if image < kept else -1 for image in views.image])
        return Example(self.sample, *columns, self.pixels[:kept], self.begins[:kept], position, views)


@dataclass
class Run:
    """Consecutive tokens of one kind: a piece of text, or an image's slots."""

    ids: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    cell: np.ndarray

    @property
    def visual(self) -> bool:
        return bool(len(self.image)) and self.image[0] >= 0

    @classmethod
    def text(cls, ids: np.ndarray, labels: np.ndarray) -> Run:
        return cls(ids, labels, np.full(len(ids), -1), np.full((len(ids), 2), -1))

    @classmethod
    def slots(cls, image: int, rows: int, columns: int) -> Run:
        """All cells of one image in raster order."""
        count = rows * columns
        cell = np.stack(np.divmod(np.arange(count), columns), axis=1)
        return cls.cells(np.full(count, image), cell)

    @classmethod
    def geometry(cls, count: int) -> Run:
        """What stands for a whole scene."""
        return cls.cells(np.full(count, GEOMETRY), np.full((count, 2), -1))

    @classmethod
    def cells(cls, image: np.ndarray, cell: np.ndarray) -> Run:
        count = len(image)
        return cls(np.zeros(count, dtype=np.int64), np.full(count, IGNORE), image, cell)


def join(
    sample: str, runs: list[Run], pixels: list[Tensor], *, grid: bool = False, views: Views | None = None
) -> Example:
    """grid: give each token a position on three axes, as ImageSpec's `positions: grid` has it."""
    columns = ([getattr(run, name) for run in runs] for name in ("ids", "labels", "image", "cell"))
    example = Example(sample, *(torch.from_numpy(np.concatenate(column)) for column in columns), pixels, views=views)
    example.labels[:1] = IGNORE
    start = 0
    for run in runs:
        if run.visual:
            example.begins += [start] * (int(run.image.max()) + 1 - len(example.begins))
        start += len(run.ids)
    if grid:
        example.position = torch.from_numpy(_grid_positions(runs))
    return example


def _grid_positions(runs: list[Run]) -> np.ndarray:
    """(3,T) text counts on all axes alike; an image stands at one time, and what follows behind its longer side."""
    parts, start = [], 0
    for run in runs:
        if run.visual:
            place = np.concatenate([np.zeros_like(run.cell[:, :1]), run.cell], axis=1).T
        else:
            place = np.arange(len(run.ids))[None].repeat(3, axis=0)
        parts.append(place + start)
        start += int(place.max(initial=-1)) + 1
    return np.concatenate(parts, axis=1)
