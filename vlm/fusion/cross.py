"""Cross: visual tokens ask a view's camera and patch tokens.

Paper:   VLM-3R: Vision-Language Models Augmented with Instruction-Aligned 3D Reconstruction. arXiv:2505.20279
Rule:    v' = dropout(v + LN(W_o MHA(q, k, u))), q = W_q LN(v), k = W_k LN(G), u = W_u LN(G), G = [camera; patches];
         MHA has projections of its own
Where:   before the connector; per image
Differs: geometry tokens that are no numbers are not looked at, and an image with no other keeps its tokens
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gnomon.vlm.fusion.base import Attention, Fusion, heads_of, keys_of, share_of
from gnomon.vlm.layout import Features


class Cross(Fusion):
    """No alignment is needed: keys have no places. dropout: on the sum."""

    def __init__(
        self, *, heads: int = 18, layer: int | None = None, dropout: float = 0.1, behind: bool = False
    ) -> None:
        super().__init__()
        share_of(self, dropout=dropout)
        self.heads, self.dropout, self.behind = heads, nn.Dropout(dropout), behind
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, heads = widths["geometry"], heads_of(self, self.heads, out)
        self.vision, self.geometry = nn.LayerNorm(out), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(out, out), nn.Linear(width, out), nn.Linear(width, out)
        self.attention = Attention(out, heads)
        self.out, self.norm = nn.Linear(out, out), nn.LayerNorm(out)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision, (tokens, there, some) = parts["vision"], keys_of(parts["geometry"])
        query, given = self.query(self.vision(vision.tokens)), self.geometry(tokens)
        key, value = self.key(given), self.value(given)
        said = self.attention(query, key, value, there)
        fused = self.dropout(vision.tokens + self.norm(self.out(said)))
        return replace(vision, tokens=torch.where(some, fused, vision.tokens))
