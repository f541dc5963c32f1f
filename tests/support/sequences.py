"""Batches put together slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout, Views

Slot = tuple[int, int, int, int, int, int]
"""Token, label, kind, image, row, column."""


def picture(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def text(tokens: Sequence[int], *, asked: int = 0) -> list[Slot]:
    """Words, of which all but the first `asked` are taught."""
    return [(token, IGNORE if i < asked else token, Kind.TEXT, -1, -1, -1) for i, token in enumerate(tokens)]


def cells(image: int, grid: tuple[int, int]) -> list[Slot]:
    return [(0, IGNORE, Kind.IMAGE, image, r, c) for r in range(grid[0]) for c in range(grid[1])]


def scene(tokens: int) -> list[Slot]:
    """What a scene has in the sequence beside its images."""
    return [(0, IGNORE, Kind.GEOMETRY, -1, -1, -1)] * tokens


def padded(
    rows: Sequence[list[Slot]], pixels: list[Tensor], *, left: bool = False, views: Sequence[Views] = ()
) -> Batch:
    length = max(map(len, rows))
    fills = [[(0, IGNORE, Kind.PAD, -1, -1, -1)] * (length - len(row)) for row in rows]
    full = torch.tensor([fill + row if left else row + fill for row, fill in zip(rows, fills)])
    kind = full[..., 2]
    position = ((kind != Kind.PAD).cumsum(1) - 1).clamp(min=0)
    layout = TokenLayout(kind, full[..., 3], full[..., 4:], position)
    samples = [f"s{i}" for i in range(len(rows))]
    return Batch(full[..., 0], full[..., 1], layout, pixels, samples, views=list(views))
