"""LINA: linear attention with gates per place that say how much of each key and value counts; for vision encoders.

Paper:   LINA: Linear Autoregressive Image Generative Models with Continuous Tokens. arXiv:2601.22630
Rule:    y = W_o (o + DWConv5x5(x) on the grid), o of kernels/linear/lina.py with gates of keys and of values per head
         and place, at first 1
Where:   a vision encoder's block, in place of its self-attention
Differs: W_q, W_k, W_v, W_o are those of the attention it replaces, without rotation; the gates are tables that are
         brought to the grid's size, so that they fit every image, and a value per class token; the convolution begins
         at zero
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.lina import lina
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Tables
from gnomon.vlm.placement import Layers


class LINA(Mixer):
    """side: of the tables of gates; that of the model's own grid gives each place its own."""

    causal = False

    def __init__(self, layers: Layers = "all", *, side: int = 14) -> None:
        super().__init__(layers)
        if side < 1:
            raise ValueError(f"LINA: side {side} holds no gate; use 1 or more, such as 14")
        self.side = side

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        inner = self.heads * self.head_dim
        if attention.width != inner:
            raise ValueError(
                f"LINA: a width of {attention.width} beside heads of {inner} in all, which the convolution joins; "
                "use a model where they are the same"
            )
        for name in ("keys", "values"):
            self.register_parameter(f"gate_{name}", nn.Parameter(torch.ones(1, self.heads, self.side, self.side)))
            first = torch.ones(self.heads, attention.prefix) if attention.prefix else None
            self.register_parameter(f"first_{name}", None if first is None else nn.Parameter(first))
        self.local = nn.Parameter(torch.zeros(inner, 1, 5, 5))

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, columns = (layout.cell[0].amax(0) + 1).tolist()
        grid, prefix = (rows, columns), x.shape[1] - rows * columns
        q, k, v = (self.project(name, x) for name in "qkv")
        gate_k, gate_v = (self._gate(name, grid).expand(len(x), -1, -1) for name in ("keys", "values"))
        o, _ = lina(q, k, v, gate_k=gate_k, gate_v=gate_v)
        cells = x[:, prefix:].mT.unflatten(2, grid)
        local = F.conv2d(cells, self.local.to(x.dtype), padding=2, groups=cells.shape[1]).flatten(2).mT
        return self.linear("o", o.flatten(2) + F.pad(local, (0, 0, prefix, 0))), memory

    def _gate(self, name: str, grid: tuple[int, int]) -> Tensor:
        """(1,T,H), of a table that is stretched to the grid."""
        table, first = getattr(self, f"gate_{name}"), getattr(self, f"first_{name}")
        gate = F.interpolate(table, size=grid, mode="bilinear", align_corners=False).flatten(2)
        return (gate if first is None else torch.cat([first[None], gate], 2)).mT
