"""SpatialMLLM: geometry of two frames and 2 x 2 cells, through a wide network, added to the visual tokens.

Paper:   Spatial-MLLM: Boosting MLLM Capabilities in Visual-based Spatial Intelligence. arXiv:2505.23747
Rule:    v' = v + W2 GELU(W1 RMSNorm(g)), g the geometry of `frames` x m x m cells; inside by row, column, channel,
         frame; W1 is square
Where:   behind the connector, before the language model
Differs: frames are images of their own, so each of a pair gets the geometry of both (in the paper one visual token
         stands for both); of an odd number the last one is taken twice. zero: true starts at the plain model. The
         choice of frames is vlm/multiview/coverage.py
"""

from __future__ import annotations

from torch import Tensor

from gnomon.vlm.fusion.base import Align, Aligned, Merger
from gnomon.vlm.layout import Features


class SpatialMLLM(Aligned):
    def __init__(
        self,
        *,
        align: Align = "merge",
        merge: int = 1,
        frames: int = 2,
        layer: int | None = None,
        zero: bool = False,
    ) -> None:
        super().__init__(align=align, merge=merge, layer=layer)
        if frames < 1:
            raise ValueError(f"SpatialMLLM: frames {frames} is less than 1; use the number of views that go together")
        self.frames, self.zero = frames, zero

    def setup(self, widths: dict[str, int], out: int) -> None:
        width = widths["geometry"] * self.cells
        self.merger = Merger(width, out, hidden=width, zero=self.zero)

    def aligned(self, parts: dict[str, Features]) -> Tensor:
        cells = super().aligned(parts).unflatten(-1, (self.cells, self.frames, -1))
        return cells.transpose(-1, -2).flatten(-3)

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        return v + g
