"""FiveD: the 6D form with four of its numbers put on a sphere and projected onto three.

Paper:   On the Continuity of Rotation Representations in Neural Networks. arXiv:1812.07035
Rule:    t = (sqrt2+1, sqrt2+1, sqrt2) a[2:5]; u = (|t|^2-1, 2t) / (|t|^2+1) and over |u1..3|;
         R = 6D of [a0, a1, u0 | u1, u2, u3]
Where:   the output of a head that regresses rotations
Differs: t = 0, where the release has 0/0, gives a rotation too
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnomon.vlm.heads.base import Rotation, gram_schmidt
from gnomon.vlm.multiview.vectors import TINY, direction, length, widen

STRETCH = (math.sqrt(2) + 1, math.sqrt(2) + 1, math.sqrt(2))


class FiveD(Rotation):
    size = 5

    def to_matrix(self, x: Tensor) -> Tensor:
        x = self.read(x)
        t = x[..., 2:] * x.new_tensor(STRETCH)
        # u0 / |u1..3| and u1..3 / |u1..3|, with the common denominator cancelled
        size = length(t).clamp(min=TINY)
        third = (size - 1 / size) / 2
        first = torch.stack([x[..., 0], x[..., 1], third], dim=-1)
        return gram_schmidt(first, direction(t, x.new_tensor([1.0, 0.0, 0.0])))

    def from_matrix(self, rotation: Tensor) -> Tensor:
        rotation = widen(rotation)
        x, y = rotation[..., 0], rotation[..., 1]
        u = torch.cat([x[..., 2:], y], dim=-1)
        u = u / length(u)[..., None]
        # x and y are unit vectors, so u0 is at most sqrt(1/2)
        t = u[..., 1:] / (1 - u[..., :1])
        return torch.cat([x[..., :2], t / rotation.new_tensor(STRETCH)], dim=-1)
