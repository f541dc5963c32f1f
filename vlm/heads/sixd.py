"""SixD: two columns of the rotation matrix, made orthonormal.

Paper:   On the Continuity of Rotation Representations in Neural Networks. arXiv:1812.07035
Rule:    x = a1 / |a1|; z = (x x a2) / |.|; y = z x x; R = [x y z]
Where:   the output of a head that regresses rotations
Differs: short or parallel vectors give a rotation too, through a coordinate axis, where the release divides by 1e-8
"""

from __future__ import annotations

from torch import Tensor

from gnomon.vlm.heads.base import Rotation, gram_schmidt
from gnomon.vlm.multiview.vectors import widen


class SixD(Rotation):
    size = 6

    def to_matrix(self, x: Tensor) -> Tensor:
        x = self.read(x)
        return gram_schmidt(x[..., :3], x[..., 3:])

    def from_matrix(self, rotation: Tensor) -> Tensor:
        return widen(rotation)[..., :2].mT.flatten(-2)
