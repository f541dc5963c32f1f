"""Gated: a learned gate per token and channel between visual and geometry tokens.

Paper:   Make Geometry Matter for Spatial Reasoning (GeoSR, Geometry-Guided Fusion alone). arXiv:2603.26639
Rule:    v' = z LN(v) + (1 - z) LN(g), z = sigmoid(W [LN(v); LN(g)] + b), g as in Add
Where:   behind the connector, before the language model
Differs: images without geometry keep their tokens; the release does so only when no sample of a batch has any
"""

from __future__ import annotations

from torch import Tensor

from gnomon.vlm.fusion.base import Aligned, Gate
from gnomon.vlm.layout import Features


class Gated(Aligned):
    def setup(self, widths: dict[str, int], out: int) -> None:
        super().setup(widths, out)
        self.gate = Gate(out)

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        mixed, self.opened = self.gate(v, g)
        return mixed
