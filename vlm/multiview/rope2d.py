"""Rotary positions in two dimensions: half of each head turns with the row, the other half with the column.

Shapes: B sequences, H heads, T tokens, D head width, h,w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosine and sine, (...,T,D)."""


def positions(grid: tuple[int, int], special: int, device: torch.device | str = "cpu") -> Tensor:
    """(special + h*w, 2): row and column of each patch, counted from 1; special tokens stand at 0, 0."""
    rows, columns = (torch.arange(1, side + 1, device=device) for side in grid)
    patches = torch.cartesian_prod(rows, columns)
    return torch.cat([patches.new_zeros(special, 2), patches])


def tables(places: Tensor, width: int, *, base: float = 100.0) -> Rope:
    """Of heads of this width, for tokens at (...,T,2)."""
    if width % 4:
        raise ValueError(f"heads of width {width} have no two halves of pairs; make the width a multiple of 4")
    pairs = width // 4
    frequency = base ** (-torch.arange(pairs, device=places.device, dtype=torch.float32) / pairs)
    # (...,T,2,pairs): each half of a head turns channel i with channel i + pairs
    angle = places.float()[..., None] * frequency
    angle = torch.cat([angle, angle], dim=-1).flatten(-2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """(B,H,T,D) turned by its tokens' angles."""
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([-second, first], dim=-2).flatten(-3)
    return x * rope[0] + turned * rope[1]
