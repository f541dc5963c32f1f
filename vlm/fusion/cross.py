"""Cross: visual tokens ask a view's camera and patch tokens.

Paper:   VLM-3R: Vision-Language Models Augmented with Instruction-Aligned 3D Reconstruction. arXiv:2505.20279
Rule:    v' = dropout(v + LN(W_o MHA(q, k, u))), q = W_q LN(v), k = W_k LN(G), u = W_u LN(G), G = [camera; patches];
         MHA has projections of its own
Where:   before the connector; per image
Differs: geometry tokens that are no numbers are not looked at, and an image with no other keeps its tokens. places (not
         in the paper) adds sine and cosine of row and column to q and k, both in cells of the geometry's grid
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gnomon.vlm.fusion.base import Attention, Fusion, axes_of, heads_of, keys_of, share_of, sines
from gnomon.vlm.layout import Features


class Cross(Fusion):
    """No alignment is needed, whatever the two grids. dropout: on the sum. places: who stands where is told."""

    def __init__(
        self,
        *,
        heads: int = 18,
        layer: int | None = None,
        dropout: float = 0.1,
        behind: bool = False,
        places: bool = False,
    ) -> None:
        super().__init__()
        share_of(self, dropout=dropout)
        self.heads, self.dropout, self.behind, self.places = heads, nn.Dropout(dropout), behind, places
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, heads = widths["geometry"], heads_of(self, self.heads, out)
        if self.places:
            axes_of(self, out)
        self.vision, self.geometry = nn.LayerNorm(out), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(out, out), nn.Linear(width, out), nn.Linear(width, out)
        self.attention = Attention(out, heads)
        self.out, self.norm = nn.Linear(out, out), nn.LayerNorm(out)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision, (tokens, there, some) = parts["vision"], keys_of(parts["geometry"])
        query, given = self.query(self.vision(vision.tokens)), self.geometry(tokens)
        key, value = self.key(given), self.value(given)
        if self.places:
            asked, known = both_places(vision, parts["geometry"], query.shape[2])
            query, key = query + asked.to(query.dtype), key + known.to(key.dtype)
        said = self.attention(query, key, value, there)
        fused = self.dropout(vision.tokens + self.norm(self.out(said)))
        return replace(vision, tokens=torch.where(some, fused, vision.tokens))


def both_places(vision: Features, geometry: Features, width: int) -> tuple[Tensor, Tensor]:
    """Of the visual tokens, and of camera token (nowhere) and patches."""
    share = [known / cells for known, cells in zip(geometry.grid[0], vision.grid[0], strict=True)]
    asked = (vision.cells() + 0.5) * vision.tokens.new_tensor(share, dtype=torch.float32) - 0.5
    known = sines(geometry.cells(), width)
    return sines(asked, width), known if geometry.camera is None else pad(known, (0, 0, 1, 0))
