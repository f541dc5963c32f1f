"""Fusion: what visual tokens are told of geometry. A bridge with a second part.

Shapes: I images (each with geometry), N visual tokens, M geometry tokens, C visual width, D geometry width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features
from gnomon.vlm.multiview.align import ALIGNMENTS

Align = Literal["merge", "interp", "pool"]


class Fusion(Bridge):
    """`forward({"vision": (I,N,C), "geometry": (I,M,D)})` yields visual features of the same shape.

    The model calls it with images that have geometry only; all others keep their tokens bit for bit. Geometry holds
    tokens, grid, camera (the view's special tokens, the camera's first) and, where the encoder was asked for points,
    xyz and confidence per cell.

    behind  the connector, at the language model's width; else before it, at the vision encoder's
    needs   heads of the geometry encoder that it reads
    align   how geometry comes to stand beside the visual tokens; see multiview/align.py
    merge   with align merge: geometry cells per visual token and side
    layer   of the geometry encoder to read; None: its last; negative ones count from the end
    extra   tokens that it adds for each scene, behind its images (see `scene`)
    """

    behind: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    align: Align = "interp"
    layer: int | None = None
    extra: int = 0

    def setup(self, widths: dict[str, int], out: int) -> None:
        """widths: of vision (where it acts) and geometry; out: of what it yields, the same as vision's."""
        raise NotImplementedError

    def forward(self, parts: dict[str, Features]) -> Features:
        raise NotImplementedError

    def scene(self, tokens: Tensor, valid: Tensor, question: Tensor, asked: Tensor) -> Tensor:
        """(B,extra,C) tokens for whole scenes: of their geometry (B,S*M,D), and the question's embeddings (B,T,C)."""
        raise NotImplementedError

    def openness(self, parts: dict[str, Features]) -> Tensor | None:
        """(I,N) in 0..1: how much of each token comes from geometry; None: it has no gate to look at."""
        return None

    def aligned_width(self, widths: dict[str, int]) -> int:
        return widths["geometry"] * (self.merge**2 if self.align == "merge" else 1)

    def aligned(self, parts: dict[str, Features]) -> Tensor:
        """(I,N,D) the geometry of each visual token; of tokens that a reducer merged, merged alike."""
        vision, geometry = parts["vision"], parts["geometry"]
        tokens = ALIGNMENTS[self.align](geometry.tokens, geometry.grid[0], vision.grid[0])
        return tokens if vision.plan is None else vision.plan.apply(tokens)


class Merger(nn.Module):
    """Geometry to the visual width: normalised, then two layers. zero: the last one starts at 0 and adds nothing."""

    def __init__(self, width: int, out: int, *, hidden: int | None = None, cells: int = 1, zero: bool = False) -> None:
        super().__init__()
        hidden = hidden or out
        self.cells = cells
        self.norm = nn.RMSNorm(width // cells)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
        if zero:
            nn.init.zeros_(self.layers[-1].weight)
            nn.init.zeros_(self.layers[-1].bias)

    def forward(self, geometry: Tensor) -> Tensor:
        """(...,cells*D): each of the cells is normalised on its own."""
        return self.layers(self.norm(geometry.unflatten(-1, (self.cells, -1))).flatten(-2))


def finite(geometry: Tensor) -> Tensor:
    """Zero in place of what is no number: 0 * inf would undo a closed gate."""
    return torch.where(torch.isfinite(geometry), geometry, 0)
