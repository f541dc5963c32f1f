"""Rotary positions in time and two dimensions: a third of each head turns with each of them.

A third of an odd number of channels leaves its last one alone; what a width lacks to be three thirds goes to the last.

Shapes: T tokens, D head width, h,w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.rope2d import Rope
from gnomon.vlm.multiview.rope2d import positions as flat


def positions(steps: Tensor, grid: tuple[int, int], special: int) -> Tensor:
    """(S, special + h*w, 3): step, row and column of each patch, counted from 1; special tokens stand at 0, 0, 0."""
    places = flat(grid, special, steps.device).expand(len(steps), -1, -1)
    time = (steps[:, None] + 1).expand(places.shape[:2]) * (places[..., 0] > 0)
    return torch.cat([time[..., None], places], dim=-1)


def tables(places: Tensor, width: int, *, base: float = 100.0) -> Rope:
    """Cosine and sine (...,T,D) of heads of this width, for tokens at (...,T,3)."""
    angles = []
    for axis, part in enumerate(_parts(width)):
        pairs = part // 2
        frequency = base ** (-torch.arange(pairs, device=places.device, dtype=torch.float32) / max(1, pairs))
        angle = places[..., axis, None].float() * frequency
        angles += [-angle, angle, angle.new_zeros(*angle.shape[:-1], part % 2)]
    angle = torch.cat(angles, dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """(...,T,D) turned by its tokens' angles."""
    start, partners = 0, []
    for part in _parts(x.shape[-1]):
        half = part // 2
        first, second = range(start, start + half), range(start + half, start + 2 * half)
        partners += [*second, *first, *range(start + 2 * half, start + part)]
        start += part
    return x * rope[0] + x[..., partners] * rope[1]


def _parts(width: int) -> tuple[int, int, int]:
    third = width // 3
    return third, third, width - 2 * third
