"""GeoSRCross: one transformer layer in which visual tokens ask geometry tokens, both with their places.

Paper:   Make Geometry Matter for Spatial Reasoning (GeoSR, one of its compared fusions). arXiv:2603.26639
Rule:    x = v + MHA(LN1(v) + P, LN2(g) + P, LN3(g)), v' = x + W2 GELU(W1 LN4(x)), W1 four times as wide; P sine and
         cosine of row and column, g as in Add
Where:   behind the connector, before the language model; per image
Differs: tokens that a reducer merged stand at the mean of their cells
"""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.vlm.fusion.base import Align, Aligned, Attention, axes_of, heads_of, share_of, sines
from gnomon.vlm.layout import Features


class GeoSRCross(Aligned):
    """dropout: of attention weights, in training."""

    def __init__(
        self,
        *,
        heads: int = 8,
        dropout: float = 0.1,
        align: Align = "merge",
        merge: int = 1,
        layer: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__(align=align, merge=merge, layer=layer, hidden=hidden)
        share_of(self, dropout=dropout)
        self.heads, self.dropout = heads, dropout

    def setup(self, widths: dict[str, int], out: int) -> None:
        super().setup(widths, out)
        axes_of(self, out)
        self.query, self.key, self.value = (nn.LayerNorm(out) for _ in range(3))
        heads = heads_of(self, self.heads, out)
        self.attention = Attention(out, heads, dropout=self.dropout)
        self.feed = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 4 * out), nn.GELU(), nn.Linear(4 * out, out))

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        vision = parts["vision"]
        place = sines(vision.cells(), v.shape[2]).to(v.dtype)
        query, key = self.query(v) + place, self.key(g) + place
        said = self.attention(query, key, self.value(g), vision.valid)
        x = v + said
        return x + self.feed(x)
