"""Add: geometry tokens through a small network, added to the visual tokens.

Paper:   Learning from Videos for 3D World: Enhancing MLLMs with 3D Vision Geometry Priors. arXiv:2505.24625
Rule:    v' = v + W2 GELU(W1 [RMSNorm(g_1); ...; RMSNorm(g_m*m)]), g the geometry under the visual token's m x m cells
Where:   behind the connector, before the language model
Differs: zero: true starts at the plain model (the paper's last layer starts at random); other alignments than merge
"""

from __future__ import annotations

from torch import Tensor

from gnomon.vlm.fusion.base import Align, Aligned
from gnomon.vlm.layout import Features


class Add(Aligned):
    """behind: false is the form before the connector. zero: nothing is added until training begins."""

    def __init__(
        self,
        *,
        align: Align = "merge",
        merge: int = 1,
        layer: int | None = None,
        hidden: int | None = None,
        zero: bool = False,
        behind: bool = True,
    ) -> None:
        super().__init__(align=align, merge=merge, layer=layer, hidden=hidden)
        self.zero, self.behind = zero, behind

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        return v + g
