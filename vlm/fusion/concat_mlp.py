"""ConcatMLP: visual and geometry tokens side by side through a two-layer network.

Paper:   VLM-3R: Vision-Language Models Augmented with Instruction-Aligned 3D Reconstruction. arXiv:2505.20279
Rule:    v' = W2 GELU(W1 [v; g']), W1 from 2 C to 4 C; g' = W4 GELU(W3 g). No residual
Where:   before the connector
Differs: geometry is brought onto the visual grid by interpolation where their grids differ
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gnomon.vlm.fusion.base import Align, Fusion
from gnomon.vlm.layout import Features


class ConcatMLP(Fusion):
    def __init__(
        self, *, align: Align = "interp", merge: int = 1, layer: int | None = None, behind: bool = False
    ) -> None:
        super().__init__()
        self.align, self.merge, self.behind = align, merge, behind
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width = widths["geometry"] * self.cells
        self.geometry = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
        self.join = nn.Sequential(nn.Linear(2 * out, 4 * out), nn.GELU(), nn.Linear(4 * out, out))

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        beside = self.geometry(self.aligned(parts))
        return replace(vision, tokens=self.join(torch.cat([vision.tokens, beside], -1)))
