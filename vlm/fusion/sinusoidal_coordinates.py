"""SinusoidalCoordinates: sines and cosines of where each token's patch lies in space, added to it.

Paper:   Video-3D LLM: Learning Position-Aware Video Representation for 3D Scene Understanding. arXiv:2412.00493
Rule:    v' = v + [PE(x); PE(y); PE(z); 0], PE(x)_2k = sin(s x / 10000^(2k/d)), PE(x)_2k+1 = cos of the same, d the
         largest even width that fits three times
Where:   before or behind the connector; needs points, that is depth and cameras
Differs: points count by their confidence; a patch without any keeps its token. s = 1 / voxel, not rounded to voxels
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.fusion.base import Fusion, place
from gnomon.vlm.layout import Features


class SinusoidalCoordinates(Fusion):
    """It has no parameters. voxel: length that counts as 1, in the scenes' unit."""

    needs = frozenset({"points"})

    def __init__(self, *, voxel: float = 1.0, threshold: float = 0.0, behind: bool = True) -> None:
        super().__init__()
        if voxel <= 0:
            raise ValueError(f"SinusoidalCoordinates: voxel {voxel} is not above 0; give a length")
        self.voxel, self.threshold, self.behind = voxel, threshold, behind

    def setup(self, widths: dict[str, int], out: int) -> None:
        if out < 6:
            raise ValueError(
                f"SinusoidalCoordinates: width {out} holds no sine and cosine of three axes; use 6 or more"
            )

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        xyz, known = place(parts, threshold=self.threshold)
        waves = encode(xyz / self.voxel, vision.tokens.shape[2]).to(vision.tokens.dtype)
        return replace(vision, tokens=torch.where(known[..., None], vision.tokens + waves, vision.tokens))


def encode(xyz: Tensor, width: int) -> Tensor:
    """(...,3) to (...,width), sines and cosines in turns."""
    each = width // 6 * 2
    angles = xyz[..., None] / 10000 ** (torch.arange(0, each, 2, device=xyz.device) / each)
    waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)
    return F.pad(waves, (0, width - 3 * each))
