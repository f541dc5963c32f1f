"""Lengths, directions and angles of vectors whose gradients stay finite where the formula has none."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8
"""Shorter than this, a vector has no direction."""


def widen(x: Tensor) -> Tensor:
    """In float32 at least: geometry in half precision loses whole degrees."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def length(x: Tensor) -> Tensor:
    """Of vectors (...,n); the gradient of a zero vector is zero."""
    square = (x * x).sum(-1)
    some = square > 0
    return torch.where(some, torch.where(some, square, 1).sqrt(), 0)


def direction(x: Tensor, fallback: Tensor) -> Tensor:
    """(...,n) scaled to length 1; `fallback`, without a gradient, for vectors shorter than TINY."""
    size = length(x)[..., None]
    return torch.where(size < TINY, fallback, x / size.clamp(min=TINY))


def cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(*torch.broadcast_tensors(a, b), dim=-1)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Between vectors (...,3), in [0, pi]; 0 where one of them is zero.

    By atan2(|a x b|, a.b): the arc cosine of the same loses half of the digits near 0 and pi.
    """
    return arc(length(cross(a, b)), (a * b).sum(-1))


def arc(sine: Tensor, cosine: Tensor) -> Tensor:
    """atan2 whose gradient is zero, and not nan, at (0, 0)."""
    nowhere = (sine == 0) & (cosine == 0)
    return torch.atan2(sine, torch.where(nowhere, 1, cosine))
