"""Alignment: the geometry that belongs to each cell of another grid over the same picture.

All take (I,N,C) in raster order over `grid` and yield it in raster order over `onto`.

Shapes: I pictures, h,w grid of geometry, H,W grid it is brought onto.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]


def merge(tokens: Tensor, grid: Grid, onto: Grid) -> Tensor:
    """The m x m cells under each cell, one after the other: (I, H*W, m*m*C), inside by row, column, channel."""
    side = grid[0] // onto[0] if onto[0] else 0
    if side < 1 or grid != (onto[0] * side, onto[1] * side):
        raise ValueError(
            f"geometry on {grid[0]}x{grid[1]} cells cannot be merged onto {onto[0]}x{onto[1]} visual tokens; give both "
            "encoders pictures whose grids are whole multiples, or align by interp or pool"
        )
    blocks = tokens.unflatten(1, (onto[0], side, onto[1], side)).transpose(2, 3)
    return blocks.flatten(3).flatten(1, 2)


def interp(tokens: Tensor, grid: Grid, onto: Grid) -> Tensor:
    """Bilinear, corners not aligned; a grid onto itself stays exactly what it is."""
    if grid == onto:
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(image, onto, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def nearest(tokens: Tensor, grid: Grid, onto: Grid) -> Tensor:
    """The cell that the upper left corner of each cell lies in, as torch's interpolation has it."""
    image = tokens.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(image, onto, mode="nearest").flatten(2).transpose(1, 2)


def pool(tokens: Tensor, grid: Grid, onto: Grid, weight: Tensor | None = None) -> Tensor:
    """The mean over the geometry cells whose centres lie in the cell, weighted by `weight` (I,N); 0 where it is 0.

    A cell that no centre lies in takes the nearest one.
    """
    rows, columns = (_under(*axis, tokens) for axis in zip(grid, onto))
    weight = tokens.new_ones(tokens.shape[:2]) if weight is None else weight.to(tokens.dtype)
    both = torch.cat([tokens * weight[..., None], weight[..., None]], -1).unflatten(1, grid)
    # autocast would round places to half precision
    with torch.autocast(tokens.device.type, enabled=False):
        sums = torch.einsum("yh,xw,ihwc->iyxc", rows, columns, both).flatten(1, 2)
    return sums[..., :-1] / sums[..., -1:].clamp_min(torch.finfo(tokens.dtype).tiny)


def _under(count: int, cells: int, like: Tensor) -> Tensor:
    """(cells,count) 0 or 1: which of an axis' geometry cells belong to which cell."""
    cell = torch.arange(cells, device=like.device)[:, None]
    centre = (torch.arange(count, device=like.device) + 0.5) * cells / count
    inside = centre.floor() == cell
    nearest = (centre - cell - 0.5).abs().argmin(1, keepdim=True)
    alone = torch.zeros_like(inside).scatter(1, nearest, True)
    return torch.where(inside.any(1, keepdim=True), inside, alone).to(like.dtype)


ALIGNMENTS = {"merge": merge, "interp": interp, "pool": pool, "nearest": nearest}
