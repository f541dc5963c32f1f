"""Collation: examples of different lengths to one padded Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from gnomon.data.example import GEOMETRY, Example
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout


def collate(examples: Sequence[Example], *, pad_id: int, side: Literal["right", "left"] = "right") -> Batch:
    """One example a row; training pads right, generation left."""
    batch = collate_rows([[example] for example in examples], pad_id=pad_id, side=side)
    batch.layout.document = None
    return batch


def collate_rows(rows: Sequence[Sequence[Example]], *, pad_id: int, side: Literal["right", "left"] = "right") -> Batch:
    """Packed rows: `document` numbers a row's examples (-1 at padding) and positions restart with each."""
    if side not in ("right", "left"):
        raise ValueError(f"padding side {side!r} is unknown; use right or left")
    lengths = [sum(map(len, row)) for row in rows]
    shape = len(rows), max(lengths)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE)
    kind = torch.full(shape, int(Kind.PAD))
    image, document = torch.full(shape, -1), torch.full(shape, -1)
    cell = torch.full((*shape, 2), -1)
    axes = {1 if example.position is None else 3 for row in rows for example in row}
    assert len(axes) == 1, "examples of one processor have positions of one kind"
    position = torch.zeros((*axes, *shape), dtype=torch.long)
    views, count = [], 0

    for b, row in enumerate(rows):
        start = 0 if side == "right" else shape[1] - lengths[b]
        images = 0
        for d, example in enumerate(row):
            # labels[t] is the token AT t, so a target at a document's first place would belong to the one before
            assert example.labels[0] == IGNORE
            at = slice(start, start + len(example))
            visual, scene = example.image >= 0, example.image == GEOMETRY
            ids[b, at] = example.ids.masked_fill(visual | scene, pad_id)
            labels[b, at] = example.labels
            kind[b, at] = torch.where(visual, Kind.IMAGE, torch.where(scene, Kind.GEOMETRY, Kind.TEXT))
            image[b, at] = torch.where(visual, example.image + images, -1)
            cell[b, at] = example.cell
            position[:, b, at] = torch.arange(len(example)) if example.position is None else example.position
            document[b, at] = d
            if example.views is not None:
                shown = [i if i < 0 else i + count + images for i in example.views.image]
                views.append(replace(example.views, image=shown))
            start, images = at.stop, images + len(example.pixels)
        count += images

    position = position[0] if len(position) == 1 else position
    return Batch(
        ids=ids,
        labels=labels,
        layout=TokenLayout(kind=kind, image=image, cell=cell, position=position, document=document),
        pixels=[pixels for row in rows for example in row for pixels in example.pixels],
        samples=[example.sample for row in rows for example in row],
        views=views,
    )
