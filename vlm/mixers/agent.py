"""Agent: a few pooled queries look at all tokens, and the queries look at them; for vision encoders.

Paper:   Agent Attention: On the Integration of Softmax and Linear Attention. arXiv:2312.08874
Rule:    y = W_o (o + DWConv3x3(v) on the grid), o of kernels/linear/agent.py with biases from tables: per agent one of
         7 x 7 cells, one of rows and one of columns, for gathering and for spreading, and a value per class token
Where:   a vision encoder's block, in place of its self-attention
Differs: W_q, W_k, W_v, W_o are those of the attention it replaces; all tables are brought to the grid's size, so that
         they fit every image; they and the convolution begin at zero
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.agent import agent, table_bias
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Tables
from gnomon.vlm.placement import Layers


class Agent(Mixer):
    """agents: rows and columns of them. table: side of the tables of biases."""

    causal = False

    def __init__(self, layers: Layers = "all", *, agents: tuple[int, int] = (7, 7), table: int = 7) -> None:
        super().__init__(layers)
        self.agents, self.table = (agents[0], agents[1]), table

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        count, side = self.agents[0] * self.agents[1], self.table
        shapes = {"cells": (side, side), "rows": (side, 1), "columns": (1, side)}
        for way in ("gather", "spread"):
            for name, shape in shapes.items():
                self.register_parameter(f"{way}_{name}", nn.Parameter(torch.zeros(self.heads, count, *shape)))
            first = torch.zeros(self.heads, count, attention.prefix) if attention.prefix else None
            self.register_parameter(f"{way}_first", None if first is None else nn.Parameter(first))
        self.local = nn.Parameter(torch.zeros(self.heads * self.head_dim, 1, 3, 3))

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, columns = (layout.cell[0].amax(0) + 1).tolist()
        grid, prefix = (rows, columns), x.shape[1] - rows * columns
        q, k, v = (self.project(name, x) for name in "qkv")
        gather, spread = (self._bias(way, grid) for way in ("gather", "spread"))
        o, _ = agent(
            q, k, v, grid=grid, agents=self.agents, prefix=prefix, bias_k=gather, bias_q=spread.mT, scale=self.scale
        )
        cells = v[:, prefix:].flatten(2).mT.unflatten(2, grid)
        local = F.conv2d(cells, self.local.to(v.dtype), padding=1, groups=cells.shape[1]).flatten(2).mT
        return self.o_proj(o.flatten(2) + F.pad(local, (0, 0, prefix, 0))), memory

    def _bias(self, way: str, grid: tuple[int, int]) -> Tensor:
        """(H,n,T), of tables that are stretched to the grid."""
        cells, rows, columns = (getattr(self, f"{way}_{name}") for name in ("cells", "rows", "columns"))
        rows = F.interpolate(rows, size=(grid[0], 1), mode="bilinear", align_corners=False)
        columns = F.interpolate(columns, size=(1, grid[1]), mode="bilinear", align_corners=False)
        return table_bias(cells, rows, columns, getattr(self, f"{way}_first"))
