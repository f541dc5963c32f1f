"""CoordMLP: a two-layer connector that tells each token where its cell lies.

Paper:   An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution. arXiv:1807.03247
Rule:    y = W2 GELU(W1 [x; p] + b1) + b2; p = (u, v) and sin, cos of pi 2^k (u, v) for k < octaves, where u, v in
         (-1, 1) are the column and row of the cell's centre
Where:   between a vision encoder that has no position embedding of its own and the language model
Differs: coordinates enter after the encoder and not before each convolution; the octaves are ours (octaves: 0 leaves
         the paper's plain coordinates)
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features


class CoordMLP(Bridge):
    def __init__(self, octaves: int = 4) -> None:
        super().__init__()
        if octaves < 0:
            raise ValueError(f"octaves {octaves} is negative; use 0 or more")
        self.octaves = octaves

    def setup(self, widths: dict[str, int], out: int) -> None:
        self.layers = nn.Sequential(
            nn.Linear(widths["vision"] + 2 * (1 + 2 * self.octaves), out), nn.GELU(), nn.Linear(out, out)
        )

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        tokens = vision.tokens
        if vision.plan is not None:
            where = self.coordinates(vision.cells(), vision.grid[0])
        else:
            where = tokens.new_zeros(*tokens.shape[:2], 2 * (1 + 2 * self.octaves))
            for i, (h, w) in enumerate(vision.grid):
                cells = torch.cartesian_prod(torch.arange(h), torch.arange(w))
                where[i, : h * w] = self.coordinates(cells, (h, w)).to(tokens)
        return replace(vision, tokens=self.layers(torch.cat([tokens, where.to(tokens)], -1)))

    def coordinates(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        """(...,2) row and column, whole or not, to (..., 2 + 4 octaves)."""
        h, w = grid
        plain = torch.stack([(cells[..., 1] + 0.5) / w, (cells[..., 0] + 0.5) / h], -1) * 2 - 1
        angles = plain[..., None] * math.pi * 2.0 ** torch.arange(self.octaves, device=cells.device)
        return torch.cat([plain, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)
