"""Weighted: the mean of visual and geometry tokens with two learned weights.

Paper:   Make Geometry Matter for Spatial Reasoning (GeoSR, one of its compared fusions). arXiv:2603.26639
Rule:    v' = (a v + b g) / (a + b), a = b = 0.5 at first, g as in Add
Where:   behind the connector, before the language model
Differs: images without geometry keep their tokens; the release does so only when no sample of a batch has any
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.vlm.fusion.base import Aligned
from gnomon.vlm.layout import Features


class Weighted(Aligned):
    def setup(self, widths: dict[str, int], out: int) -> None:
        super().setup(widths, out)
        # one element and not none: sharding has no use for scalars
        self.vision, self.geometry = (nn.Parameter(torch.full((1,), 0.5)) for _ in range(2))

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        whole = self.vision + self.geometry
        self.opened = (self.geometry / whole).detach().clamp(0, 1)
        return (self.vision * v + self.geometry * g) / whole
