"""Point-pair features: what two oriented points look like from each other, whatever the frame.

Paper:   Rotation-Invariant Transformer for Point Cloud Matching (RoITr). arXiv:2303.08231
Rule:    d = q - p; (|d|, angle(n_p, d), angle(n_q, d), angle(n_p, n_q)), the angles by atan2 and divided by pi
Where:   attention over points with normals (point maps, geometry tokens)
Differs: a point paired with itself, or a missing (zero) normal, has angle 0 and a finite gradient
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.vectors import angle, length, widen


def point_pair_features(p: Tensor, p_normal: Tensor, q: Tensor, q_normal: Tensor) -> Tensor:
    """(...,4) of pairs of points (...,3) and their normals (...,3); shapes broadcast."""
    p, p_normal, q, q_normal = torch.broadcast_tensors(*map(widen, (p, p_normal, q, q_normal)))
    d = q - p
    angles = [angle(p_normal, d), angle(q_normal, d), angle(p_normal, q_normal)]
    return torch.stack([length(d), *(a / torch.pi for a in angles)], dim=-1)
