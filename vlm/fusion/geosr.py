"""GeoSR: visual tokens are blotted out in training, so that the gate has to turn to geometry.

Paper:   Make Geometry Matter for Spatial Reasoning. arXiv:2603.26639
Rule:    in training, with probability beta per sample, each visual token becomes 0 with probability gamma; one at least
         stays. Then v' = z LN(v) + (1 - z) LN(g), z = sigmoid(W [LN(v); LN(g)] + b), g as in Add
Where:   behind the connector, before the language model; masking in training only
Differs: drawn per sample and never where there is no geometry; the release draws per micro-batch (of one sample), and
         masks batches without geometry too. Random numbers are torch's global ones, seeded per micro-batch
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.fusion.base import Align, Aligned, Gate, owners, share_of
from gnomon.vlm.layout import Features


class GeoSR(Aligned):
    """beta: share of the samples that are masked. gamma: share of their visual tokens that go."""

    def __init__(
        self,
        *,
        align: Align = "merge",
        merge: int = 1,
        layer: int | None = None,
        hidden: int | None = None,
        beta: float = 0.5,
        gamma: float = 0.8,
    ) -> None:
        super().__init__(align=align, merge=merge, layer=layer, hidden=hidden)
        share_of(self, beta=beta, gamma=gamma)
        self.beta, self.gamma = beta, gamma

    def setup(self, widths: dict[str, int], out: int) -> None:
        super().setup(widths, out)
        self.gate = Gate(out)

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        if self.training:
            v = torch.where(self.kept(parts)[..., None], v, 0)
        mixed, self.opened = self.gate(v, g)
        return mixed

    def kept(self, parts: dict[str, Features]) -> Tensor:
        """(I,N) bool: a new draw of the visual tokens that stay."""
        valid = parts["vision"].valid
        owner, samples = owners(parts["geometry"])
        masked = torch.rand(samples, device=valid.device) < self.beta
        luck = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, -1)
        # the luckiest token of a sample stays in any case
        best = luck.new_zeros(samples).scatter_reduce(0, owner, luck.amax(1), "amax")
        return (luck >= self.gamma) | (luck == best[owner, None]) | ~masked[owner, None]
