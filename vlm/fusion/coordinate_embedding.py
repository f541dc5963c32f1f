"""CoordinateEmbedding: where each token's patch lies in space, through a small network, added to it.

Paper:   LLaVA-3D: A Simple yet Effective Pathway to Empowering LMMs with 3D-awareness. arXiv:2409.18125
Rule:    v' = v + W2 ReLU(LN(W1 x)), x the mean point of the patch; a learned vector where no point is known
Where:   before or behind the connector; needs points, that is depth and cameras
Differs: points count by their confidence; a patch without any gets a vector of its own and not the embedding of zero
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gnomon.vlm.fusion.base import Fusion, place
from gnomon.vlm.layout import Features


class CoordinateEmbedding(Fusion):
    """threshold: mean confidence above which a patch's point is known. zero: nothing is added until training begins."""

    needs = frozenset({"points"})

    def __init__(
        self, *, hidden: int | None = None, threshold: float = 0.0, zero: bool = False, behind: bool = True
    ) -> None:
        super().__init__()
        self.hidden, self.threshold, self.zero, self.behind = hidden, threshold, zero, behind

    def setup(self, widths: dict[str, int], out: int) -> None:
        hidden = self.hidden or out
        self.embed = nn.Sequential(nn.Linear(3, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.nowhere = nn.Parameter(torch.zeros(out) if self.zero else 0.02 * torch.randn(out))
        if self.zero:
            nn.init.zeros_(self.embed[-1].weight)
            nn.init.zeros_(self.embed[-1].bias)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        xyz, known = place(parts, threshold=self.threshold)
        embedded = self.embed(xyz.to(vision.tokens.dtype))
        return replace(vision, tokens=vision.tokens + torch.where(known[..., None], embedded, self.nowhere))
