"""Rotation: numbers that a linear layer may put out freely, read as a rotation; and how far two rotations are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.vectors import arc, cross, direction, length, widen
from gnomon.vlm.part import Part

PARALLEL = 1e-6
"""Sine below which two vectors do not span a plane."""


class Rotation(Part):
    """`size` numbers for one rotation. Every finite input is some rotation, with finite gradients.

    Both ways calculate in float32, or in float64 when that is what they are given.
    """

    size: int

    def to_matrix(self, x: Tensor) -> Tensor:
        """(...,size) to (...,3,3) with determinant +1."""
        raise NotImplementedError

    def from_matrix(self, rotation: Tensor) -> Tensor:
        """(...,3,3) to (...,size), the numbers to regress."""
        raise NotImplementedError

    def read(self, x: Tensor) -> Tensor:
        """Checked and wide enough to calculate with."""
        if x.shape[-1:] != (self.size,):
            name = type(self).__name__
            raise ValueError(f"{name} got a tensor of {tuple(x.shape)}; the last axis must hold {self.size} numbers")
        return widen(x)


def gram_schmidt(first: Tensor, second: Tensor) -> Tensor:
    """(...,3,3) whose first column points along `first` and whose second is what remains of `second`.

    Where they leave a column undetermined (too short, or parallel), a coordinate axis takes its place.
    """
    axes = torch.eye(3, dtype=first.dtype, device=first.device)
    x = direction(first, axes[0])
    # the axis that is furthest from x can always stand in for the second
    spare = axes[x.detach().abs().argmin(-1)]
    second = direction(second, spare)
    parallel = length(cross(x, second))[..., None] < PARALLEL
    z = direction(cross(x, torch.where(parallel, spare, second)), spare)
    # once more: for nearly parallel vectors, rounding leaves a part of x in z
    z = direction(z - (z * x).sum(-1, keepdim=True) * x, spare)
    return torch.stack([x, cross(z, x), z], dim=-1)


def geodesic(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians (...,) between rotations (...,3,3), exact to round-off near 0 and pi; gradient 0 at both."""
    a, b = widen(a), widen(b)
    # products and sums, for autocast would do a matrix product in half precision
    turn = (a[..., :, :, None] * b[..., :, None, :]).sum(-3)
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in turn.unbind(-2))
    axis = torch.stack([m21 - m12, m02 - m20, m10 - m01], dim=-1)
    return arc(length(axis), m00 + m11 + m22 - 1)


def frobenius(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius distance (...,) of matrices: 8 sin^2(angle / 2), smooth everywhere."""
    return (widen(a) - widen(b)).square().sum((-2, -1))
