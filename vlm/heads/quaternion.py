"""Quaternion: four numbers of any length, the scalar part last.

Paper:   VGGT: Visual Geometry Grounded Transformer. arXiv:2503.11651
Rule:    q = (x, y, z, w); R = I + 2 (w [v] + [v]^2) / |q|^2 with v = (x, y, z); from R with w >= 0
Where:   the output of a head that regresses rotations, and the pose encoding
Differs: a zero quaternion is the identity; from R by the largest of the four parts, so that nothing small divides
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.heads.base import Rotation
from gnomon.vlm.multiview.vectors import direction, length, widen


class Quaternion(Rotation):
    size = 4

    def to_matrix(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x, y, z, w = direction(x, x.new_tensor([0.0, 0.0, 0.0, 1.0])).unbind(-1)
        rows = [
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ]
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    def from_matrix(self, rotation: Tensor) -> Tensor:
        (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in widen(rotation).unbind(-2))
        # 4 q q^T: any row is the quaternion up to scale, and the one with the largest diagonal is never short
        rows = [
            (1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12),
            (m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20),
            (m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01),
            (m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22),
        ]
        outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
        best = outer.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
        q = outer.take_along_dim(best[..., None, None], dim=-2).squeeze(-2)
        q = q / length(q)[..., None]
        return torch.where(q[..., 3:] < 0, -q, q)
