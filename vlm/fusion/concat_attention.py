"""ConcatAttention: visual and geometry tokens side by side, and self-attention at twice the width.

Paper:   VLM-3R: Vision-Language Models Augmented with Instruction-Aligned 3D Reconstruction. arXiv:2505.20279
Rule:    c = [v; g'], v' = W LN(c + MHA(LN(c))), W from 2 C to C; g' = W2 GELU(W1 g)
Where:   before the connector; tokens of one image attend to each other
Differs: geometry is brought onto the visual grid by interpolation where their grids differ
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gnomon.vlm.fusion.base import Align, Attention, Fusion, heads_of
from gnomon.vlm.layout import Features


class ConcatAttention(Fusion):
    def __init__(
        self,
        *,
        heads: int = 36,
        align: Align = "interp",
        merge: int = 1,
        layer: int | None = None,
        behind: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.align, self.merge, self.behind = heads, align, merge, behind
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, heads = widths["geometry"] * self.cells, heads_of(self, self.heads, 2 * out)
        self.geometry = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
        self.before, self.after = nn.LayerNorm(2 * out), nn.LayerNorm(2 * out)
        self.attention = Attention(2 * out, heads)
        self.out = nn.Linear(2 * out, out)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        both = torch.cat([vision.tokens, self.geometry(self.aligned(parts))], -1)
        given = self.before(both)
        said = self.attention(given, given, given, vision.valid)
        return replace(vision, tokens=self.out(self.after(both + said)))
