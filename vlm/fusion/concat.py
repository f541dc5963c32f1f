"""Concat: visual and geometry tokens side by side through one linear map.

Paper:   Make Geometry Matter for Spatial Reasoning (GeoSR, one of its compared fusions). arXiv:2603.26639
Rule:    v' = W [LN(v); LN(g)] + b, g as in Add
Where:   behind the connector, before the language model
Differs: images without geometry keep their tokens; the release does so only when no sample of a batch has any
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.vlm.fusion.base import Aligned
from gnomon.vlm.layout import Features


class Concat(Aligned):
    def setup(self, widths: dict[str, int], out: int) -> None:
        super().setup(widths, out)
        self.vision, self.geometry = nn.LayerNorm(out), nn.LayerNorm(out)
        self.join = nn.Linear(2 * out, out)

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        return self.join(torch.cat([self.vision(v), self.geometry(g)], -1))
