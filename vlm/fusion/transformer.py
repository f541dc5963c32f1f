"""Transformer: visual tokens ask the geometry of their view, and pass a feed-forward block.

Paper:   VLM-3R: Vision-Language Models Augmented with Instruction-Aligned 3D Reconstruction. arXiv:2505.20279
Rule:    a = v + MHA(W_q LN(v), W_k LN(G), W_u LN(G)), v' = a + W2 ReLU(W1 LN(a)), W1 four times as wide;
         G = [camera; patches]
Where:   before the connector; per image
Differs: geometry tokens that are no numbers are not looked at, and an image with no other keeps its tokens
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gnomon.vlm.fusion.base import Attention, Fusion, heads_of, keys_of
from gnomon.vlm.layout import Features


class Transformer(Fusion):
    def __init__(self, *, heads: int = 18, layer: int | None = None, behind: bool = False) -> None:
        super().__init__()
        self.heads, self.behind = heads, behind
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, heads = widths["geometry"], heads_of(self, self.heads, out)
        self.vision, self.geometry = nn.LayerNorm(out), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(out, out), nn.Linear(width, out), nn.Linear(width, out)
        self.attention = Attention(out, heads)
        self.feed = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 4 * out), nn.ReLU(), nn.Linear(4 * out, out))

    def forward(self, parts: dict[str, Features]) -> Features:
        vision, (tokens, there, some) = parts["vision"], keys_of(parts["geometry"])
        query, given = self.query(self.vision(vision.tokens)), self.geometry(tokens)
        key, value = self.key(given), self.value(given)
        said = vision.tokens + self.attention(query, key, value, there)
        return replace(vision, tokens=torch.where(some, said + self.feed(said), vision.tokens))
